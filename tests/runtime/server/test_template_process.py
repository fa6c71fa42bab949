"""A template that goes wild costs its request an error, never the server its memory or its time."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from server_builders import CHATML

from stoker_runtime.errors import ModelError, RequestError
from stoker_runtime.server.engine_process import ENGINE_COMMAND
from stoker_runtime.server.template import ChatTemplate
from stoker_runtime.server.template_process import TemplateProcess

HELLO = [{"role": "user", "content": "Hello"}]
_GROWING = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"


@contextmanager
def template(source: str, limit_s: float = 5.0, **variables: str) -> Iterator[TemplateProcess]:
    with closing(TemplateProcess(source, variables, limit_s=limit_s)) as process:
        yield process


def test_it_renders_as_in_process() -> None:
    messages = [{"role": "system", "content": "\u00e9 \U0001f600 \ud800"}, *HELLO]
    with template(CHATML) as process:
        for add_generation_prompt in (True, False):
            rendered = process.render(messages, add_generation_prompt=add_generation_prompt)
            want = ChatTemplate(CHATML, {}).render(messages, add_generation_prompt=add_generation_prompt)
            assert rendered == want


def test_it_sees_variables_and_extra_values() -> None:
    with template("{{ bos_token }}{{ big }}{{ flag }}", bos_token="<s>") as process:
        assert process.render(HELLO, extra={"big": 10**30, "flag": True}).text == f"<s>{10**30}True"


@pytest.mark.parametrize(
    ("source", "options", "param", "match"),
    [
        pytest.param(
            "{{ raise_exception('no') }}", {}, "messages", r": no \(the roles are user\)$", id="its-own"
        ),
        pytest.param(
            "x",
            {"continue_final_message": True},
            "continue_final_message",
            "continued",
            id="no-final-message",
        ),
    ],
)
def test_a_refusal_names_its_field(source: str, options: dict[str, Any], param: str, match: str) -> None:
    with template(source) as process, pytest.raises(RequestError, match=match) as caught:
        process.render(HELLO, **options)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, "invalid_value")


def test_it_tells_what_it_does_not_read_and_what_it_continues() -> None:
    messages: list[dict[str, Any]] = [{**HELLO[0], "name": "ann"}]
    with template(CHATML) as process:
        rendered = process.render(messages, continue_final_message=True, extra={"colour": 1})

    assert rendered.ignored == ("messages[].name", "chat_template_kwargs.colour")
    assert (rendered.text, rendered.prefix) == ("<|start|>user\nHello", "Hello")


def test_messages_that_nest_too_deeply_are_refused_and_the_next_request_is_served() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with template(CHATML) as process:
        with pytest.raises(RequestError, match="nested too deeply"):
            process.render([{"role": "user", "content": "x", "extra": deep}])
        assert process.render(HELLO).text.startswith("<|start|>user\nHello")
    while deep:  # the interpreter would take its own stack for that
        deep = deep[0]


def test_its_process_sees_none_of_the_servers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TZ", "UTC")
    with template(CHATML) as process:
        assert process._process is not None
        environment = Path(f"/proc/{process._process.pid}/environ").read_bytes()

    names = {entry.split(b"=")[0] for entry in environment.split(b"\0") if entry}
    assert b"TZ" in names
    assert names <= {b"PYTHONPATH", b"PYTHONHOME", b"LD_LIBRARY_PATH", b"LANG", b"LC_ALL", b"TZ"}


def test_it_may_start_with_the_first_rendering() -> None:
    with closing(TemplateProcess(CHATML, {}, is_started=False)) as process:
        assert process._process is None
        assert process.render(HELLO).text.startswith("<|start|>user\nHello")


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(_GROWING % ("'a'", "ns.x ~ ns.x"), id="doubled-text"),
        pytest.param(_GROWING % ("'a'", "ns.x + ns.x"), id="added-text"),
        pytest.param(_GROWING % ("[1]", "ns.x + ns.x"), id="doubled-list"),
        pytest.param(_GROWING % ("10", "ns.x * ns.x"), id="growing-number"),
        pytest.param(_GROWING % ("'a' * 1000", "ns.x | replace('a', ns.x)"), id="replaced-text"),
        pytest.param(_GROWING % ("[1]", "[ns.x, ns.x]") + "{{ ns.x | tojson }}", id="nested-lists"),
        pytest.param("{% set s = 'a' * 999999 %}{{ range(99999) | join(s) | length }}", id="joined"),
        pytest.param("{{ [1] | slice(10**9) | list | length }}", id="slices"),
        pytest.param("{{ [1] | batch(10**9, 1) | list | length }}", id="batches"),
        pytest.param("{{ 1.5 | round(10**9, 'ceil') }}", id="digits"),
        pytest.param("{{ 'a'.encode().center(10**10) | length }}", id="padded-bytes"),
        pytest.param("{{ (1).to_bytes(10**10, 'big') | length }}", id="long-bytes"),
        pytest.param("{{ '\t'.expandtabs(tabsize=10**9) | length }}", id="wide-tabs"),
        pytest.param(
            "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}", id="loops"
        ),
        pytest.param("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", id="endless-macro"),
    ],
)
def test_whatever_a_template_does_is_an_error_and_the_next_request_is_served(attack: str) -> None:
    source = "{% if messages[0].content == 'attack' %}" + attack + "{% else %}fine{% endif %}"
    with template(source, limit_s=1.0) as process:
        with pytest.raises(RequestError, match=r"chat template does not take these messages: .") as caught:
            process.render([{"role": "user", "content": "attack"}])
        assert (caught.value.status, caught.value.param) == (400, "messages")
        assert process.render(HELLO).text == "fine"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{% for %}", id="syntax"),
        pytest.param("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", id="deep-expression"),
        pytest.param("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, id="deep-loops"),
    ],
)
def test_a_source_that_is_no_template_is_refused_at_once(source: str) -> None:
    with pytest.raises(ModelError, match="Error: "):
        TemplateProcess(source, {})


def test_a_limit_that_is_lower_already_stays() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "from stoker_runtime.server.template_process import _limit_this_process as limit\n"
        "limit(); print(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "400\n"


def test_its_process_ends_with_it() -> None:
    process = TemplateProcess(CHATML, {})
    assert process._process is not None
    entry = Path(f"/proc/{process._process.pid}")
    assert entry.exists()
    del process
    gc.collect()
    assert not entry.exists()


def test_a_file_in_the_working_directory_takes_no_modules_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jinja2", "json", "stoker_runtime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')\n")
    monkeypatch.chdir(tmp_path)
    with template("{{ messages[0].content }}") as process:
        assert process.render(HELLO).text == "Hello"
    command = subprocess.run([*ENGINE_COMMAND, "--help"], capture_output=True, text=True, check=False)
    assert (command.returncode, command.stderr) == (0, "")
