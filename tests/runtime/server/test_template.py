from __future__ import annotations

from datetime import datetime

import jinja2
import pytest
from server_builders import CHATML, smollm2_assets

from stoker_runtime.errors import RequestError
from stoker_runtime.server.template import ChatTemplate

HELLO = [{"role": "user", "content": "Hello"}]


def render(source: str, messages: list[dict[str, str]] | None = None, **extra: object) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"}, limit_s=0.3, max_chars=10_000)
    return template.render(messages or HELLO, extra=extra).text


def test_the_example_models_template_renders_as_transformers_does() -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    assets = smollm2_assets()
    assert assets.chat_template is not None
    messages = [*HELLO, {"role": "assistant", "content": "Hi \U0001f600"}, {"role": "user", "content": "<b>"}]

    text = ChatTemplate(assets.chat_template, assets.special_tokens).render(messages).text

    want, _ = transformers.render_jinja_template(
        conversations=[messages], chat_template=assets.chat_template, add_generation_prompt=True
    )
    assert text == want[0]


TRANSFORMERS_TEMPLATES = [
    pytest.param(
        "{% for m in messages %}{% generation %}{% set x = m.content %}{{ x }}{% endgeneration %}{{ x }}"
        "{% endfor %}",
        id="generation-tag",
    ),
    pytest.param("{{ tools is none }}{{ documents is none }}{{ tools is defined }}", id="no-tools"),
    pytest.param("{% if tools is not none %}{{ tools | length }}{% endif %}x", id="tools-compared-with-none"),
]


@pytest.mark.parametrize("source", TRANSFORMERS_TEMPLATES)
def test_what_templates_count_on_is_there_as_in_transformers(source: str) -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")

    want, _ = transformers.render_jinja_template(conversations=[HELLO], chat_template=source)

    assert ChatTemplate(source, {}).render(HELLO, add_generation_prompt=False).text == want[0]


def test_the_template_sees_special_tokens_extra_variables_and_the_generation_prompt() -> None:
    source = "{{ bos_token }}{{ messages[0].content }}{{ enable_thinking }}{{ add_generation_prompt }}"

    assert render(source, enable_thinking=True) == "<s>HelloTrueTrue"


def test_a_developer_is_the_system_to_a_template_that_does_not_know_the_role() -> None:
    messages = [{"role": "developer", "content": "x"}]

    assert render(CHATML, messages).startswith("<|start|>system\nx")
    assert render("{{ messages[0].role }}{{ '' if 'developer' else '' }}", messages) == "developer"


def test_names_reach_the_template() -> None:
    assert render("{{ messages[0].name }}", [{"role": "user", "content": "x", "name": "ann"}]) == "ann"


def test_json_is_written_for_models_not_for_html() -> None:
    assert render("{{ messages[0] | tojson }}", [{"role": "user", "content": "<\u00e9>"}]) == (
        '{"role": "user", "content": "<\u00e9>"}'
    )


def test_a_template_can_tell_the_date() -> None:
    template = ChatTemplate(
        "{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime(2026, 11, 24, tzinfo=None)
    )

    assert template.render(HELLO).text == "24 Nov 2026"


def test_lines_and_loop_controls_are_as_models_expect_them() -> None:
    source = "{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n"
    source += "{{ m.content }}\n{% endfor %}"

    assert render(source, [*HELLO, *HELLO]) == "Hello\n"


@pytest.mark.parametrize(
    ("source", "match"),
    [
        pytest.param(
            "{{ raise_exception('roles must alternate') }}", "roles must alternate", id="its-own-refusal"
        ),
        pytest.param("{{ ''.__class__.__mro__ }}", "unsafe", id="escape"),
        pytest.param("{{ messages.append(1) }}", "unsafe", id="change-of-the-messages"),
        pytest.param("{{ 'a' + 1 }}", "not take these messages", id="type-error"),
        pytest.param("{% for i in range(10**9) %}{% endfor %}", "[Rr]ange", id="huge-range"),
        pytest.param(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "longer",
            id="silent-loop",
        ),
        pytest.param("{% for i in range(99999) %}{{ 'ab' }}{% endfor %}", "more than", id="much-text"),
        pytest.param("{{ 'a' * 10**9 }}", "too often", id="huge-product"),
        pytest.param("{{ 10**9 * [1] }}", "too often", id="huge-list"),
        pytest.param("{{ 9**9**9 }}", "power", id="huge-power"),
        pytest.param("{{ 'a'.center(10**9) }}", "pads", id="huge-method"),
        pytest.param("{{ 'a' | center(10**9) }}", "pads", id="huge-center"),
        pytest.param("{{ 'a' | indent(10**9) }}", "pads", id="huge-indent"),
        pytest.param("{{ messages | tojson(indent=10**9) }}", "pads", id="huge-json-indent"),
        pytest.param("{{ '%999999999d' | format(1) }}", "wide", id="huge-format"),
        pytest.param("{{ '%999999999d' % 1 }}", "wide", id="huge-percent"),
        pytest.param("{{ '{:{w}}'.format(1, w=10**9) }}", "wide", id="huge-nested-format"),
        pytest.param("{{ '%*d' % (999999999, 1) }}", "wide", id="huge-star"),
        pytest.param("{{ '{:999999999}'.format(1) }}", "wide", id="huge-str-format"),
    ],
)
def test_a_template_that_refuses_or_goes_wild_is_a_400(source: str, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        render(source)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_ordinary_arithmetic_and_padding_still_work() -> None:
    source = "{{ 3 * 4 }}{{ '-' * 3 }}{{ 2 ** 3 }}{{ 7 % 4 }}{{ '%02d' % 5 }}{{ '%s!' | format('a') }}"
    source += "{{ 'a' | center(3) }}{{ 'b\nc' | indent(1) }}"

    assert render(source) == "12---8305a! a b\n c"


def test_a_source_that_is_no_template_is_refused_at_once() -> None:
    with pytest.raises(jinja2.TemplateError):
        ChatTemplate("{% for %}", {})


@pytest.mark.parametrize(
    ("source", "message", "ignored"),
    [
        pytest.param(CHATML, {"name": "ann"}, ["name"], id="name"),
        pytest.param("{{ messages[0].name }}{{ messages[0].content }}", {"name": "ann"}, [], id="attribute"),
        pytest.param("{{ messages[0]['name'] ~ messages[0].content }}", {"name": "ann"}, [], id="item"),
        pytest.param("{{ messages[0].get('name') ~ messages[0].content }}", {"name": "ann"}, [], id="get"),
        pytest.param("{{ 'name' in messages[0] }}{{ messages[0].content }}", {"name": "ann"}, [], id="in"),
        pytest.param(
            "{{ messages | map(attribute='name') | list }}{{ messages[0].content }}",
            {"name": "a"},
            [],
            id="map",
        ),
        pytest.param("{{ messages[0] | tojson }}", {"name": "ann", "id": 5}, [], id="tojson"),
        pytest.param("{{ messages | tojson }}", {"name": "ann", "id": 5}, [], id="tojson-of-all"),
        pytest.param("{{ messages[0] | string }}", {"name": "ann"}, [], id="string"),
        pytest.param("{{ dict(messages[0]) }}", {"name": "ann"}, [], id="copied"),
        pytest.param("{{ messages[0].copy() }}", {"name": "ann"}, [], id="copy"),
        pytest.param("{{ messages[0] | items | list }}", {"name": "ann"}, [], id="items"),
        pytest.param(
            "{% for v in messages[0].values() %}{{ v }}{% endfor %}", {"name": "ann"}, [], id="values"
        ),
        pytest.param(
            "{% for k in messages[0] %}{{ messages[0][k] }}{% endfor %}", {"name": "ann"}, [], id="loop"
        ),
        pytest.param(
            "{{ messages[0].content }}{% if x %}{{ x.name }}{% endif %}",
            {"name": "a"},
            ["name"],
            id="anothers",
        ),
        pytest.param(CHATML, {"name": None, "tool_calls": [], "refusal": "", "audio": {}}, [], id="nothing"),
        pytest.param(CHATML, {"prefix": False, "index": 0}, ["prefix", "index"], id="false-and-zero"),
        pytest.param(CHATML, {"reasoning": "hm"}, ["reasoning"], id="reasoning"),
        pytest.param(CHATML, {"function_call": {"name": "f"}}, ["function_call"], id="function-call"),
        pytest.param("{{ messages[0].role }}", {}, ["content"], id="content"),
    ],
)
def test_what_a_message_carries_and_nobody_reads_is_named(
    source: str, message: dict[str, object], ignored: list[str]
) -> None:
    rendered = ChatTemplate(source, {}).render([{"role": "user", "content": "x", **message}])
    assert list(rendered.ignored) == [f"messages[].{name}" for name in ignored]


def test_a_name_that_only_another_role_s_may_have_is_named_once() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'tool' %}{{ m.name }}{% endif %}{% endfor %}"
    )
    messages = [{"role": role, "content": "x", "name": "f"} for role in ("user", "tool", "user")]
    assert ChatTemplate(source, {}).render(messages).ignored == ("messages[].name",)
    assert ChatTemplate(source, {}).render(messages[1:2]).ignored == ()


def test_what_a_part_carries_is_named_as_well() -> None:
    looped = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    content = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "annotations": []}]
    for source in (CHATML, looped):
        rendered = ChatTemplate(source, {}).render([{"role": "user", "content": content}])
        assert rendered.ignored == ("messages[].content[].cache_control",)
    read = looped.replace("part.text", "part.text ~ part.get('cache_control', '')")
    assert ChatTemplate(read, {}).render([{"role": "user", "content": content}]).text == (
        "x{'type': 'ephemeral'}"
    )
    assert ChatTemplate(read, {}).render([{"role": "user", "content": content}]).ignored == ()


def test_a_developer_that_is_the_system_and_a_folded_system_have_their_fields_named() -> None:
    developer = [{"role": "developer", "content": "x", "name": "ann"}]
    assert ChatTemplate(CHATML, {}).render(developer).ignored == ("messages[].name",)
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].name }}"
    )
    system = [{"role": "system", "content": "x", "name": "ann"}]
    assert "messages[].name" in ChatTemplate(refusing, {}).render([*system, *HELLO]).ignored


def test_few_and_short_names_are_told() -> None:
    many = {f"{number}" + "n" * 100: 1 for number in range(1000)}
    ignored = ChatTemplate(CHATML, {}).render([{**HELLO[0], **many}] * 3).ignored
    assert len(ignored) == 64
    assert max(map(len, ignored)) <= 80


def test_values_that_the_template_never_reads_are_named() -> None:
    source = "{% if thinking is not defined %}{% set thinking = true %}{% endif %}"
    source += "{{ thinking }}{{ messages[0].content }}"
    template = ChatTemplate(source, {})

    assert template.render(HELLO, extra={"thinking": False}).text == "FalseHello"
    assert template.render(HELLO, extra={"thinking": None}).text == "TrueHello"
    assert template.render(HELLO, extra={"thinking": None, "nothing": None}).ignored == ()
    assert template.render(HELLO, extra={"shape": 1, "colour": False}).ignored == (
        "chat_template_kwargs.colour",
        "chat_template_kwargs.shape",
    )


def test_a_template_cannot_reach_what_watches_it() -> None:
    assert render("{{ messages[0]._asked is defined }}{{ messages[0].content }}") == "FalseHello"
    with pytest.raises(RequestError, match="'dict object' has no attribute 'a'"):
        render("{{ messages[0].a.b }}")
