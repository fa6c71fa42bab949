"""Histories that other servers and models left reach a template in the form in which it reads them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_builders import CHATML

from stoker_runtime.server.chat_history import TemplateShape, prepare
from stoker_runtime.server.template import ChatTemplate

Message = dict[str, Any]

HI: Message = {"role": "user", "content": "Hi"}


def call(arguments: object = '{"a": 1}', call_id: str = "abcDEF123") -> Message:
    function = {"name": "f", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def history(content: object = None, arguments: object = '{"a": 1}') -> list[Message]:
    """A question, a call without a text, its result, and the answer."""
    asked = {"role": "assistant", "content": content, "tool_calls": [call(arguments)]}
    told = {"role": "tool", "tool_call_id": "abcDEF123", "content": "42"}
    return [HI, asked, told, {"role": "assistant", "content": "It is 42."}]


# As Qwen 2.5 and 3: a text only where there is one, arguments as JSON text or as an object.
QWEN = """
{%- for m in messages %}
    {%- if m.role == 'assistant' and m.tool_calls %}
        {{- '<a>' }}
        {%- if m.content %}{{- '\n' + m.content }}{%- endif %}
        {%- for c in m.tool_calls %}
            {%- if c.function %}{%- set c = c.function %}{%- endif %}
            {{- '<call>' + c.name + ' ' }}
            {%- if c.arguments is string %}{{- c.arguments }}
            {%- else %}{{- c.arguments | tojson }}{%- endif %}
            {{- '</call>' }}
        {%- endfor %}
        {{- '\n' }}
    {%- else %}{{- '<' + m.role + '>' + m.content + '\n' }}{%- endif %}
{%- endfor %}
"""
# As Llama 3.1 and 3.2: calls where the key is there, one at a time.
LLAMA = """
{%- for m in messages %}
    {%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}
        {{- '<' + m['role'] + '>' + m['content'] | trim + '\n' }}
    {%- elif 'tool_calls' in m %}
        {%- if not m.tool_calls | length == 1 %}{{- raise_exception('one at a time') }}{%- endif %}
        {%- set c = m.tool_calls[0].function %}
        {{- '<a><call>' + c.name + ' ' + c.arguments | tojson + '</call>\n' }}
    {%- else %}{{- '<tool>' + m.content + '\n' }}{%- endif %}
{%- endfor %}
"""
# As Hermes 2: calls where they are defined, the tool's name at its result.
HERMES = """
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {%- if not m.name is defined %}{{- raise_exception("a 'name' is needed") }}{%- endif %}
        {{- '<tool>' + m.content + '\n' }}
    {%- elif m.role == 'assistant' and m.tool_calls is defined %}
        {{- '<a>' }}
        {%- for c in m.tool_calls %}
            {%- if c.function is defined %}{%- set c = c.function %}{%- endif %}
            {{- '<call>' + c.name + ' ' + c.arguments | tojson + '</call>' }}
        {%- endfor %}
        {{- '\n' }}
    {%- else %}{{- '<' + m.role + '>' + m.content + '\n' }}{%- endif %}
{%- endfor %}
"""
# As Mistral Nemo and Tekken: turns without calls alternate, ids have nine characters.
NEMO = """
{%- for m in messages | rejectattr('role', 'equalto', 'tool') | selectattr('tool_calls', 'undefined') %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('alternate') }}{%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.tool_calls is defined %}
        {%- for c in m.tool_calls %}
            {%- if not c.id is defined or c.id | length != 9 %}{{- raise_exception('ids of 9') }}{%- endif %}
            {{- '<a><call>' + c.function.name + ' ' + c.function.arguments | tojson + '</call>\n' }}
        {%- endfor %}
    {%- elif m['role'] == 'tool' %}
        {%- if m.tool_call_id | length != 9 %}{{- raise_exception('ids of 9') }}{%- endif %}
        {{- '<tool>' + m.content | string + '\n' }}
    {%- else %}{{- '<' + m.role + '>' + m.content + '\n' }}{%- endif %}
{%- endfor %}
"""
# As DeepSeek: no text at all is none, arguments are JSON text.
DEEPSEEK = """
{%- for m in messages %}
    {%- if m['role'] == 'assistant' and 'tool_calls' in m %}
        {%- for c in m['tool_calls'] %}
            {%- set said = c['function']['name'] + ' ' + c['function']['arguments'] %}
            {%- if m['content'] is none %}{{- '<a><call>' + said + '</call>\n' }}
            {%- else %}{{- '<a>' + m['content'] + '<call>' + said + '</call>\n' }}{%- endif %}
        {%- endfor %}
    {%- else %}{{- '<' + m['role'] + '>' + m['content'] + '\n' }}{%- endif %}
{%- endfor %}
"""
# As Functionary: a turn with a text of its own in front of the calls, unless there is none.
FUNCTIONARY = """
{%- for m in messages %}
    {%- if m['tool_calls'] is defined %}
        {%- if m['content'] is not none %}{{- '<assistant>' + m['content'] + '\n' }}{%- endif %}
        {%- for c in m['tool_calls'] %}
            {{- '<a><call>' + c['function']['name'] + ' ' + c['function']['arguments'] + '</call>\n' }}
        {%- endfor %}
    {%- else %}{{- '<' + m['role'] + '>' + m['content'] + '\n' }}{%- endif %}
{%- endfor %}
"""
# As GLM: whatever is no text and no list is printed as it is; arguments are looped over.
GLM = """
{%- macro visible(content) %}
    {%- if content is string %}{{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for item in content %}{{- item.text }}{%- endfor %}
    {%- else %}{{- content }}{%- endif %}
{%- endmacro %}
{%- for m in messages %}
    {%- if m.tool_calls %}
        {{- '<a>' + visible(m.content) }}
        {%- for c in m.tool_calls %}
            {{- '<call>' + c.function.name + ' {' }}
            {%- for k, v in c.function.arguments.items() %}{{- '"' + k + '": ' ~ v }}{%- endfor %}
            {{- '}</call>\n' }}
        {%- endfor %}
    {%- else %}{{- '<' + m.role + '>' + visible(m.content) + '\n' }}{%- endif %}
{%- endfor %}
"""
FAMILIES = [
    pytest.param(source, id=name)
    for name, source in {
        "qwen": QWEN, "llama": LLAMA, "hermes": HERMES, "nemo": NEMO, "deepseek": DEEPSEEK,
        "functionary": FUNCTIONARY, "glm": GLM,
    }.items()
]  # fmt: skip
WANT = '<user>Hi\n<a><call>f {"a": 1}</call>\n<tool>42\n<assistant>It is 42.\n'


@pytest.mark.parametrize("source", FAMILIES)
@pytest.mark.parametrize("content", [None, "", [], "missing"], ids=["null", "empty", "no-parts", "missing"])
@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}], ids=["text", "object"])
def test_calls_without_a_text_render_in_every_family(source: str, content: object, arguments: object) -> None:
    messages = history(content, arguments)
    if content == "missing":
        del messages[1]["content"]

    assert ChatTemplate(source, {}).render(messages).text == WANT


@pytest.mark.parametrize("source", FAMILIES)
def test_ids_and_names_that_only_another_server_left_out_are_found(source: str) -> None:
    messages = history()
    messages[1]["tool_calls"][0]["id"] = messages[2]["tool_call_id"] = "call_0123456789abcdef"

    assert ChatTemplate(source, {}).render(messages).text == WANT


@pytest.mark.parametrize("source", FAMILIES)
def test_functions_are_tools_to_templates_that_know_tools_only(source: str) -> None:
    messages = history()
    messages[1] = {"role": "assistant", "content": None, "function_call": call()["function"]}
    messages[2] = {"role": "function", "name": "f", "content": "42"}

    assert ChatTemplate(source, {}).render(messages).text == WANT


def test_functions_stay_to_templates_that_know_them() -> None:
    source = "{% for m in messages %}{{ m.role }} {{ m.function_call }} {{ m.tool_calls }};{% endfor %}"
    messages: list[Message] = [
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
    ]

    assert ChatTemplate(source, {}).render(messages).text == (
        "assistant {'name': 'f', 'arguments': '{}'} ;function  ;"
    )


@pytest.mark.parametrize(
    ("given", "want"),
    [
        pytest.param('{"a": 1}', {"a": 1}, id="object"),
        pytest.param('{"a": ', '{"a": ', id="cut-short"),
        pytest.param("[1]", "[1]", id="list"),
        pytest.param("", {}, id="empty"),
        pytest.param(None, {}, id="null"),
        pytest.param({"a": 1}, {"a": 1}, id="object-already"),
    ],
)
def test_arguments_are_objects_where_they_are_json(given: object, want: object) -> None:
    made = prepare(history(arguments=given), TemplateShape())
    assert made[1]["tool_calls"][0]["function"]["arguments"] == want
    text = prepare(history(arguments=given), TemplateShape(text_arguments=True))
    assert isinstance(text[1]["tool_calls"][0]["function"]["arguments"], str)


def test_the_clients_own_messages_stay_as_they_are() -> None:
    messages = history()
    prepare(messages, TemplateShape(text_arguments=True))
    assert messages == history()


def test_no_calls_are_no_calls() -> None:
    answer: Message = {"role": "assistant", "content": "Hello", "tool_calls": []}
    messages = [HI, answer, HI]
    assert ChatTemplate(NEMO, {}).render(messages).text == "<user>Hi\n<assistant>Hello\n<user>Hi\n"


@pytest.mark.parametrize("content", [None, [], ""], ids=["null", "no-parts", "empty"])
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(CHATML, id="text"),
        pytest.param(GLM, id="text-or-parts"),
        pytest.param(
            "{% for m in messages %}{% for part in m.content %}{{ part['text'] }}{% endfor %};{% endfor %}",
            id="parts",
        ),
    ],
)
def test_no_content_is_an_empty_one(source: str, content: object) -> None:
    nothing: Message = {"role": "user", "content": content}
    text = ChatTemplate(source, {}).render([nothing, HI]).text
    assert text == ChatTemplate(source, {}).render([{**nothing, "content": ""}, HI]).text
    assert "None" not in text
    assert "[]" not in text


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_thoughts_reach_the_template_under_the_name_that_it_reads(name: str, read: str) -> None:
    rendered = ChatTemplate(f"{{{{ messages[0].{read} }}}}", {}).render(
        [{"role": "assistant", "content": "x", name: "hm"}]
    )
    assert (rendered.text, rendered.ignored) == ("hm", ("messages[].content",))


CONTENTS = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=5)})),
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "judge"])},
        optional={
            "content": CONTENTS,
            "name": st.text(max_size=3),
            "tool_calls": st.one_of(
                st.none(), st.lists(st.just(call()), max_size=2), st.just("odd"), st.just([1])
            ),
            "function_call": st.one_of(st.none(), st.just({"name": "f", "arguments": "{}"}), st.just("odd")),
            "tool_call_id": st.one_of(st.none(), st.just("abcDEF123"), st.just(7)),
            "reasoning": st.one_of(st.none(), st.text(max_size=3)),
        },
    ),
    min_size=1,
    max_size=5,
)
GENERIC = ChatTemplate("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}", {})


@given(messages=MESSAGES)
def test_any_history_renders_all_that_it_says(messages: list[Message]) -> None:
    text = GENERIC.render(messages).text
    for message in messages:
        content = message.get("content") or ""
        said = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
        assert f":{said}\n" in text
    assert ":None" not in text
