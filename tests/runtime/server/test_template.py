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
    return template.render(messages or HELLO, extra=extra)


def test_the_example_models_template_renders_as_transformers_does() -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    assets = smollm2_assets()
    assert assets.chat_template is not None
    messages = [*HELLO, {"role": "assistant", "content": "Hi \U0001f600"}, {"role": "user", "content": "<b>"}]

    text = ChatTemplate(assets.chat_template, assets.special_tokens).render(messages)

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

    assert ChatTemplate(source, {}).render(HELLO, add_generation_prompt=False) == want[0]


def test_a_value_that_the_template_never_reads_is_refused_by_name() -> None:
    source = "{% if thinking is not defined %}{% set thinking = true %}{% endif %}{{ thinking }}"

    assert render(source, thinking=False) == "False"
    with pytest.raises(RequestError, match="'colour'") as caught:
        render(source, thinking=False, colour="red")
    assert (caught.value.status, caught.value.param) == (400, "chat_template_kwargs")


def test_a_name_that_changes_nothing_is_refused() -> None:
    messages = [*HELLO, {"role": "user", "content": "x", "name": "ann"}]

    with pytest.raises(RequestError, match="no effect") as caught:
        render(CHATML, messages)
    assert (caught.value.status, caught.value.param) == (400, "messages[1].name")


def test_the_template_sees_special_tokens_extra_variables_and_the_generation_prompt() -> None:
    source = "{{ bos_token }}{{ messages[0].content }}{{ enable_thinking }}{{ add_generation_prompt }}"

    assert render(source, enable_thinking=True) == "<s>HelloTrueTrue"


def test_a_developer_is_the_system_to_a_template_that_does_not_know_the_role() -> None:
    messages = [{"role": "developer", "content": "x"}]

    assert render(CHATML, messages).startswith("<|start|>system\nx")
    assert render("{# developer #}{{ messages[0].role }}", messages) == "developer"


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

    assert template.render(HELLO) == "24 Nov 2026"


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
