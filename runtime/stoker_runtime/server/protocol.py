"""The bodies clients send: OpenAI's completions and chat, and /tokenize and /detokenize. Pure.

What a body has beside these fields is ignored and named, or refused where it would have changed the answer:
see `unoffered`. A null is as good as left out. vLLM's extra fields keep their vLLM names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from stoker_runtime.server.fields import (
    MAX_N,
    MAX_STOP_TOKEN_IDS,
    MESSAGES_SCHEMA,
    BadWords,
    LogitBias,
    LogLabels,
    LogText,
    Prompts,
    Seed,
    StopStrings,
    TemplateValues,
    TokenId,
    TokenLimit,
    invalid,
)
from stoker_runtime.server.history import History, read_history
from stoker_runtime.server.unoffered import (
    CHAT_NOT_OFFERED,
    NOT_OFFERED,
    check_offered,
    check_tools,
    ignored_names,
)

Messages = Annotated[History, PlainValidator(read_history), WithJsonSchema(MESSAGES_SCHEMA)]
# The likeliest tokens at each position; -1: all of the vocabulary. What an answer holds of them is limited.
NumLogprobs = Annotated[int, Field(ge=-1, lt=2**31, description="-1: all of the vocabulary")]
Switch = bool | None


def _from_switch(value: object) -> object:
    """Return a number of log-probabilities for a chat's switch: true asks for the tokens' own."""
    return (0 if value else None) if isinstance(value, bool) else value


class Body(BaseModel):
    """A JSON object, of which unknown fields are left out."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    # Other names under which clients send a field: the first that is there counts, behind its own.
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        fields = {key: item for key, item in value.items() if item is not None}
        cls.check(fields)
        return {name: fields[found] for name, found in cls._found(fields).items()}

    @classmethod
    def _found(cls, fields: Mapping[str, Any]) -> dict[str, str]:
        """Return under which name each field is there."""
        names = ((name, (name, *cls.aliases.get(name, ()))) for name in cls.model_fields)
        found = ((name, next((other for other in others if other in fields), None)) for name, others in names)
        return {name: other for name, other in found if other is not None}

    @classmethod
    def ignored(cls, body: Mapping[str, Any], prefix: str = "") -> list[str]:
        """Return the paths of what of a JSON object nobody looks at; null is as good as left out."""
        fields = {key: item for key, item in body.items() if item is not None}
        return ignored_names(fields, cls._found(fields).values(), prefix)

    def unused(self) -> list[str]:
        """Return the names of its fields that have no effect beside the others."""
        return []

    @classmethod
    def check(cls, fields: Mapping[str, Any]) -> None:
        """Refuse what is not offered; raises PydanticCustomError."""


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: Switch = None
    continuous_usage_stats: Switch = None


class SamplingBody(Body):
    """What completions and chat have in common. None means: the model's own default, else OpenAI's."""

    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "max_tokens": ("n_predict", "num_predict", "max_new_tokens"),
        "repetition_penalty": ("repeat_penalty",),
    }

    model: str | None = None
    stream: Switch = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stop: StopStrings = ()
    max_tokens: TokenLimit | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, description="0: the likeliest token alone")] | None = None
    seed: Seed | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: LogitBias = Field(default_factory=dict)
    # vLLM's extra fields
    top_k: Annotated[int, Field(lt=2**31, description="0 and less mean: all tokens")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0, description="0 and 1: none")] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: Switch = None
    skip_special_tokens: Switch = None
    include_stop_str_in_output: Switch = None
    add_special_tokens: Switch = None
    bad_words: BadWords = ()
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    prompt_logprobs: Annotated[NumLogprobs | None, BeforeValidator(_from_switch)] = None
    truncate_prompt_tokens: (
        Annotated[
            int,
            Field(ge=-1, lt=2**31, description="Keeps so many at the end; -1: as many as there is room for"),
        ]
        | None
    ) = None
    return_token_ids: Switch = None
    return_tokens_as_token_ids: Switch = None
    echo: Switch = None
    cache_salt: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31, description="Lower is served earlier")] | None = (
        None
    )
    # They name the caller or label a stored answer. Nothing is stored; they go to the log.
    user: LogText | None = None
    metadata: LogLabels | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        asked = self.stream_options
        if asked is not None and (asked.include_usage or asked.continuous_usage_stats) and not self.stream:
            raise invalid("is only for streams; set `stream` or leave it out", "stream_options")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise invalid(f"is {self.best_of}, fewer than the {self.n} that `n` asks for", "best_of")
        if self.stream and (self.best_of or 1) > (self.n or 1):
            raise invalid("is not for streams: which is best shows at the end", "best_of")
        if self.stream and self.prompt_logprobs is not None:
            raise invalid("is not for streams; leave out `stream`", "prompt_logprobs")
        return self


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: Prompts
    suffix: str | None = None
    logprobs: Annotated[NumLogprobs | None, BeforeValidator(_from_switch)] = None

    @classmethod
    def check(cls, fields: Mapping[str, Any]) -> None:
        """Refuse what is not offered."""
        check_offered(fields, NOT_OFFERED)


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: TokenLimit | None = None
    # What OpenAI has in place of `user`: to whom an answer goes, and what shares a prefix. Both go to the
    # log; prefixes are found without a hint.
    safety_identifier: LogText | None = None
    prompt_cache_key: LogText | None = None
    logprobs: Switch = None
    top_logprobs: NumLogprobs | None = None
    add_generation_prompt: Switch = None
    continue_final_message: Switch = None
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)
    # They speak to the model, where its template reads them.
    reasoning_effort: str | None = None
    verbosity: str | None = None
    enable_thinking: Switch = None
    documents: list[Any] | None = None

    @classmethod
    def check(cls, fields: Mapping[str, Any]) -> None:
        """Refuse what is not offered."""
        check_offered(fields, CHAT_NOT_OFFERED)
        check_tools(fields, "tools", "tool_choice")
        check_tools(fields, "functions", "function_call")

    def unused(self) -> list[str]:
        """See Body."""
        names = ["top_logprobs"] if self.top_logprobs and self.logprobs is False else []
        limits = (self.max_tokens, self.max_completion_tokens)
        return [*names, "max_tokens"] if None not in limits and limits[0] != limits[1] else names

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "and `add_generation_prompt` exclude each other: an answer begins or goes on",
                "continue_final_message",
            )
        return self


class TokenizeBody(Body):
    """POST /tokenize: a plain prompt, or messages as the chat template renders them."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: Switch = Field(default=None, description="Default: true for a prompt only")
    add_generation_prompt: Switch = None
    continue_final_message: Switch = None
    return_token_strs: Switch = None
    chat_template_kwargs: TemplateValues = Field(default_factory=dict)

    @classmethod
    def check(cls, fields: Mapping[str, Any]) -> None:
        """Refuse what is not offered."""
        check_offered(fields, {"chat_template": ()})
        check_tools(fields, "tools", "tool_choice")

    def unused(self) -> list[str]:
        """See Body."""
        of_messages = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")
        return [name for name in of_messages if self.prompt is not None and getattr(self, name)]

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("or `messages` is needed, and only one of them", "prompt")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "and `add_generation_prompt` exclude each other: an answer begins or goes on",
                "continue_final_message",
            )
        return self


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=2**20)]
