"""A request's text as prompt tokens: template, tokenizer, checks. What takes long leaves the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from stoker_runtime.errors import ConfigError, ModelError, RequestError
from stoker_runtime.fim import infill
from stoker_runtime.server.control_tokens import ControlTokens, without_marks
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.template_choice import choose_template, no_template
from stoker_runtime.server.template_process import TemplateProcess
from stoker_runtime.tokenizer_files import Assets

T = TypeVar("T")

logger = logging.getLogger(__name__)

# About a millisecond of tokenizing; a thread costs a fraction of that.
INLINE_CHARS = 4096
# Some tens of milliseconds. Longer texts have a worker of their own, so that others need not wait for them.
LONG_CHARS = 64 * 1024


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages as the model reads them.

    Args:
        token_ids: the prompt's tokens.
        ignored: paths of what the template does not read: "messages[].name".
        prefix: with continue_final_message, the text of the final message that is continued.
    """

    token_ids: list[int]
    ignored: tuple[str, ...]
    prefix: str


class _Worker:
    """A thread that renders and tokenizes one text after the other."""

    def __init__(self, name: str, template: TemplateProcess | None) -> None:
        self.template = template
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)


class TextRoom:
    """The text side of the model being served.

    Args:
        assets: the model's tokenizer, chat template and special tokens.
        chat_template: what --chat-template says, see template_choice.
        sanitize_control_tokens: control tokens in messages are plain text.

    Raises:
        ConfigError: the template that was given cannot be used.
        ModelError: reason UnsupportedModel; see TokenBytes.
    """

    def __init__(
        self, assets: Assets, *, chat_template: str | None = None, sanitize_control_tokens: bool = False
    ) -> None:
        self.assets = assets
        self.token_bytes = TokenBytes(assets.tokenizer)
        self._longest_token = max(map(len, assets.tokenizer.get_vocab()), default=1)
        source = choose_template(assets, chat_template)
        template, self._no_template_reason = _compile(source, assets, is_given=chat_template is not None)
        self._control_tokens: ControlTokens | None = None
        later: TemplateProcess | None = None
        if template is not None and source is not None:
            later = TemplateProcess(source, assets.special_tokens, is_started=False)
            if sanitize_control_tokens:
                self._control_tokens = ControlTokens(assets.tokenizer, source)
        # No more than these two: a tokenizing thread takes its core from the engine.
        self._short, self._long = _Worker("tokenize", template), _Worker("tokenize-long", later)

    async def prompt_ids(
        self, prompts: Sequence[str], *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[list[int]]:
        """Return the tokens of each plain prompt.

        Raises:
            RequestError: 400; a prompt is too long for max_tokens, which shows before it is tokenized.
        """
        for prompt in prompts:
            self._check_text(prompt, max_tokens, "prompt")
        num_chars = sum(len(prompt) for prompt in prompts)
        return await self._run(num_chars, lambda: self._encode(prompts, add_special_tokens))

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        extra: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
    ) -> ChatPrompt:
        """Return the tokens of messages as the chat template renders them. It writes special tokens itself.

        Args:
            messages: role and content of each, and whatever else the client sent.
            add_generation_prompt: end with the opening of the assistant's answer.
            continue_final_message: end with the final message's text instead, for the model to go on with.
            add_special_tokens: let the tokenizer add what it adds to a plain prompt.
            extra: further variables of the template.
            max_tokens: of a prompt that is not too long.

        Raises:
            RequestError: 400; the model has no chat template, the template refuses the messages, or they are
                too long for max_tokens, which shows before they are tokenized.
        """
        worker = self._short if _num_chars(messages, LONG_CHARS) <= LONG_CHARS else self._long
        template, control = worker.template, self._control_tokens
        if template is None:
            raise RequestError(self._no_template_reason, param="messages", code="no_chat_template")

        def render_and_encode() -> ChatPrompt:
            rendered = template.render(
                messages if control is None else control.mark(list(messages)),
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                extra=extra if control is None else control.mark(extra or {}),
            )
            self._check_text(rendered.text, max_tokens, "messages")
            if control is None:
                token_ids = self._encode([rendered.text], add_special_tokens)[0]
            else:
                token_ids = control.encode(rendered.text, add_special_tokens=add_special_tokens)
            prefix = rendered.prefix if control is None else without_marks(rendered.prefix)
            return ChatPrompt(token_ids, rendered.ignored, prefix)

        # Never in the event loop, which would stand still for as long as the template takes.
        return await asyncio.get_running_loop().run_in_executor(worker.executor, render_and_encode)

    async def fim_ids(self, prefix: str, suffix: str, max_tokens: int | None = None) -> list[int]:
        """Return the tokens of a prompt whose answer belongs between two texts.

        Raises:
            RequestError: 400; the model has no tokens for that, or the texts are too long for max_tokens.
        """
        tokens = self.assets.fim
        if tokens is None:
            raise RequestError(
                "`suffix` needs a model with fill-in-the-middle tokens, which this one has not; leave it out",
                param="suffix",
                code="invalid_value",
            )
        self._check_text(prefix, max_tokens, "prompt")
        self._check_text(suffix, max_tokens, "suffix")
        tokenizer = self.assets.tokenizer
        return await self._run(len(prefix) + len(suffix), lambda: infill(tokenizer, tokens, prefix, suffix))

    async def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens included."""
        decode = self.assets.tokenizer.decode
        return await self._run(len(token_ids), lambda: str(decode(token_ids, skip_special_tokens=False)))

    async def token_names(self, token_ids: Sequence[int]) -> list[str | None]:
        """Return how the vocabulary writes each token; None for an id it leaves unused."""
        name = self.assets.tokenizer.id_to_token
        return await self._run(len(token_ids), lambda: [name(token_id) for token_id in token_ids])

    def check_known(self, token_ids: Sequence[int], vocab_size: int, param: str) -> None:
        """Refuse tokens that the model has no row for: some tokenizers have more of them.

        Raises:
            RequestError: 400; names the token.
        """
        highest = max(token_ids, default=0)
        if highest >= vocab_size:
            name = self.assets.tokenizer.id_to_token(highest)
            raise RequestError(
                f"`{param}` holds token {highest}{'' if name is None else f' ({name!r})'}, but the model's "
                f"vocabulary ends at {vocab_size - 1}",
                param=param,
                code="invalid_value",
            )

    def _check_text(self, text: str, max_tokens: int | None, param: str) -> None:
        """Refuse a text that is too long even if it consisted of the vocabulary's longest token."""
        if max_tokens is not None and len(text) > max_tokens * self._longest_token:
            raise RequestError(
                f"`{param}` has {len(text)} characters, which is more than {max_tokens} tokens, "
                "all that prompt and answer together may have",
                param=param,
                code="context_length_exceeded",
            )

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        # The batch call lets go of the interpreter lock while it works; the single one does not.
        encodings = self.assets.tokenizer.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [list(encoding.ids) for encoding in encodings]

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size <= INLINE_CHARS:
            return work()
        worker = self._short if size <= LONG_CHARS else self._long
        return await asyncio.get_running_loop().run_in_executor(worker.executor, work)


def _compile(source: str | None, assets: Assets, *, is_given: bool) -> tuple[TemplateProcess | None, str]:
    """Return the chat template, or why there is none: completions work without one.

    Raises:
        ConfigError: --chat-template gave it, and it is no template.
    """
    if source is None:
        return None, no_template(assets)
    try:
        return TemplateProcess(source, assets.special_tokens), ""
    except ModelError as error:
        if is_given:
            raise ConfigError(f"--chat-template is no chat template that can be used: {error}") from error
        logger.warning("the model's chat template cannot be used: %s", error)
        return None, (
            f"this model's chat template cannot be used ({error}); start the server with --chat-template, "
            "or use /v1/completions"
        )


def _num_chars(value: object, enough: int) -> int:
    """Return how much text JSON holds, or a number above `enough`."""
    num_chars, waiting = 0, [value]
    while waiting and num_chars <= enough:
        item = waiting.pop()
        if isinstance(item, str):
            num_chars += len(item)
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, Sequence):
            waiting += item
    return num_chars


def check_length(num_tokens: int, max_model_len: int, param: str) -> None:
    """Refuse a prompt that is empty or leaves no room for an answer.

    Raises:
        RequestError: 400; context_length_exceeded when it is too long.
    """
    if num_tokens == 0:
        raise RequestError(f"`{param}` has no tokens", param=param, code="invalid_value")
    if num_tokens >= max_model_len:
        raise RequestError(
            f"`{param}` has {num_tokens} tokens, but prompt and answer together may have {max_model_len}",
            param=param,
            code="context_length_exceeded",
        )
