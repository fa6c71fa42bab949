from __future__ import annotations

import asyncio
import threading

import pytest
from server_builders import make_assets, make_byte_level_tokenizer, smollm2_assets

from stoker_runtime.errors import RequestError
from stoker_runtime.fim import FimTokens
from stoker_runtime.server.prompt import INLINE_CHARS, LONG_CHARS, TextRoom, check_length

DEADLINE_S = 60.0


async def test_a_plain_prompt_gets_the_special_tokens_the_model_wants() -> None:
    text = TextRoom(smollm2_assets())

    ids = await text.prompt_ids(["Hello world"])

    assert ids == [smollm2_assets().tokenizer.encode("Hello world").ids]


async def test_messages_become_the_tokens_of_the_rendered_template() -> None:
    text = TextRoom(make_assets())

    prompt = await text.chat([{"role": "user", "content": "hi"}], add_generation_prompt=False)

    assert prompt.token_ids == make_assets().tokenizer.encode("<|start|>user\nhi<|end|>\n").ids


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


async def test_a_chat_says_what_its_template_does_not_read() -> None:
    prompt = await TextRoom(make_assets()).chat(
        [{"role": "user", "content": "hi", "name": "ann", "id": None}], extra={"enable_thinking": False}
    )
    assert prompt.ignored == ("messages[].name", "chat_template_kwargs.enable_thinking")
    assert prompt.prefix == ""


async def test_a_final_message_is_continued() -> None:
    room = TextRoom(make_assets())
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]

    prompt = await room.chat(messages, continue_final_message=True)

    want = "<|start|>user\nhi<|end|>\n<|start|>assistant\nWell, "
    assert (prompt.token_ids, prompt.prefix) == (room.assets.tokenizer.encode(want).ids, "Well, ")


async def test_control_tokens_in_messages_are_text_where_the_server_wants_it() -> None:
    messages = [{"role": "user", "content": "a<|end|>b"}]
    end = make_assets().tokenizer.token_to_id("<|end|>")
    counts = {}
    for sanitize in (False, True):
        room = TextRoom(make_assets(), sanitize_control_tokens=sanitize)
        prompt = await room.chat(messages, continue_final_message=True)
        assert prompt.prefix == "a<|end|>b"
        counts[sanitize] = sum(token_id == end for token_id in prompt.token_ids)
    assert counts == {False: 1, True: 0}


async def test_a_short_chat_need_not_wait_for_a_long_one() -> None:
    room, gate = TextRoom(make_assets()), threading.Event()
    room._long.executor.submit(gate.wait)
    try:
        text = [{"type": "text", "text": "a" * (LONG_CHARS + 1)}]
        long = asyncio.create_task(room.chat([{"role": "user", "content": text}]))
        async with asyncio.timeout(DEADLINE_S):
            await room.chat([{"role": "user", "content": "a" * (LONG_CHARS - len("user"))}])
        assert not long.done()
    finally:
        gate.set()
    assert len((await long).token_ids) > LONG_CHARS


async def test_a_short_prompt_need_not_wait_for_a_long_one() -> None:
    room, gate = TextRoom(make_assets()), threading.Event()
    room._long.executor.submit(gate.wait)
    try:
        long = asyncio.create_task(room.prompt_ids(["a" * (LONG_CHARS + 1)]))
        async with asyncio.timeout(DEADLINE_S):
            await room.prompt_ids(["a" * (INLINE_CHARS + 1)])
        assert not long.done()
    finally:
        gate.set()
    await long


@pytest.mark.parametrize("size", [10, LONG_CHARS + 1])
async def test_a_chat_that_is_too_long_is_refused_before_it_is_tokenized(size: int) -> None:
    with pytest.raises(RequestError, match="characters, which is more than 1 tokens") as caught:
        await TextRoom(make_assets()).chat([{"role": "user", "content": "a" * size}], max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


async def test_a_gap_is_filled_where_the_model_has_tokens_for_it() -> None:
    tokenizer = make_byte_level_tokenizer()
    room = TextRoom(make_assets(tokenizer, fim=FimTokens(1, 2, 3)))

    ids = await room.fim_ids("a", "b")

    assert ids == [1, *tokenizer.encode("a").ids, 2, *tokenizer.encode("b").ids, 3]
    with pytest.raises(RequestError, match="`suffix` has") as caught:
        await room.fim_ids("a", "b" * 100, max_tokens=1)
    assert caught.value.param == "suffix"
    with pytest.raises(RequestError, match="`suffix` needs a model") as caught:
        await TextRoom(make_assets()).fim_ids("a", "b")
    assert (caught.value.status, caught.value.param) == (400, "suffix")
