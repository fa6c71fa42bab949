"""What a template itself refuses is tried in other forms that say the same, in a fixed order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_runtime.errors import RequestError
from stoker_runtime.server.chat_forms import forms
from stoker_runtime.server.chat_history import TemplateShape
from stoker_runtime.server.template import ChatTemplate

Message = dict[str, Any]


def said(*turns: str) -> list[Message]:
    """Messages out of "u: text" and so on."""
    roles = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[2:].strip()} for turn in turns]


# As Gemma 1 and 2: no system role, and the roles alternate.
GEMMA = """
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for m in messages %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '[' + m['role'][0] + ': ' + m['content'] | trim + ']' }}
{%- endfor %}
"""
# As Mistral: one system message in front.
MISTRAL = """
{%- if messages[0].role == 'system' %}
    {{- '[s: ' + messages[0].content + ']' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('must alternate') }}{%- endif %}
    {{- '[' + m.role[0] + ': ' + m.content + ']' }}
{%- endfor %}
"""
# As Qwen 3.5: system messages first, anything else in any order.
LATE = """
{%- for m in messages %}
    {%- if m.role == 'system' and not loop.first %}{{- raise_exception('System must be first') }}{%- endif %}
    {{- '[' + m.role[0] + ': ' + m.content + ']' }}
{%- endfor %}
"""
GEMMA_TEMPLATE = ChatTemplate(GEMMA, {})


@pytest.mark.parametrize(
    ("source", "messages", "want"),
    [
        pytest.param(GEMMA, said("u: a", "a: b", "u: c"), "[u: a][a: b][u: c]", id="as-given"),
        pytest.param(GEMMA, said("s: S", "u: a"), "[u: S\n\na]", id="no-system"),
        pytest.param(GEMMA, said("d: D", "u: a"), "[u: D\n\na]", id="no-developer"),
        pytest.param(GEMMA, said("s: S", "s: T", "u: a"), "[u: S\n\nT\n\na]", id="no-system-twice"),
        pytest.param(GEMMA, said("s: S"), "[u: S]", id="system-alone"),
        pytest.param(GEMMA, said("u: a", "u: b"), "[u: a\n\nb]", id="two-of-the-users"),
        pytest.param(
            GEMMA, said("u: a", "a: b", "a: c", "u: d"), "[u: a][a: b\n\nc][u: d]", id="two-answers"
        ),
        pytest.param(GEMMA, said("a: hello", "u: a"), "[u: ][a: hello][u: a]", id="assistant-first"),
        pytest.param(GEMMA, said("s: S", "a: hello", "u: a"), "[u: S][a: hello][u: a]", id="greeting"),
        pytest.param(
            GEMMA, said("u: a", "a: b", "s: S", "u: c"), "[u: a][a: b][u: S\n\nc]", id="late-system"
        ),
        pytest.param(GEMMA, said("u: a", "a: b", "s: S"), "[u: a][a: b][u: S]", id="system-at-the-end"),
        pytest.param(GEMMA, said("u: a", "u:", "u: b"), "[u: a\n\nb]", id="an-empty-one-adds-no-line"),
        pytest.param(MISTRAL, said("s: S", "u: a", "u: b"), "[s: S][u: a\n\nb]", id="keeps-the-system"),
        pytest.param(MISTRAL, said("s: S", "s: T", "u: a"), "[s: S][u: T\n\na]", id="keeps-the-first-system"),
        pytest.param(MISTRAL, said("s: S", "a: hello", "u: a"), "[s: S][u: ][a: hello][u: a]", id="both"),
        pytest.param(
            LATE, said("u: a", "s: S", "u: b", "u: c"), "[u: a][u: S\n\nb][u: c]", id="joins-no-more"
        ),
    ],
)
def test_a_refused_form_becomes_one_that_the_family_takes(
    source: str, messages: list[Message], want: str
) -> None:
    assert ChatTemplate(source, {}).render(messages).text == want


def test_parts_are_joined_with_a_blank_line_between() -> None:
    source = GEMMA.replace(
        "m['content'] | trim",
        "(m['content'] if m['content'] is string else m['content'] | map(attribute='text') | join)",
    )
    messages = said("u: a")
    messages += [{"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]}]

    assert ChatTemplate(source, {}).render(messages).text == "[u: a\n\nbc]"


def test_other_fields_of_joined_messages_stay() -> None:
    shape = TemplateShape()
    messages = [{**message, "name": "ann"} for message in said("u: a", "u: b")]
    assert ("join", [{"role": "user", "content": "a\n\nb", "name": "ann"}]) in list(forms(messages, shape))


def calling(*ids: str, content: str = "") -> Message:
    calls = [
        {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for call_id in ids
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(call_id: str | None) -> Message:
    return {"role": "tool", "content": f"{call_id}!", "tool_call_id": call_id}


# As Llama 3: one call at a time.
SINGLE = """
{%- for m in messages %}
    {%- if m.tool_calls %}
        {%- if m.tool_calls | length != 1 %}{{- raise_exception('single calls') }}{%- endif %}
        {{- '[' + m.content + ' ' + m.tool_calls[0].id + ']' }}
    {%- else %}{{- '[' + m.content + ']' }}{%- endif %}
{%- endfor %}
"""


@pytest.mark.parametrize(
    ("messages", "want"),
    [
        pytest.param(
            [calling("a" * 9, "b" * 9, content="two"), result("a" * 9), result("b" * 9), *said("u: x")],
            f"[two {'a' * 9}][{'a' * 9}!][ {'b' * 9}][{'b' * 9}!][x]",
            id="in-order",
        ),
        pytest.param(
            [calling("a" * 9, "b" * 9), result("b" * 9), result("a" * 9)],
            f"[ {'a' * 9}][{'a' * 9}!][ {'b' * 9}][{'b' * 9}!]",
            id="in-another-order",
        ),
        pytest.param(
            [calling("a" * 9, "b" * 9), result(None)], f"[ {'a' * 9}][ {'b' * 9}][None!]", id="of-nobody's"
        ),
    ],
)
def test_calls_at_once_become_calls_one_by_one(messages: list[Message], want: str) -> None:
    assert ChatTemplate(SINGLE, {}).render(messages).text == want


def test_calls_of_tools_are_not_joined() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "abcDEF123"}]}
    messages = [*said("u: a"), call, call]
    assert all(form.count(call) == 2 for _, form in forms(messages, TemplateShape()))


def test_a_template_that_takes_no_form_says_why_and_what_the_roles_are() -> None:
    with pytest.raises(RequestError, match=r"never mind \(the roles are system, user\)$") as caught:
        ChatTemplate("{{ raise_exception('never mind') }}", {}).render(said("s: S", "u: a"))
    assert (caught.value.status, caught.value.param) == (400, "messages")
    with pytest.raises(RequestError, match=r"roles are (user, ){20}\.\.\.\)$"):
        ChatTemplate("{{ raise_exception('no') }}", {}).render(said("u: a") * 30)


def test_a_template_without_tools_says_so() -> None:
    with pytest.raises(RequestError, match=r"takes no tool results; it says: .*must alternate"):
        ChatTemplate(GEMMA, {}).render(said("u: a", "a: b", "t: 42"))


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ messages.x.y }}", "{% for i in 1 %}{% endfor %}"])
def test_an_error_is_no_refusal(source: str) -> None:
    seen: list[str] = []

    template = ChatTemplate("{{ see() }}" + source, {})
    template._environment.globals["see"] = lambda: seen.append("tried")

    with pytest.raises(RequestError):
        template.render(said("s: S", "u: a", "u: b"))
    assert seen == ["tried"]


ROLES = st.sampled_from("sdua")
SAYINGS = st.lists(st.tuples(ROLES, st.text("xyz", min_size=1, max_size=3)), min_size=1, max_size=6)


@given(sayings=SAYINGS)
def test_every_form_says_everything_once_in_order_but_for_folded_system_texts(
    sayings: list[tuple[str, str]],
) -> None:
    messages = said(*(f"{role}: {number}{text}" for number, (role, text) in enumerate(sayings)))
    texts = [str(message["content"]) for message in messages]
    names = []
    for name, form in forms(messages, TemplateShape()):
        names.append(name)
        found = [text for message in form for text in str(message["content"]).split("\n\n") if text]
        assert sorted(found) == sorted(texts)
        spoken = [
            text
            for text, message in zip(texts, messages, strict=True)
            if message["role"] in ("user", "assistant")
        ]
        assert [text for text in found if text in spoken] == spoken
    assert names[0] == "as given"
    assert len(set(names)) == len(names)


@given(sayings=SAYINGS)
def test_a_strict_template_takes_whatever_is_said(sayings: list[tuple[str, str]]) -> None:
    messages = said(*(f"{role}: {text}" for role, text in sayings))
    assert GEMMA_TEMPLATE.render(messages).text.startswith("[u: ")
