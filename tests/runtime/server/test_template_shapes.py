"""Chat templates of the shapes that published models have render as `transformers` renders them."""

from __future__ import annotations

from typing import Any

import pytest
from server_builders import CHATML

from stoker_runtime.errors import RequestError
from stoker_runtime.server.template import ChatTemplate

SYSTEM = {"role": "system", "content": " Be brief. "}
CHAT = [
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."},
    {"role": "user", "content": "And now?"},
]

# As Llama 3.1 and later: the date, tools that are none, calls that are not there, one call at most.
TOOLS = """
{{- bos_token }}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%Y") %}
    {%- else %}{%- set date_string = "2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "[system] " }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}
{%- endif %}
{{- "year " + date_string + " " + system_message }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '[' + message['role'] + '] ' + message['content'] | trim + '[end]' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {{- message.tool_calls[0].function | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant] ' }}{%- endif %}
"""

# As Gemma: no role for the system, turns that alternate, texts or parts.
ALTERNATING = """
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set first = messages[0]['content'] + '\n\n' -%}
    {%- else -%}{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}{%- set first = "" -%}{%- set turns = messages -%}{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("user and assistant have to alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<turn>' + role + '\n' + (first if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}{{ raise_exception("no content") }}{%- endif -%}
    {{ '</turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\n' }}{%- endif -%}
"""

# As Qwen 3: a namespace that finds the last question from behind, thoughts that are cut out before it.
THOUGHTS = """
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
           and not(message.content.startswith('<answer>') and message.content.endswith('</answer>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}{{- '(' + thought.strip('\n') + ')' }}{%- endif %}
    {%- endif %}
    {{- '<' + message.role + '>' + content + '<end>\n' }}
    {%- if message.tool_calls %}{{- message.tool_calls | tojson }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '(none)' }}{%- endif %}
{%- endif %}
"""


@pytest.mark.parametrize("messages", [CHAT[:1], CHAT, [SYSTEM, *CHAT]], ids=["short", "chat", "system"])
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(TOOLS, id="tools"),
        pytest.param(ALTERNATING, id="alternating"),
        pytest.param(THOUGHTS, id="thoughts"),
    ],
)
def test_a_published_shape_renders_as_transformers_does(source: str, messages: list[dict[str, str]]) -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    want, _ = transformers.render_jinja_template(
        conversations=[messages], chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(messages).text == want[0]


def test_thinking_can_be_switched_off() -> None:
    rendered = ChatTemplate(THOUGHTS, {}).render(CHAT, extra={"enable_thinking": False})
    assert rendered.text.endswith("<user>And now?<end>\n<assistant>(none)")


# As GLM and Kimi K2: a macro loops over parts, which stand side by side.
MACRO = """
{%- macro visible(content) -%}
    {%- if content is string -%}{{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}{{- item.text }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{- content }}{%- endif -%}
{%- endmacro -%}
{%- for m in messages -%}{{- '<|' + m.role + '|>' + visible(m.content) }}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' }}{%- endif -%}
"""
# As Mistral Small: the users' parts are looped over, of the others' the first one counts.
FIRST_PART = """
{{- bos_token }}
{%- for m in messages %}
    {%- if m['role'] == 'user' %}
        {%- if m['content'] is string %}{{- '[INST]' + m['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' }}
            {%- for block in m['content'] %}
                {%- if block['type'] == 'text' %}{{- block['text'] }}
                {%- else %}{{- raise_exception('Only text is supported') }}{%- endif %}
            {%- endfor %}
            {{- '[/INST]' }}
        {%- endif %}
    {%- elif m['content'] is string %}{{- m['content'] + eos_token }}
    {%- else %}{{- m['content'][0]['text'] + eos_token }}{%- endif %}
{%- endfor %}
"""
# As Llama Guard with images: parts and nothing else.
PARTS_ONLY = """
{%- for m in messages %}
    {{- m['role'] + ': ' }}
    {%- for part in m['content'] %}
        {%- if part['type'] == 'text' %}{{- part['text'] | trim }}{%- endif %}
    {%- endfor %}
    {{- '\n' }}
{%- endfor %}
"""
# As Reka: parts with a space between.
SPACED = """
{%- for m in messages %}
    {%- set text = m['content'] if m['content'] is string else '' %}
    {%- if m['content'] is not string %}
        {%- set ns = namespace(text='') %}
        {%- for part in m['content'] %}{%- set ns.text = ns.text + part.text + ' ' %}{%- endfor %}
        {%- set text = ns.text.rstrip() %}
    {%- endif %}
    {{- m['role'] + ': ' + text + ' <sep> ' }}
{%- endfor %}
"""
# As Llama 3.1: what is no text is written as JSON, which nobody wants of a user's parts.
JSON = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{{ m.content | tojson }}{% endif %}{% endfor %}"
)
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
LOOPING = [
    pytest.param(ALTERNATING, id="alternating"),
    pytest.param(MACRO, id="macro"),
    pytest.param(FIRST_PART, id="first-part"),
    pytest.param(PARTS_ONLY, id="parts-only"),
    pytest.param(SPACED, id="spaced"),
]


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def in_transformers(source: str, messages: list[dict[str, Any]], **options: object) -> str:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    want, _ = transformers.render_jinja_template(
        conversations=[messages], chat_template=source, **VARIABLES, **options
    )
    return str(want[0])


@pytest.mark.parametrize("source", LOOPING)
@pytest.mark.parametrize("texts", [("Hello",), ("Hello", "World"), (" a ", "", "b")])
def test_parts_reach_a_template_that_loops_over_them(source: str, texts: tuple[str, ...]) -> None:
    messages = [{"role": "user", "content": parts(*texts)}]

    text = ChatTemplate(source, VARIABLES).render(messages).text

    assert text == in_transformers(source, messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(CHATML, id="chatml"),
        pytest.param(TOOLS, id="tools"),
        pytest.param(JSON, id="json"),
        pytest.param(
            "{{ messages[0].content.split('W')[0] }}W{{ messages[0].content.split('W')[1] }}", id="split"
        ),
    ],
)
def test_parts_are_lines_to_a_template_that_takes_a_text(source: str) -> None:
    template = ChatTemplate(source, VARIABLES)
    lines = template.render([{"role": "user", "content": "Hello\nWorld"}])

    assert template.render([{"role": "user", "content": parts("Hello", "World")}]) == lines
    assert "Hello\nWorld" in lines.text


def test_no_part_is_lost_where_a_template_takes_the_first_only() -> None:
    system = {"role": "system", "content": parts("Be", "brief")}
    text = (
        ChatTemplate(FIRST_PART, VARIABLES)
        .render([system, {"role": "user", "content": parts("a", "b")}])
        .text
    )
    assert text == "<s>Be\nbrief</s>[INST]ab[/INST]"


def test_a_text_becomes_a_part_where_a_template_takes_parts_only() -> None:
    text = ChatTemplate(PARTS_ONLY, VARIABLES).render([{"role": "user", "content": "Hello"}]).text
    assert text == "user: Hello\n"


CONTINUABLE = [
    pytest.param(CHATML, id="chatml"),
    pytest.param(TOOLS, id="tools"),
    pytest.param(ALTERNATING, id="alternating"),
    pytest.param(THOUGHTS, id="thoughts"),
    pytest.param(MACRO, id="macro"),
    pytest.param(FIRST_PART, id="first-part"),
    pytest.param(SPACED, id="spaced"),
]
FINAL = ["Hi,", "Hi, ", "  Hi,\n\n", "", "Hi", "{'a': 1}", "<b>&</b>", "Hello."]


@pytest.mark.parametrize("source", CONTINUABLE)
@pytest.mark.parametrize("final", FINAL)
def test_a_final_message_is_left_open_as_transformers_leaves_it(source: str, final: str) -> None:
    # Its own text stands in the chat before, too.
    messages = [{"role": "user", "content": "Hi, Hello."}, {"role": "assistant", "content": final}]

    rendered = ChatTemplate(source, VARIABLES).render(messages, continue_final_message=True)

    assert rendered.text == in_transformers(source, messages, continue_final_message=True)
    assert rendered.text.endswith(rendered.prefix)
    assert rendered.prefix.strip() == final.strip()


@pytest.mark.parametrize("source", LOOPING[1:])
def test_final_parts_are_left_open_as_transformers_leaves_them(source: str) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
    messages += [{"role": "assistant", "content": parts("Hi, ")}]
    if source == PARTS_ONLY:
        messages[0]["content"] = parts("a")

    rendered = ChatTemplate(source, VARIABLES).render(messages, continue_final_message=True)

    assert rendered.text == in_transformers(source, messages, continue_final_message=True)
    assert rendered.text.endswith(rendered.prefix)


ANSWERS_ALONE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] | trim }}<|end|>{% endfor %}"
)


def test_a_final_message_that_the_template_cuts_is_not_continued() -> None:
    final = "think</think>ok"
    messages = [{"role": "user", "content": f"say {final}"}, {"role": "assistant", "content": final}]
    with pytest.raises(RequestError, match="cannot be continued") as caught:
        ChatTemplate(ANSWERS_ALONE, VARIABLES).render(messages, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_a_final_message_of_no_parts_is_left_open() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
    messages += [{"role": "assistant", "content": []}]
    rendered = ChatTemplate(PARTS_ONLY, VARIABLES).render(messages, continue_final_message=True)
    assert (rendered.text, rendered.prefix) == ("user: a\nassistant:", "")


def test_thoughts_that_the_template_writes_in_its_own_way_may_be_continued() -> None:
    messages = [*CHAT[:1], {"role": "assistant", "content": "<think>hm</think>Hello"}]
    kept = "{% for m in messages %}{{ m.content | replace('<think>', '<think>\n') }};{% endfor %}"
    rendered = ChatTemplate(kept, {}).render(messages, continue_final_message=True)
    assert rendered.text == " Hi ;<think>\nhm</think>Hello"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ messages[0].content }}", id="not-there"),
        pytest.param("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}", id="cut"),
        pytest.param("{% for m in messages %}{{ m.content | upper }}{% endfor %}", id="changed"),
    ],
)
def test_a_message_that_does_not_stand_there_cannot_be_continued(source: str) -> None:
    messages = [*CHAT[:1], {"role": "assistant", "content": "<think>hm</think>Hello"}]
    with pytest.raises(RequestError, match="cannot be continued") as caught:
        ChatTemplate(source, {}).render(messages, continue_final_message=True)
    assert (caught.value.status, caught.value.param) == (400, "continue_final_message")


def test_a_user_is_continued_like_an_assistant() -> None:
    rendered = ChatTemplate(CHATML, {}).render(CHAT[:1], continue_final_message=True)
    assert (rendered.text, rendered.prefix) == ("<|start|>user\n Hi ", " Hi ")


@pytest.mark.parametrize("source", CONTINUABLE)
def test_the_generation_prompt_can_be_left_out(source: str) -> None:
    text = ChatTemplate(source, VARIABLES).render(CHAT[:1], add_generation_prompt=False).text
    assert text == in_transformers(source, CHAT[:1], add_generation_prompt=False)
