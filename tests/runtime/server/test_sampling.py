from __future__ import annotations

from typing import Any

import pytest

from stoker_runtime.errors import RequestError
from stoker_runtime.messages import SamplingParams
from stoker_runtime.server.protocol import ChatBody, CompletionBody
from stoker_runtime.server.sampling import (
    MAX_VALUES,
    bad_word_forms,
    chat_sampling,
    check_pickable,
    check_size,
    completion_sampling,
    truncated,
)


def completion(**fields: Any) -> SamplingParams:
    defaults = fields.pop("defaults", {})
    body = CompletionBody.model_validate({"model": "tiny", "prompt": "a", **fields})
    return completion_sampling(body, defaults, vocab_size=100, max_model_len=256)


def chat(**fields: Any) -> SamplingParams:
    defaults = fields.pop("defaults", {})
    body = ChatBody.model_validate(
        {"model": "tiny", "messages": [{"role": "user", "content": "a"}], **fields}
    )
    return chat_sampling(body, defaults, vocab_size=100, max_model_len=256)


def test_a_completion_without_fields_samples_as_openai_does() -> None:
    assert completion() == SamplingParams(max_tokens=16, temperature=1.0, top_p=1.0)


def test_every_field_reaches_the_engine() -> None:
    params = completion(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=3,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        repetition_penalty=1.1,
        logit_bias={"7": -100},
        stop_token_ids=[4, 4, 5],
        ignore_eos=True,
        logprobs=2,
    )

    assert params == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=3,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        repetition_penalty=1.1,
        logit_bias={7: -100.0},
        stop_token_ids=(4, 5),
        ignore_eos=True,
        logprobs=2,
    )


def test_the_models_own_defaults_give_way_to_the_request() -> None:
    defaults = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}

    params = completion(defaults=defaults, top_p=0.5)

    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.6, 20, 0.5, 1.05)


def test_the_models_own_limit_is_a_default_and_no_cap() -> None:
    defaults = {"max_tokens": 40}

    assert (completion(defaults=defaults).max_tokens, chat(defaults=defaults).max_tokens) == (40, 40)
    assert completion(defaults=defaults, max_tokens=90).max_tokens == 90
    assert chat(defaults=defaults, max_completion_tokens=90).max_tokens == 90


def test_a_temperature_too_small_to_divide_by_is_greedy() -> None:
    assert completion(temperature=1e-12).temperature == 0.0


@pytest.mark.parametrize("top_k", [-1, 0])
def test_both_spellings_of_no_top_k_are_off(top_k: int) -> None:
    assert completion(top_k=top_k).top_k == 0


def test_minus_one_is_a_random_seed_and_any_other_number_is_one() -> None:
    assert completion(seed=-1).seed is None
    assert completion(seed=-2).seed == 2**63 - 2
    assert completion(seed=2**63 + 1).seed == 1


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"top_k": -7}, {"top_k": 0}),
        ({"top_p": 0}, {"top_k": 1, "top_p": 1.0}),
        ({"top_p": 1}, {"top_k": 0, "top_p": 1.0}),
        ({"min_p": 0}, {"min_p": 0.0}),
        ({"repetition_penalty": 0}, {"repetition_penalty": 1.0}),
        ({"repeat_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"temperature": 1e6}, {"temperature": 1e6}),
        ({"presence_penalty": 7, "frequency_penalty": -7}, {"presence_penalty": 7.0}),
        ({"logit_bias": {"5": 1000}}, {"logit_bias": {5: 100.0}}),
        ({"allowed_token_ids": [3, 4, 3]}, {"allowed_token_ids": (3, 4)}),
        ({"logprobs": -1}, {"logprobs": 100}),
        ({"logprobs": 10**6}, {"logprobs": 100}),
        ({"prompt_logprobs": 0}, {"prompt_logprobs": 0}),
        ({"prompt_logprobs": -1}, {"prompt_logprobs": 100}),
        ({"echo": True, "logprobs": 2}, {"logprobs": 2, "prompt_logprobs": 2}),
        ({"echo": True}, {"logprobs": None, "prompt_logprobs": None}),
        ({"echo": True, "logprobs": 2, "prompt_logprobs": 1}, {"prompt_logprobs": 2}),
        ({"max_tokens": 0}, {"max_tokens": 1}),
        ({"max_tokens": -1}, {"max_tokens": 256}),
        ({"num_predict": -2}, {"max_tokens": 256}),
        ({"prompt_logprobs": False}, {"prompt_logprobs": None}),
        ({"max_tokens": 256}, {"max_tokens": 256}),
    ],
)
def test_the_conventional_values_mean_what_they_mean_elsewhere(fields: dict[str, Any], want: Any) -> None:
    params = completion(**fields)

    assert {name: getattr(params, name) for name in want} == want


@pytest.mark.parametrize("fields", [{"max_tokens": 257}, {"max_tokens": 10**6}])
def test_more_than_any_prompt_leaves_is_refused(fields: dict[str, int]) -> None:
    for sampling in (completion, chat):
        with pytest.raises(RequestError, match="may have 256 tokens") as caught:
            sampling(**fields)
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"), [({"logprobs": -1}, "logprobs"), ({"prompt_logprobs": 1025}, "prompt_logprobs")]
)
def test_no_step_has_to_list_a_whole_large_vocabulary(fields: dict[str, Any], param: str) -> None:
    body = CompletionBody.model_validate({"prompt": "a", **fields})
    with pytest.raises(RequestError, match="at most 1024") as caught:
        completion_sampling(body, {}, vocab_size=50_000, max_model_len=256)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": (7,), "bad_words_token_ids": ((7,),)}, "bad_words"),
        ({"allowed_token_ids": (2,), "min_tokens": 1}, "min_tokens"),
        ({"allowed_token_ids": (9, 2), "stop_token_ids": (9,), "min_tokens": 1}, "min_tokens"),
        ({"allowed_token_ids": (7, 2), "bad_words_token_ids": ((7,),), "min_tokens": 3}, "min_tokens"),
        ({"allowed_token_ids": (2,)}, None),
        ({"allowed_token_ids": (2,), "min_tokens": 1, "ignore_eos": True}, None),
        ({"allowed_token_ids": (7,), "bad_words_token_ids": ((7, 8),)}, None),
        ({"bad_words_token_ids": ((7,),)}, None),
    ],
)
def test_what_leaves_no_token_to_pick_is_refused(fields: dict[str, Any], param: str | None) -> None:
    sampling = SamplingParams(max_tokens=5, **fields)
    if param is None:
        check_pickable(sampling, eos_token_ids=(2,))
        return
    with pytest.raises(RequestError, match=f"`{param}`") as caught:
        check_pickable(sampling, eos_token_ids=(2,))
    assert caught.value.param == param


def test_of_a_chats_two_limits_the_newer_counts() -> None:
    assert chat(max_tokens=9, max_completion_tokens=5).max_tokens == 5
    assert chat(max_tokens=9, max_completion_tokens=-1).max_tokens == 256


def test_top_logprobs_alone_ask_for_log_probabilities() -> None:
    assert chat(top_logprobs=2).logprobs == 2
    assert chat(top_logprobs=0).logprobs is None
    assert chat(top_logprobs=2, logprobs=False).logprobs is None


@pytest.mark.parametrize(
    ("keep", "max_tokens", "want"),
    [
        (None, 9, [1, 2, 3, 4, 5]),
        (2, 9, [4, 5]),
        (0, 9, []),
        (9, 9, [1, 2, 3, 4, 5]),
        (-1, 9, [5]),
        (-1, 4, [3, 4, 5]),
        (-1, None, [1, 2, 3, 4, 5]),
        (-1, -1, [1, 2, 3, 4, 5]),
    ],
)
def test_a_prompt_is_cut_at_its_start(keep: int | None, max_tokens: int | None, want: list[int]) -> None:
    assert truncated([1, 2, 3, 4, 5], keep, max_tokens, max_model_len=7) == want


def test_bad_words_are_looked_for_at_the_start_and_behind_a_space() -> None:
    assert bad_word_forms(["cat", " dog", " "]) == ["cat", " cat", "dog", " dog"]


def test_a_chat_may_fill_the_models_length() -> None:
    assert chat().max_tokens == 256


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 5}],
)
def test_both_spellings_of_a_chats_limit_work(fields: dict[str, int]) -> None:
    assert chat(**fields).max_tokens == 5


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
    ],
)
def test_a_chats_log_probabilities(fields: dict[str, Any], want: int | None) -> None:
    assert chat(**fields).logprobs == want


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"100": 1}}, "logit_bias"),
        ({"stop_token_ids": [100]}, "stop_token_ids"),
        ({"allowed_token_ids": [100]}, "allowed_token_ids"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        completion(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_an_answer_that_would_fill_the_memory_is_refused() -> None:
    check_size(1, SamplingParams(max_tokens=2**17, logprobs=20), room=2**17)
    check_size(512, SamplingParams(max_tokens=10**9), room=MAX_VALUES // 512)
    scored = SamplingParams(max_tokens=1, prompt_logprobs=126)
    check_size(99, scored, 1, [2**12, 2**12], scored_by="logprobs")
    with pytest.raises(
        RequestError, match=r"`logprobs` asks for \d+ log-probabilities of 8193 prompt"
    ) as caught:
        check_size(1, scored, 1, [2**12, 2**12 + 1], scored_by="logprobs")
    assert caught.value.param == "logprobs"
    for num_choices, logprobs, room in ((8, 20, 2**17), (512, None, MAX_VALUES // 512 + 1)):
        with pytest.raises(RequestError, match="`n`, `max_tokens` and `logprobs`") as caught:
            check_size(num_choices, SamplingParams(max_tokens=10**9, logprobs=logprobs), room)
        assert (caught.value.status, caught.value.param) == (400, "max_tokens")
