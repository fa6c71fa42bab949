"""The bodies clients send: OpenAI's completions and chat, and /tokenize and /detokenize. Pure.

Every field is honoured, or listed here with the values that ask for nothing, or refused as unknown. vLLM's
extra sampling fields keep their vLLM names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stoker_runtime.server.fields import (
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP_TOKEN_IDS,
    LogitBias,
    Only,
    Prompts,
    StopStrings,
    TemplateValues,
    TextContent,
    TokenCount,
    TokenId,
    invalid,
)


class Body(BaseModel):
    """A JSON object in which nothing is coerced and nothing is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Only(False)] = None


class SamplingBody(Body):
    """What completions and chat have in common. None means: the model's own default, else OpenAI's."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stop: StopStrings = ()
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias = Field(default_factory=dict)
    # vLLM's extra fields
    top_k: Annotated[int, Field(ge=-1, lt=2**31, description="-1 and 0 mean: all tokens")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31, description="Lower is served earlier")] | None = (
        None
    )
    # They name the caller or label a stored answer. Nothing is stored; `user` goes to the log.
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: Annotated[Any, Only(False)] = None
    service_tier: Annotated[Any, Only("auto", "default")] = None
    # vLLM's fields that this server does not offer
    bad_words: Annotated[Any, Only([])] = None
    allowed_token_ids: Annotated[Any, Only()] = None
    prompt_logprobs: Annotated[Any, Only()] = None
    truncate_prompt_tokens: Annotated[Any, Only()] = None
    structured_outputs: Annotated[Any, Only()] = None
    length_penalty: Annotated[Any, Only(1.0)] = None
    use_beam_search: Annotated[Any, Only(False)] = None
    spaces_between_special_tokens: Annotated[Any, Only(True)] = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise invalid("is only for streams; set `stream` or leave it out", "stream_options")
        return self


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    echo: Annotated[Any, Only(False)] = None
    suffix: Annotated[Any, Only("")] = None

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise invalid("is not supported by this server unless it equals `n`; leave it out", "best_of")
        return self


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: TextContent
    name: Annotated[str, Field(max_length=256)] | None = None
    # An assistant's message as this or another server returned it carries these, empty.
    refusal: Annotated[Any, Only()] = None
    audio: Annotated[Any, Only()] = None
    annotations: Annotated[Any, Only([])] = None
    tool_calls: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only()] = None
    tool_call_id: Annotated[Any, Only()] = None
    reasoning: Annotated[Any, Only()] = None
    reasoning_content: Annotated[Any, Only()] = None


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: TokenCount | None = None
    # What OpenAI has in place of `user`: to whom an answer goes, and what shares a prefix. Both go to the
    # log; prefixes are found without a hint.
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_retention: Annotated[Any, Only("in-memory", "in_memory")] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)
    response_format: Annotated[Any, Only({"type": "text"})] = None
    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, Only(True, False)] = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    modalities: Annotated[Any, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    reasoning_effort: Annotated[Any, Only()] = None
    verbosity: Annotated[Any, Only()] = None
    web_search_options: Annotated[Any, Only()] = None
    chat_template: Annotated[Any, Only()] = None
    add_generation_prompt: Annotated[Any, Only(True)] = None
    continue_final_message: Annotated[Any, Only(False)] = None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("needs `logprobs` to be true", "top_logprobs")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise invalid("and `max_completion_tokens` differ; send one of them", "max_tokens")
        return self


class TokenizeBody(Body):
    """POST /tokenize: a plain prompt, or messages as the chat template renders them."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = Field(default=None, description="Default: true for a prompt only")
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("or `messages` is needed, and only one of them", "prompt")
        if self.prompt is not None and self.add_generation_prompt is not None:
            raise invalid("is only for `messages`", "add_generation_prompt")
        if self.prompt is not None and self.chat_template_kwargs:
            raise invalid("is only for `messages`", "chat_template_kwargs")
        return self


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=2**20)]
