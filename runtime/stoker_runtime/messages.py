"""What the server and the engine exchange, and nothing else of either.

The server knows text and never blocks; the engine knows token ids and never text. They meet in these frozen
structs, encoded as msgpack, one length-prefixed frame per message, over a Unix socket. Commands go to the
engine one by one; the engine answers with one `StepOutputs` per step that covers every request of the step.
"""

from __future__ import annotations

import struct
from enum import StrEnum

import msgspec

_LENGTH = struct.Struct("<I")
HEADER_BYTES = _LENGTH.size


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # an end-of-sequence or stop token
    LENGTH = "length"  # max_tokens or the model's length
    ABORT = "abort"  # the client left, a stop string was found, or shutdown; never shown on the wire
    ERROR = "error"  # this request alone failed, see RequestOutput.error


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token of one request is chosen. Ranges are checked by the server."""

    max_tokens: int  # >= 1; already clipped so that prompt + output fit max_model_len
    min_tokens: int = 0  # eos and stop_token_ids are masked before this many output tokens
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 is off
    min_p: float = 0.0  # [0, 1]
    seed: int | None = None  # None: the engine draws one
    presence_penalty: float = 0.0  # over output tokens
    frequency_penalty: float = 0.0  # over output tokens
    repetition_penalty: float = 1.0  # over prompt and output tokens
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; n: the sampled token and the n most likely
    prompt_logprobs: int | None = None  # the same of the prompt's tokens, which are then all computed
    allowed_token_ids: tuple[int, ...] | None = None  # None: all; only these are picked, end tokens included
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()  # sequences that output never completes

    @property
    def looks_back(self) -> bool:
        """Whether what may be picked depends on the tokens picked before."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or any(len(token_ids) > 1 for token_ids in self.bad_words_token_ids)
        )


class AddRequest(msgspec.Struct, frozen=True, kw_only=True, tag="add"):
    """Start one generation. ``n > 1`` is n requests."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    cache_salt: str = ""  # requests share prefix blocks only within one salt
    priority: int = 0  # lower is served earlier
    arrival_s: float = 0.0  # time.monotonic() of the server; same clock in both processes


class AbortRequest(msgspec.Struct, frozen=True, kw_only=True, tag="abort"):
    """Forget a request, free its blocks within one step. Unknown ids are ignored: it may have ended."""

    request_id: str


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, tag="shutdown"):
    """Abort what runs and exit 0. The server has drained before it sends this."""


Command = AddRequest | AbortRequest | Shutdown


class TokenLogprob(msgspec.Struct, frozen=True):
    """Natural-log probabilities at one position, of the raw logits (no temperature, no penalties)."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]  # most likely first
    rank: int = (
        0  # of token_id: 1 + how many tokens of the vocabulary have a higher raw logit; 0: not counted
    )


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What one step gave one request: new output tokens, or its end, or both."""

    request_id: str
    token_ids: list[int] = []  # includes the eos or stop token that ended it
    logprobs: list[TokenLogprob] = []  # one per token when asked for
    # When asked for, of the prompt's tokens from the second on, in their order, as they are computed; the
    # last of them come with the first output token.
    prompt_logprobs: list[TokenLogprob] = []
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it, when finish_reason is stop
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache at first admission
    queue_s: float | None = None  # with the first tokens: from AddRequest.arrival_s to first admission
    num_preemptions: int = 0  # times that it had to give its blocks back so far
    error: str | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and totals since start, for /metrics and /health."""

    num_waiting: int = 0
    num_running: int = 0
    num_in_step: int = 0  # requests that the latest step computed; some have ended with it
    kv_usage: float = 0.0  # used blocks / all blocks, 0..1; cached but unreferenced blocks count as free
    num_preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up
    prefix_hits: int = 0  # prompt tokens found
    num_steps: int = 0
    num_scheduled_tokens: int = 0  # total over all steps
    num_drafts: int = 0  # guesses at what comes next; see core.drafts
    num_draft_tokens: int = 0  # tokens in them
    num_accepted_tokens: int = 0  # of those, right ones


class StepOutputs(msgspec.Struct, frozen=True, kw_only=True, tag="outputs"):
    """One step's results; sent without outputs about once a second while idle, as a heartbeat."""

    outputs: list[RequestOutput]
    stats: EngineStats


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Weights are loaded and a warm-up step has run."""

    max_model_len: int
    num_blocks: int
    block_size: int
    vocab_size: int
    device: str  # "cpu" or "cuda:0"
    dtype: str  # "bfloat16", "float16" or "float32"
    eos_token_ids: tuple[int, ...]  # end a request unless ignore_eos; the model's own files name them
    weights_bytes: int  # as they lie in memory
    kv_cache_bytes: int
    load_s: float
    async_scheduling: bool = False  # a step may be submitted before the one before it is done


class EngineFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """Start-up or a step failed for good; the process exits non-zero right after."""

    reason: str  # see errors.ModelError.reason; "EngineCrashed" for the rest
    message: str


Event = StepOutputs | EngineReady | EngineFailed

_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def encode_frame(message: Command | Event) -> bytes:
    """Return the message as one frame: a little-endian uint32 length, then msgpack."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """Return the number of body bytes that follow a header of HEADER_BYTES bytes."""
    (length,) = _LENGTH.unpack(header)
    return int(length)


def decode_command(body: bytes) -> Command:
    """Decode a frame's body in the engine. Raises msgspec.DecodeError on anything that is not a Command."""
    return _command_decoder.decode(body)


def decode_event(body: bytes) -> Event:
    """Decode a frame's body in the server. Raises msgspec.DecodeError on anything that is not an Event."""
    return _event_decoder.decode(body)
