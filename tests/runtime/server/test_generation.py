from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_builders import make_sampling
from server_builders import make_byte_level_tokenizer

from stoker_runtime.errors import RequestError
from stoker_runtime.messages import FinishReason, RequestOutput, TokenLogprob
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.generation import (
    Choice,
    Delta,
    Generation,
    Usage,
    add_requests,
    best_choices,
    usage,
)
from stoker_runtime.server.wire import WholeChoice

TOKENIZER = make_byte_level_tokenizer()
TOKEN_BYTES = TokenBytes(TOKENIZER)
END = TOKENIZER.get_vocab()["<|end|>"]


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def make_generation(prompts: list[list[int]] | None = None, **changes: object) -> Generation:
    options: dict[str, object] = {"prompts": prompts or [[1, 2, 3]], "sampling": make_sampling(), **changes}
    return Generation(**options)  # type: ignore[arg-type]


def make_choice(**changes: object) -> Choice:
    return Choice(0, make_generation(None, **changes), TOKEN_BYTES)


def output(tokens: list[int], **changes: object) -> RequestOutput:
    logprobs = [TokenLogprob(token_id=token, logprob=-1.0, top=[]) for token in tokens]
    return RequestOutput(**{"request_id": "r", "token_ids": tokens, "logprobs": logprobs, **changes})  # type: ignore[arg-type]


def ended_by(token: int) -> dict[str, object]:
    return {"finish_reason": FinishReason.STOP, "stop_token_id": token}


def test_a_generation_becomes_one_request_per_prompt_and_choice() -> None:
    generation = make_generation([[1, 2], [3]], n=2, sampling=make_sampling(max_tokens=50, seed=7))

    requests = add_requests(generation, "job", max_model_len=20, arrival_s=1.5)

    assert [request.request_id for request in requests] == ["job-0", "job-1", "job-2", "job-3"]
    assert [request.prompt_token_ids for request in requests] == [[1, 2], [1, 2], [3], [3]]
    assert [request.sampling.seed for request in requests] == [7, 8, 7, 8]
    assert [request.sampling.max_tokens for request in requests] == [18, 18, 19, 19]
    assert {request.arrival_s for request in requests} == {1.5}


def test_candidates_are_generated_apart_and_scored_once() -> None:
    sampling = make_sampling(seed=7, prompt_logprobs=2)
    generation = make_generation([[1, 2], [3]], n=1, best_of=3, sampling=sampling)

    requests = add_requests(generation, "job", 20, 0.0)

    assert len(requests) == generation.num_choices == 6
    assert [request.sampling.seed for request in requests] == [7, 8, 9] * 2
    assert [request.sampling.logprobs for request in requests] == [0] * 6
    assert [request.sampling.prompt_logprobs for request in requests] == [2, None, None] * 2
    assert add_requests(make_generation(), "job", 20, 0.0)[0].sampling.logprobs is None


@given(num_prompts=st.integers(1, 4), num_candidates=st.integers(1, 5), n=st.integers(1, 5), data=st.data())
def test_of_each_prompt_the_likeliest_are_answered(
    num_prompts: int, num_candidates: int, n: int, data: st.DataObject
) -> None:
    values = st.one_of(st.floats(-100, 0), st.just(float("-inf")))
    size = num_prompts * num_candidates
    means = data.draw(st.lists(values, min_size=size, max_size=size))

    chosen = best_choices(means, n, num_candidates)

    num_each = min(n, num_candidates)
    assert len(chosen) == len(set(chosen)) == num_prompts * num_each
    for prompt in range(num_prompts):
        own = chosen[prompt * num_each : (prompt + 1) * num_each]
        candidates = range(prompt * num_candidates, (prompt + 1) * num_candidates)
        assert set(own) <= set(candidates)
        if n >= num_candidates:
            assert own == list(candidates)
            continue
        assert [means[index] for index in own] == sorted((means[i] for i in candidates), reverse=True)[:n]


def test_without_a_seed_the_engine_draws_one_per_choice() -> None:
    requests = add_requests(make_generation(n=2), "job", 20, 0.0)

    assert [request.sampling.seed for request in requests] == [None, None]


def test_a_choice_ends_with_its_end_of_sequence_token_which_gives_no_text() -> None:
    choice = make_choice()

    assert choice.take(output(ids("a"))) == Delta(0, "a")
    assert choice.take(output([END], **ended_by(END))) == Delta(0, "", (), "stop")
    assert choice.num_output_tokens == 2


def test_the_ending_token_is_shown_when_stops_are_included() -> None:
    choice = make_choice(include_stop=True, skip_special_tokens=False)

    assert choice.take(output([*ids("a"), END], **ended_by(END))) == Delta(0, "a<|end|>", (), "stop")


def test_a_choice_that_ran_out_of_tokens_flushes_what_it_held_back() -> None:
    choice = make_choice(stop=("abc",))

    assert choice.take(output(ids("ab"))) == Delta(0, "")
    assert choice.take(output(ids("x\u00e9")[:-1], finish_reason=FinishReason.LENGTH)) == Delta(
        0, "abx\ufffd", (), "length"
    )


def test_a_stop_string_ends_a_choice_that_the_engine_would_go_on_with() -> None:
    choice = make_choice(stop=("bc",))

    assert choice.take(output(ids("abcdef"))) == Delta(0, "a", (), "stop")
    assert choice.finish_reason == "stop"
    assert choice.num_output_tokens == 3


def test_log_probabilities_come_with_the_text_of_their_tokens() -> None:
    choice = make_choice(sampling=make_sampling(logprobs=0), stop=("bcd",))

    first = choice.take(output(ids("ab")))
    second = choice.take(output(ids("cx")))

    assert [(token.token_id, token.text_offset) for token in first.tokens] == [(ids("a")[0], 0)]
    assert [token.text_offset for token in second.tokens] == [1, 2, 3]


def test_tokens_of_a_stop_string_are_not_shown() -> None:
    choice = make_choice(sampling=make_sampling(logprobs=0), stop=("bc",))

    deltas = [choice.take(output([token])) for token in ids("abc")]

    assert [token.text_offset for delta in deltas for token in delta.tokens] == [0]


def test_every_token_of_a_character_is_shown() -> None:
    choice = make_choice(sampling=make_sampling(logprobs=0))

    deltas = [choice.take(output([token])) for token in ids("\u4e2d")]
    deltas.append(choice.take(output([END], **ended_by(END))))

    assert [len(delta.tokens) for delta in deltas] == [0, 0, 3, 0]


def test_behind_a_prompt_each_counted_token_is_told() -> None:
    echoed = {"echo": ("xyz",), "sampling": make_sampling(logprobs=0)}
    ended, stopped = make_choice(**echoed), make_choice(**echoed, stop=("bc",))

    deltas = [ended.take(output(ids("ab"))), ended.take(output([END], **ended_by(END)))]
    cut = stopped.take(output(ids("abcd")))

    assert [token.text_offset for delta in deltas for token in delta.tokens] == [3, 4, 5]
    assert deltas[1].tokens[0].token_id == END
    assert [token.text_offset for token in cut.tokens] == [3, 4, 5]
    assert (cut.text, stopped.num_output_tokens) == ("a", 3)


def test_a_choice_whose_output_is_dropped_has_none() -> None:
    choice = make_choice(drops_output=True, returns_token_ids=True)

    assert choice.take(output([])) == Delta(0, "")
    assert choice.take(output([END], **ended_by(END))) == Delta(0, "", (), "length")
    assert choice.num_output_tokens == 0


def test_a_choice_knows_the_mean_of_what_is_counted() -> None:
    choice = make_choice(stop=("b",))
    tokens = ids("abc")
    logprobs = [TokenLogprob(token_id=token, logprob=-float(i), top=[]) for i, token in enumerate(tokens)]

    delta = choice.take(output(tokens, logprobs=logprobs))

    assert choice.mean_logprob == -0.5
    assert delta.tokens == ()


def test_token_ids_do_not_wait_for_text_that_is_held_back() -> None:
    choice = make_choice(stop=("abc",), returns_token_ids=True)

    deltas = [choice.take(output([token])) for token in ids("abx")]

    assert [(delta.text, list(delta.token_ids)) for delta in deltas] == [
        ("", ids("a")),
        ("", ids("b")),
        ("abx", ids("x")),
    ]


def test_an_error_of_one_request_is_a_500() -> None:
    failed = RequestOutput(request_id="r", finish_reason=FinishReason.ERROR, error="logits are not finite")

    with pytest.raises(RequestError, match="logits are not finite") as caught:
        make_choice().take(failed)
    assert caught.value.status == 500


def test_a_request_the_engine_gave_up_is_a_503() -> None:
    with pytest.raises(RequestError, match="shutting down") as caught:
        make_choice().take(RequestOutput(request_id="r", finish_reason=FinishReason.ABORT))
    assert caught.value.status == 503


def test_usage_counts_a_prompt_once_and_all_its_choices() -> None:
    generation = make_generation([[1, 2], [3]], n=2)
    choices = [Choice(index, generation, TOKEN_BYTES) for index in range(4)]
    for choice in choices:
        choice.take(output(ids("ab"), num_cached_tokens=choice.index))
        choice.take(output(ids("c")))

    assert usage(generation, choices) == Usage(prompt_tokens=3, output_tokens=12, cached_tokens=2)


def test_a_whole_choice_joins_its_deltas() -> None:
    whole = WholeChoice()
    for delta in (Delta(0, "a"), Delta(0, "b", (), "stop")):
        whole.add(delta)

    assert (whole.text, whole.finish_reason) == ("ab", "stop")
