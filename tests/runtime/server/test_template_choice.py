"""Which chat template a model is served with, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from server_builders import CHATML, make_assets

from stoker_runtime.errors import ConfigError, RequestError
from stoker_runtime.server.prompt import TextRoom
from stoker_runtime.server.template_choice import choose_template
from stoker_runtime.tokenizer_files import Assets

HELLO = [{"role": "user", "content": "Hello"}]


def with_variants(*names: str) -> Assets:
    return make_assets(chat_template=None, template_variants={name: f"{name} template" for name in names})


@pytest.mark.parametrize(
    ("names", "want"),
    [
        pytest.param(["chat", "tool_use", "other"], "chat", id="chat"),
        pytest.param(["plain", "tool_use", "rag"], "plain", id="the-one-that-is-for-all"),
        pytest.param(["tool_use"], "tool_use", id="the-only-one"),
        pytest.param(["one", "two"], None, id="several"),
        pytest.param(["rag", "tool_use"], None, id="none-for-all"),
        pytest.param([], None, id="none"),
    ],
)
def test_named_templates_without_a_default_are_used_where_one_is_meant(
    names: list[str], want: str | None
) -> None:
    assert choose_template(with_variants(*names), None) == (None if want is None else f"{want} template")


def test_the_models_default_comes_before_its_named_ones() -> None:
    assert choose_template(make_assets(template_variants={"chat": "x"}), None) == CHATML


def test_the_operators_template_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}\u00e9\n", encoding="utf-8")
    assert choose_template(make_assets(), str(file)) == "{{ messages[0].content }}\u00e9\n"
    assert choose_template(make_assets(), "{{ messages }}") == "{{ messages }}"
    assert choose_template(make_assets(), "{% for m in messages %}x{% endfor %}").startswith("{% for")  # type: ignore[union-attr]
    assert choose_template(with_variants("tool_use"), "tool_use") == "tool_use template"


def test_a_template_that_is_not_there_is_an_error_of_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--chat-template is '.*gone', .*No such file.*; give a file"):
        choose_template(make_assets(), str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"--chat-template .* one of this model's own: a, b$"):
        choose_template(with_variants("b", "a"), "c")
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(ConfigError, match=r"--chat-template .* no UTF-8"):
        choose_template(make_assets(), str(tmp_path / "latin"))
    with pytest.raises(ConfigError, match=r"--chat-template .* directory"):
        choose_template(make_assets(), str(tmp_path))


def test_a_template_that_cannot_be_used_is_an_error_of_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"--chat-template is no chat template that can be used: .*Syntax"):
        TextRoom(make_assets(), chat_template="{% for %}")


async def test_the_given_template_is_the_one_that_renders() -> None:
    room = TextRoom(make_assets(), chat_template="own {{ messages[0].content }}")
    prompt = await room.chat(HELLO)
    assert room.assets.tokenizer.decode(prompt.token_ids) == "own Hello"


@pytest.mark.parametrize(
    ("assets", "match"),
    [
        pytest.param(
            with_variants(), "has no chat template; start the server with --chat-template", id="none"
        ),
        pytest.param(
            with_variants("two", "one"), "none for every request: one, two; .*--chat-template", id="several"
        ),
        pytest.param(
            make_assets(chat_template="{% for %}"),
            "cannot be used .*; start the server with --chat-template",
            id="bad",
        ),
    ],
)
async def test_a_chat_without_a_template_says_what_to_do(assets: Assets, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        await TextRoom(assets).chat(HELLO)
    assert (caught.value.status, caught.value.code) == (400, "no_chat_template")
