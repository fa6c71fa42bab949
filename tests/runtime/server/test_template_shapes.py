"""Chat templates of the shapes that published models have render as `transformers` renders them."""

from __future__ import annotations

import pytest

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
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(messages) == want[0]


def test_turns_that_do_not_alternate_are_the_clients_to_change() -> None:
    with pytest.raises(RequestError, match="have to alternate") as caught:
        ChatTemplate(ALTERNATING, {"bos_token": "<s>"}).render(CHAT[1:])
    assert caught.value.status == 400


def test_thinking_can_be_switched_off() -> None:
    rendered = ChatTemplate(THOUGHTS, {}).render(CHAT, extra={"enable_thinking": False})
    assert rendered.endswith("<user>And now?<end>\n<assistant>(none)")
