from __future__ import annotations

import asyncio

import pytest
from server_builders import make_assets, smollm2_assets

from stoker_runtime.errors import RequestError
from stoker_runtime.server.prompt import INLINE_CHARS, TextRoom, check_length
from stoker_runtime.server.protocol import Message


async def test_a_plain_prompt_gets_the_special_tokens_the_model_wants() -> None:
    text = TextRoom(smollm2_assets())

    ids = await text.prompt_ids(["Hello world"])

    assert ids == [smollm2_assets().tokenizer.encode("Hello world").ids]


async def test_messages_become_the_tokens_of_the_rendered_template() -> None:
    text = TextRoom(make_assets())

    ids = await text.chat_ids([Message(role="user", content="hi")], add_generation_prompt=False)

    assert ids == make_assets().tokenizer.encode("<|start|>user\nhi<|end|>\n").ids


@pytest.mark.parametrize(("size", "runs_elsewhere"), [(INLINE_CHARS, False), (INLINE_CHARS + 1, True)])
async def test_only_large_texts_leave_the_event_loop(size: int, runs_elsewhere: bool) -> None:
    text = TextRoom(make_assets())
    has_loop_run = False

    async def other() -> None:
        nonlocal has_loop_run
        has_loop_run = True

    waiting = asyncio.create_task(other())
    ids = await text.prompt_ids(["a", "b" * (size - 1)])

    assert [len(prompt) for prompt in ids] == [1, size - 1]
    assert has_loop_run is runs_elsewhere
    await waiting


async def test_tokens_become_text_with_their_special_tokens() -> None:
    text = TextRoom(make_assets())

    assert await text.text(make_assets().tokenizer.encode("a<|end|>").ids) == "a<|end|>"


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    text = TextRoom(make_assets())
    text.check_known([0, 9], 10, "prompt")
    with pytest.raises(RequestError, match=r"token 10 .*, but the model's vocabulary ends at 9") as caught:
        text.check_known([0, 10], 10, "prompt")
    with pytest.raises(RequestError, match="token 999, but the model's vocabulary ends at 511"):
        text.check_known([999], 512, "prompt")
    assert caught.value.param == "prompt"


def test_a_prompt_must_have_tokens_and_leave_room_for_one() -> None:
    check_length(9, 10, "prompt")
    with pytest.raises(RequestError, match="no tokens"):
        check_length(0, 10, "prompt")
    with pytest.raises(RequestError, match="has 10 tokens") as caught:
        check_length(10, 10, "prompt")
    assert caught.value.code == "context_length_exceeded"
