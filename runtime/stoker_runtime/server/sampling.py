"""A request's sampling fields, with the model's own defaults, as the engine takes them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from stoker_runtime.errors import RequestError
from stoker_runtime.messages import SamplingParams
from stoker_runtime.server.protocol import ChatBody, CompletionBody, SamplingBody

DEFAULT_COMPLETION_TOKENS = 16
# Dividing logits by less than this overflows; the distribution is a single token well before.
_GREEDY_BELOW = 1e-5
# Tokens and log-probabilities of one HTTP request. Each takes some hundred bytes until it is sent.
MAX_VALUES = 2**22


def completion_sampling(
    body: CompletionBody, defaults: Mapping[str, float], vocab_size: int
) -> SamplingParams:
    """Return how the tokens of a completion are chosen.

    Args:
        body: the request.
        defaults: the model's generation defaults, by the request fields' names.
        vocab_size: token ids are below it.

    Raises:
        RequestError: 400; a token id is beyond the vocabulary, or min_tokens is above max_tokens.
    """
    max_tokens = body.max_tokens or int(defaults.get("max_tokens", DEFAULT_COMPLETION_TOKENS))
    return _sampling(body, max_tokens, body.logprobs, defaults, vocab_size)


def chat_sampling(
    body: ChatBody, defaults: Mapping[str, float], vocab_size: int, max_model_len: int
) -> SamplingParams:
    """Return how the tokens of a chat answer are chosen.

    Without a limit, the request's or the model's own, it may fill the model's length.

    Raises:
        RequestError: as completion_sampling.
    """
    own = int(defaults.get("max_tokens", max_model_len))
    max_tokens = body.max_completion_tokens or body.max_tokens or own
    return _sampling(
        body, max_tokens, (body.top_logprobs or 0) if body.logprobs else None, defaults, vocab_size
    )


def check_room(body: SamplingBody, num_prompt_tokens: int, max_model_len: int) -> None:
    """Refuse an answer that is longer than what its prompt leaves of the model's length.

    Args:
        body: the request; a limit that it does not give is cut to the room there is.
        num_prompt_tokens: of its longest prompt.
        max_model_len: tokens that prompt and answer may have together.

    Raises:
        RequestError: 400, context_length_exceeded.
    """
    room = max_model_len - num_prompt_tokens
    for param in ("max_completion_tokens", "max_tokens", "min_tokens"):
        wanted = getattr(body, param, None)
        if wanted is not None and wanted > room:
            raise RequestError(
                f"`{param}` is {wanted}, but a prompt of {num_prompt_tokens} tokens leaves room for {room}: "
                f"prompt and answer together may have {max_model_len}",
                param=param,
                code="context_length_exceeded",
            )


def check_size(num_choices: int, sampling: SamplingParams, room: int) -> None:
    """Refuse an answer that would fill the server's memory.

    Args:
        num_choices: prompts times n.
        sampling: of each.
        room: tokens that the model's length leaves to each.

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


def _sampling(
    body: SamplingBody,
    max_tokens: int,
    logprobs: int | None,
    defaults: Mapping[str, float],
    vocab_size: int,
) -> SamplingParams:
    _check_ids("logit_bias", body.logit_bias, vocab_size)
    _check_ids("stop_token_ids", body.stop_token_ids or [], vocab_size)
    if (body.min_tokens or 0) > max_tokens:
        raise RequestError(
            f"`min_tokens` is {body.min_tokens}, above the {max_tokens} tokens the answer may have",
            param="min_tokens",
            code="invalid_value",
        )

    def pick(value: float | None, name: str, fallback: float) -> float:
        return defaults.get(name, fallback) if value is None else value

    temperature = pick(body.temperature, "temperature", 1.0)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=0.0 if temperature < _GREEDY_BELOW else temperature,
        top_p=pick(body.top_p, "top_p", 1.0),
        top_k=max(0, int(pick(body.top_k, "top_k", 0))),
        min_p=pick(body.min_p, "min_p", 0.0),
        seed=None if body.seed is None else body.seed % 2**63,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=pick(body.repetition_penalty, "repetition_penalty", 1.0),
        logit_bias=body.logit_bias,
        stop_token_ids=tuple(dict.fromkeys(body.stop_token_ids or ())),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
    )


def _check_ids(param: str, token_ids: Mapping[int, float] | list[int], vocab_size: int) -> None:
    wrong = [token_id for token_id in token_ids if token_id >= vocab_size]
    if wrong:
        raise RequestError(
            f"`{param}` names token {wrong[0]}, but the vocabulary ends at {vocab_size - 1}",
            param=param,
            code="invalid_value",
        )
