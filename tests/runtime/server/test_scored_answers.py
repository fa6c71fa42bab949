"""Answers that tell more than their text: prompts and how likely they are, token ids, the best of several."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from runtime_builders import make_sampling
from server_engine import FakeEngine, Stack, events_of, make_ready, running_stack
from starlette.requests import Request
from starlette.types import Message

from stoker_runtime.errors import RequestError
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.generation import Generation
from stoker_runtime.server.respond import respond
from stoker_runtime.server.serving import Record
from stoker_runtime.server.wire import AnswerOptions, ChatShape, CompletionShape, Head, Shape

HEAD = Head("id-1", 1, "tiny")
WITH_LOGPROBS = AnswerOptions(has_logprobs=True)


def token_bytes(stack: Stack) -> TokenBytes:
    assert stack.serving.text is not None
    return stack.serving.text.token_bytes


async def answered(stack: Stack, generation: Generation, shape: Shape, *, is_stream: bool = False) -> str:
    """Answer a generation as an endpoint does; return the response's body."""
    record = Record("r")
    body = bytearray()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def send(message: Message) -> None:
        body.extend(message.get("body", b""))

    scope = {"type": "http", "state": {"record": record, "arrival_s": time.monotonic()}}
    request = Request(scope, receive)
    answer = stack.serving.start(generation, record, request.state.arrival_s)
    response = await respond(request, answer, shape, is_stream=is_stream, keep_alive_s=0)
    await response(scope, receive, send)
    return body.decode()


async def completed(stack: Stack, generation: Generation, options: AnswerOptions = WITH_LOGPROBS) -> Any:
    return msgspec.json.decode(
        await answered(stack, generation, CompletionShape(HEAD, token_bytes(stack), options))
    )


async def streamed(stack: Stack, generation: Generation, options: AnswerOptions = WITH_LOGPROBS) -> list[Any]:
    shape = CompletionShape(HEAD, token_bytes(stack), options)
    return list(events_of(await answered(stack, generation, shape, is_stream=True)))


def echoing(stack: Stack, *prompts: str, **changes: Any) -> Generation:
    """A generation whose answers lead with their prompts, scored as lm-eval asks for it."""
    sampling = {"max_tokens": 1, "logprobs": 1, "prompt_logprobs": 1, **changes.pop("sampling", {})}
    return Generation(
        prompts=[stack.ids(prompt) for prompt in prompts],
        sampling=make_sampling(**sampling),
        echo=tuple(prompts),
        **changes,
    )


def score(choice: dict[str, Any], num_context: int) -> tuple[float, bool]:
    """The likelihood of what follows a context and whether it is greedy, read as lm-eval 0.4.13 reads it."""
    values = choice["logprobs"]["token_logprobs"][num_context:-1]
    tops = choice["logprobs"]["top_logprobs"][num_context:-1]
    return sum(values), all(value == max(top.values()) for value, top in zip(values, tops, strict=True))


async def test_a_prompt_leads_its_answer_with_its_log_probabilities() -> None:
    async with running_stack() as stack:
        stack.say("c")
        answer = await completed(stack, echoing(stack, "bc"))
        b, c = stack.ids("bc")
        neighbour = token_bytes(stack).text(c ^ 1)

    assert (b % 2, c % 2) == (1, 0)
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "bcc",
            "logprobs": {
                "tokens": ["b", "c", "c"],
                "token_logprobs": [None, -0.25, -0.5],
                "top_logprobs": [None, {"c": -0.25}, {"c": -0.5}],
                "text_offset": [0, 1, 2],
            },
            "finish_reason": "length",
        }
    ]
    assert neighbour == "d"


@pytest.mark.parametrize("answer_text", [pytest.param("x", id="a-token"), pytest.param("", id="its-end")])
async def test_lm_eval_reads_the_likelihood_of_a_continuation(answer_text: str) -> None:
    async with running_stack() as stack:
        stack.say(answer_text)
        answer = await completed(stack, echoing(stack, "ctx ab", "ctx ac", "ctx " + "\u00e9"))
        scores = [score(choice, 4) for choice in answer["choices"]]
        parities = [[token % 2 for token in stack.ids(text)] for text in ("ab", "ac", "\u00e9")]

    # Of the fake engine's tokens odd ones are one less likely than the likeliest.
    assert scores == [(sum(-0.25 - odd for odd in odds), not any(odds)) for odds in parities]
    assert answer["usage"]["prompt_tokens"] == 18
    assert [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]] == [7, 7, 7]


async def test_no_tokens_asked_for_give_the_prompt_alone() -> None:
    async with running_stack() as stack:
        stack.say("x")
        answer = await completed(stack, echoing(stack, "ab", drops_output=True))
        events = await streamed(stack, echoing(stack, "ab", drops_output=True))

    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert choice["logprobs"]["text_offset"] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 0
    assert [e["choices"][0]["text"] for e in events[:-1]] == ["ab", ""]
    assert events[-2]["choices"][0]["finish_reason"] == "length"


async def test_an_end_of_sequence_where_no_tokens_were_asked_for_is_no_end() -> None:
    async with running_stack() as stack:
        stack.say("")
        answer = await completed(stack, echoing(stack, "ab", drops_output=True))

    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 2


async def test_a_streamed_prompt_comes_first_and_all_choices_have_it() -> None:
    async with running_stack() as stack:
        stack.say("x", "y")
        events = await streamed(stack, echoing(stack, "abcdef", n=2))

    choices = [choice for event in events[:-1] for choice in event["choices"]]
    for index, text in enumerate("xy"):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["text"] == "abcdef"
        assert own[0]["logprobs"]["token_logprobs"][0] is None
        assert "".join(choice["text"] for choice in own) == "abcdef" + text
        offsets = [offset for choice in own for offset in choice["logprobs"]["text_offset"]]
        assert offsets == list(range(7))


async def test_a_prompt_is_scored_once_whatever_the_number_of_its_choices() -> None:
    async with running_stack() as stack:
        await completed(stack, echoing(stack, "ab", "cd", n=2))

    assert [request.sampling.prompt_logprobs for request in stack.engine.added] == [1, None, 1, None]


async def test_without_log_probabilities_a_prompt_comes_before_anything_is_computed() -> None:
    engine = FakeEngine()
    engine.may_step.clear()
    async with running_stack(engine) as stack:
        generation = Generation(prompts=[[1]], sampling=make_sampling(), echo=("so \u2028",))
        answer = stack.serving.start(generation, Record("r"), 0.0)
        try:
            deltas = await anext(answer.deltas())
        finally:
            answer.close()

    assert [(delta.text, list(delta.tokens)) for delta in deltas] == [("so \u2028", [])]


async def test_a_stop_string_leaves_the_prompt_alone_and_offsets_count_it() -> None:
    async with running_stack() as stack:
        stack.say("x.y")
        generation = echoing(stack, "a.b", stop=(".",), sampling={"max_tokens": 5})
        answer = await completed(stack, generation)

    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("a.bx", "stop")
    # Each counted token is told, so that the prompt's own are found from the end as well.
    assert choice["logprobs"]["tokens"] == ["a", ".", "b", "x", "."]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert answer["usage"]["completion_tokens"] == 2


async def test_the_log_probabilities_of_a_prompt_are_told_as_vllm_does() -> None:
    async with running_stack() as stack:
        stack.say("x")
        prompts = [stack.ids("bcd"), stack.ids("b")]
        sampling = make_sampling(max_tokens=1, prompt_logprobs=1)
        generation = Generation(prompts=prompts, sampling=sampling, n=2, shows_prompt_logprobs=True)
        answer = await completed(stack, generation, AnswerOptions())
        _, c, d = prompts[0]

    told = [choice["prompt_logprobs"] for choice in answer["choices"]]
    assert told[0] == told[1]
    assert told[2] == told[3] == [None]
    assert told[0] == [
        None,
        {str(c): {"logprob": -0.25, "rank": 1, "decoded_token": "c"}},
        {
            str(d): {"logprob": -1.25, "rank": 2, "decoded_token": "d"},
            str(c): {"logprob": -0.25, "rank": 1, "decoded_token": "c"},
        },
    ]
    assert list(told[0][2]) == [str(d), str(c)]


async def test_chat_tells_of_its_prompt_beside_the_choices() -> None:
    async with running_stack() as stack:
        stack.say("x")
        prompt = stack.ids("bc")
        generation = Generation(
            prompts=[prompt],
            sampling=make_sampling(max_tokens=2, prompt_logprobs=0),
            shows_prompt_logprobs=True,
            returns_token_ids=True,
        )
        shape = ChatShape(HEAD, token_bytes(stack), AnswerOptions(returns_token_ids=True))
        answer = msgspec.json.decode(await answered(stack, generation, shape))
        x, end = stack.ids("x")[0], stack.engine.ready.eos_token_ids[0]

    assert answer["prompt_token_ids"] == prompt
    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"]) == 2
    assert answer["choices"][0]["token_ids"] == [x, end]
    assert "prompt_token_ids" not in answer["choices"][0]


@pytest.mark.parametrize("kind", ["chat", "completions"])
async def test_streams_tell_the_prompts_ids_first_and_every_token_once(kind: str) -> None:
    options = AnswerOptions(returns_token_ids=True)
    async with running_stack() as stack:
        stack.say("\u4e2dx")
        generation = Generation(
            prompts=[[7, 8]], sampling=make_sampling(max_tokens=9), stop=("yz",), returns_token_ids=True
        )
        shapes: dict[str, type[ChatShape] | type[CompletionShape]] = {
            "chat": ChatShape,
            "completions": CompletionShape,
        }
        shape = shapes[kind](HEAD, token_bytes(stack), options)
        events: list[Any] = events_of(await answered(stack, generation, shape, is_stream=True))
        want = [*stack.ids("\u4e2dx"), stack.engine.ready.eos_token_ids[0]]

    first, *rest = [event["choices"][0] for event in events[:-1]]
    told = events[0] if kind == "chat" else first
    assert told["prompt_token_ids"] == [7, 8]
    assert [token for choice in rest for token in choice["token_ids"]] == want
    assert not any("prompt_token_ids" in choice for choice in rest)
    assert rest[-1]["finish_reason"] == "stop"


async def test_token_ids_end_with_the_stop_string() -> None:
    async with running_stack() as stack:
        stack.say("a.b")
        sampling = make_sampling(max_tokens=9)
        generation = Generation(prompts=[[1]], sampling=sampling, stop=(".",), returns_token_ids=True)
        answer = await completed(stack, generation, AnswerOptions(returns_token_ids=True))
        want = stack.ids("a.")

    assert answer["choices"][0]["token_ids"] == want


async def test_usage_so_far_comes_with_each_event_and_is_its_choices_own() -> None:
    options = AnswerOptions(include_usage=True, continuous_usage=True)
    async with running_stack() as stack:
        stack.say("ab", "x")
        generation = Generation(prompts=[[7, 8, 9]], sampling=make_sampling(max_tokens=9), n=2)
        shape = ChatShape(HEAD, token_bytes(stack), options)
        events: list[Any] = events_of(await answered(stack, generation, shape, is_stream=True))

    *events, last, _ = events
    for index, num_tokens in ((0, 3), (1, 2)):
        counts = [e["usage"]["completion_tokens"] for e in events if e["choices"][0]["index"] == index]
        assert counts == [0, *range(1, num_tokens + 1)]
    assert events[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)


async def test_tokens_may_be_called_by_their_ids() -> None:
    options = AnswerOptions(has_logprobs=True, tokens_as_ids=True)
    async with running_stack() as stack:
        stack.say("b")
        generation = Generation(prompts=[[1]], sampling=make_sampling(max_tokens=1, logprobs=2))
        completion = await completed(stack, generation, options)
        shape = ChatShape(HEAD, token_bytes(stack), options)
        chat = msgspec.json.decode(await answered(stack, generation, shape))
        (b,) = stack.ids("b")

    legacy = completion["choices"][0]["logprobs"]
    assert legacy["tokens"] == [f"token_id:{b}"]
    assert legacy["top_logprobs"] == [{f"token_id:{b}": -0.5, f"token_id:{b + 1}": -1.5}]
    (entry,) = chat["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["bytes"]) == (f"token_id:{b}", [0x62])
    assert [top["token"] for top in entry["top_logprobs"]] == [f"token_id:{b}", f"token_id:{b + 1}"]


def best_of(stack: Stack, answers: Sequence[str], **changes: Any) -> Generation:
    """Candidates in the order of the answers; the likelier a letter, the earlier it is in the alphabet."""
    stack.say(*answers)
    stack.engine.logprob_of = lambda token: -float(token)
    return Generation(**{"prompts": [[1]], "sampling": make_sampling(max_tokens=3), "best_of": 3, **changes})


async def test_the_likeliest_candidates_are_answered_and_all_are_counted() -> None:
    async with running_stack() as stack:
        generation = best_of(stack, ["zzz", "aaa", "mmm", "bbb", "yyy", "ccc"], prompts=[[1], [2]], n=2)
        answer = await completed(stack, generation, AnswerOptions())

    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "aaa"),
        (1, "mmm"),
        (2, "bbb"),
        (3, "ccc"),
    ]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (2, 18)
    assert [request.sampling.logprobs for request in stack.engine.added] == [0] * 6
    assert len({request.request_id for request in stack.engine.added}) == 6


async def test_a_candidate_is_judged_by_the_mean_not_the_sum() -> None:
    async with running_stack() as stack:
        stack.engine.ready = make_ready(eos_token_ids=(0,))  # the likeliest token of all
        generation = best_of(stack, ["aa", "b", "bb"])
        answer = await completed(stack, generation)

    assert answer["choices"][0]["text"] == "b"
    assert answer["choices"][0]["logprobs"] is not None


async def test_a_failure_of_a_candidate_is_the_answers() -> None:
    engine = FakeEngine(errors={1: "broken"})
    async with running_stack(engine) as stack:
        with pytest.raises(RequestError, match="broken"):
            await completed(stack, best_of(stack, ["a", "b", "c"]))


async def test_a_long_prompt_with_its_log_probabilities_keeps_nobody_waiting() -> None:
    num_tokens = 20_000
    engine = FakeEngine(ready=make_ready(max_model_len=2**20, num_blocks=2**20), scored_per_step=500)
    pauses = []

    async def watch() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            pauses.append(time.thread_time() - began)

    async with running_stack(engine) as stack:
        stack.say("x")
        generation = echoing(stack, "ab" * (num_tokens // 2))
        shape = CompletionShape(HEAD, token_bytes(stack), WITH_LOGPROBS)
        gc.disable()  # what it takes depends on all that the tests before this one have left
        try:
            watching = asyncio.create_task(watch())
            body = await answered(stack, generation, shape)
            watching.cancel()
        finally:
            gc.enable()

    answer = msgspec.json.decode(body)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == num_tokens + 1
    assert answer["choices"][0]["logprobs"]["text_offset"][-1] == num_tokens
    # All of it takes several times as long.
    assert sorted(pauses)[-1] < sum(pauses) / 4
