"""A request's sampling fields, with the model's own defaults, as the engine takes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from stoker_runtime.errors import RequestError
from stoker_runtime.messages import SamplingParams
from stoker_runtime.server.protocol import ChatBody, CompletionBody, SamplingBody

DEFAULT_COMPLETION_TOKENS = 16
# Dividing logits by less than this overflows; the distribution is a single token well before.
_GREEDY_BELOW = 1e-5
# Tokens and log-probabilities of one HTTP request. Each takes some hundred bytes until it is sent.
MAX_VALUES = 2**22
# Those of prompts come all at once, and each takes some hundred bytes more as JSON.
MAX_SCORED_VALUES = 2**20
# At each position. Every step waits until the tokens of all its requests are listed: 64 times so many take
# some 50 ms.
MAX_LOGPROBS = 1024


def completion_sampling(
    body: CompletionBody, defaults: Mapping[str, float], vocab_size: int, max_model_len: int
) -> SamplingParams:
    """Return how the tokens of a completion are chosen.

    Args:
        body: the request.
        defaults: the model's generation defaults, by the request fields' names.
        vocab_size: token ids are below it.
        max_model_len: tokens that prompt and answer may have together.

    Raises:
        RequestError: 400; a token id is beyond the vocabulary, min_tokens is above max_tokens, or a limit is
            above what any prompt leaves.
    """
    own = int(defaults.get("max_tokens", DEFAULT_COMPLETION_TOKENS))
    max_tokens = _limit("max_tokens", body.max_tokens, own, max_model_len)
    # Without an answer the engine still computes the token that the prompt leads to, which is then dropped.
    return _sampling(body, max(1, max_tokens), body.logprobs, defaults, vocab_size)


def chat_sampling(
    body: ChatBody, defaults: Mapping[str, float], vocab_size: int, max_model_len: int
) -> SamplingParams:
    """Return how the tokens of a chat answer are chosen.

    Without a limit, the request's or the model's own, it may fill the model's length. Of two limits OpenAI's
    newer one counts, as with vLLM.

    Raises:
        RequestError: as completion_sampling.
    """
    own = int(defaults.get("max_tokens", max_model_len))
    asked = ("max_tokens", body.max_tokens)
    if body.max_completion_tokens is not None:
        asked = ("max_completion_tokens", body.max_completion_tokens)
    max_tokens = _limit(*asked, own, max_model_len)
    if max_tokens == 0:
        raise RequestError(
            f"`{asked[0]}` is 0, which leaves no answer; leave it out, or send -1 for no limit",
            param=asked[0],
            code="invalid_value",
        )
    wants_logprobs = body.logprobs if body.logprobs is not None else bool(body.top_logprobs)
    return _sampling(
        body, max_tokens, (body.top_logprobs or 0) if wants_logprobs else None, defaults, vocab_size
    )


def _limit(param: str, asked: int | None, own: int, max_model_len: int) -> int:
    """Return how many tokens an answer may have, before the room is known that its prompt leaves.

    Clients send one limit with every request of a conversation that grows, often the model's length, so what
    is left of it is what they get (as with vLLM 0.33). More than any prompt leaves cannot be meant.
    """
    if asked is None:
        return own
    if asked > max_model_len:
        raise RequestError(
            f"`{param}` is {asked}, but prompt and answer together may have {max_model_len} tokens; "
            "lower it, or leave it out for as many as there is room for",
            param=param,
            code="context_length_exceeded",
        )
    return max_model_len if asked < 0 else asked


def truncated(
    token_ids: list[int], keep: int | None, max_tokens: int | None, max_model_len: int
) -> list[int]:
    """Return the end of a prompt that `truncate_prompt_tokens` keeps.

    Args:
        token_ids: of the whole prompt.
        keep: so many; -1: as many as leave the answer the room it asks for; None: all.
        max_tokens: what the request asks for; None or -1: one at least.
        max_model_len: tokens that prompt and answer may have together.
    """
    if keep is None:
        return token_ids
    if keep == -1:
        keep = max(1, max_model_len - max(1, max_tokens or 1))
    return token_ids[max(0, len(token_ids) - keep) :]


def bad_word_forms(words: Sequence[str]) -> list[str]:
    """Return the texts whose tokens make up words: each at the start of a text and behind a space.

    Source: vLLM's SamplingParams tokenizes a word in both ways, because vocabularies have other tokens for
        them.
    """
    return [form for word in words if (bare := word.lstrip(" ")) for form in (bare, f" {bare}")]


def check_size(
    num_choices: int,
    sampling: SamplingParams,
    room: int,
    prompt_sizes: Sequence[int] = (),
    *,
    scored_by: str = "",
) -> None:
    """Refuse an answer that would fill the server's memory.

    Args:
        num_choices: prompts times what is generated of each.
        sampling: of each.
        room: tokens that the model's length leaves to each.
        prompt_sizes: tokens of each prompt; with `prompt_logprobs` each is scored once.
        scored_by: the field that asks for that.

    Raises:
        RequestError: 400.
    """
    per_token = 1 if sampling.logprobs is None else 2 + sampling.logprobs
    num_values = num_choices * min(sampling.max_tokens, room) * per_token
    if num_values > MAX_VALUES:
        raise RequestError(
            f"`n`, `max_tokens` and `logprobs` allow an answer of {num_values} tokens and log-probabilities; "
            f"lower one of them: an answer may have {MAX_VALUES}",
            param="max_tokens",
            code="invalid_value",
        )
    if sampling.prompt_logprobs is None:
        return
    num_values = sum(prompt_sizes) * (2 + sampling.prompt_logprobs)
    if num_values > MAX_SCORED_VALUES:
        raise RequestError(
            f"`{scored_by}` asks for {num_values} log-probabilities of {sum(prompt_sizes)} prompt tokens; "
            f"lower it or send fewer tokens at once: an answer may have {MAX_SCORED_VALUES}",
            param=scored_by,
            code="invalid_value",
        )


def check_pickable(sampling: SamplingParams, eos_token_ids: Iterable[int]) -> None:
    """Refuse what leaves no token to pick, which would fail in the middle of the answer.

    Args:
        sampling: with its bad words.
        eos_token_ids: the model's own ends.

    Raises:
        RequestError: 400.
    """
    if sampling.allowed_token_ids is None:
        return
    allowed = set(sampling.allowed_token_ids)
    allowed -= {sequence[0] for sequence in sampling.bad_words_token_ids if len(sequence) == 1}
    ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
    if not allowed:
        param, why = "bad_words", "leaves none of `allowed_token_ids`; take a word out or allow another token"
    elif sampling.min_tokens and allowed <= ends:
        param, why = "min_tokens", "needs a token in `allowed_token_ids` that does not end the answer"
    else:
        return
    raise RequestError(f"`{param}` {why}", param=param, code="invalid_value")


def _sampling(
    body: SamplingBody,
    max_tokens: int,
    logprobs: int | None,
    defaults: Mapping[str, float],
    vocab_size: int,
) -> SamplingParams:
    _check_ids("logit_bias", body.logit_bias, vocab_size)
    _check_ids("stop_token_ids", body.stop_token_ids or [], vocab_size)
    _check_ids("allowed_token_ids", body.allowed_token_ids or [], vocab_size)
    if (body.min_tokens or 0) > max_tokens:
        raise RequestError(
            f"`min_tokens` is {body.min_tokens}, above the {max_tokens} tokens the answer may have",
            param="min_tokens",
            code="invalid_value",
        )

    def pick(value: float | None, name: str, fallback: float) -> float:
        return defaults.get(name, fallback) if value is None else value

    temperature = pick(body.temperature, "temperature", 1.0)
    top_p, top_k = pick(body.top_p, "top_p", 1.0), max(0, int(pick(body.top_k, "top_k", 0)))
    logprobs = _count("top_logprobs" if isinstance(body, ChatBody) else "logprobs", logprobs, vocab_size)
    prompt_logprobs = _count("prompt_logprobs", body.prompt_logprobs, vocab_size)
    if isinstance(body, CompletionBody) and body.echo and logprobs is not None:
        prompt_logprobs = max(logprobs, prompt_logprobs or 0)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=0.0 if temperature < _GREEDY_BELOW else temperature,
        top_p=top_p or 1.0,
        top_k=top_k if top_p else 1,
        min_p=pick(body.min_p, "min_p", 0.0),
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=pick(body.repetition_penalty, "repetition_penalty", 1.0) or 1.0,
        logit_bias=body.logit_bias,
        stop_token_ids=tuple(dict.fromkeys(body.stop_token_ids or ())),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        allowed_token_ids=None
        if body.allowed_token_ids is None
        else tuple(dict.fromkeys(body.allowed_token_ids)),
    )


def _count(param: str, wanted: int | None, vocab_size: int) -> int | None:
    """Return a number of likeliest tokens; -1 means all that there are."""
    if wanted is None:
        return None
    count = vocab_size if wanted == -1 else min(wanted, vocab_size)
    if count > MAX_LOGPROBS:
        raise RequestError(
            f"`{param}` asks for {count} tokens at each position; at most {MAX_LOGPROBS} can be told",
            param=param,
            code="invalid_value",
        )
    return count


def _check_ids(param: str, token_ids: Mapping[int, float] | list[int], vocab_size: int) -> None:
    wrong = [token_id for token_id in token_ids if token_id >= vocab_size]
    if wrong:
        raise RequestError(
            f"`{param}` names token {wrong[0]}, but the vocabulary ends at {vocab_size - 1}",
            param=param,
            code="invalid_value",
        )
