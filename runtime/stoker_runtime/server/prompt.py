"""A request's text as prompt tokens: template, tokenizer, checks. What takes long leaves the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from stoker_runtime.errors import ModelError, RequestError
from stoker_runtime.server.detokenize import TokenBytes
from stoker_runtime.server.protocol import Message
from stoker_runtime.server.template_process import TemplateProcess
from stoker_runtime.tokenizer_files import Assets

T = TypeVar("T")

logger = logging.getLogger(__name__)

# About a millisecond of tokenizing; a thread costs a fraction of that.
INLINE_CHARS = 4096


class TextRoom:
    """The text side of the model being served.

    Args:
        assets: the model's tokenizer, chat template and special tokens.

    Raises:
        ModelError: reason UnsupportedModel; see TokenBytes.
    """

    def __init__(self, assets: Assets) -> None:
        self.assets = assets
        self.token_bytes = TokenBytes(assets.tokenizer)
        self._template, self._no_template_reason = _compile(assets)
        self._longest_token = max(map(len, assets.tokenizer.get_vocab()), default=1)
        # One at a time: a second tokenizing thread would only take its core from the engine.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize")

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

    async def chat_ids(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
        extra: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Return the tokens of messages as the chat template renders them. It writes special tokens itself.

        Raises:
            RequestError: 400; the model has no chat template, the template refuses the messages, or they are
                too long for max_tokens, which shows before they are tokenized.
        """
        template = self._template
        if template is None:
            raise RequestError(self._no_template_reason, param="messages", code="no_chat_template")
        plain = [
            message.model_dump(include={"role", "content", "name"}, exclude_none=True) for message in messages
        ]

        def render_and_encode() -> list[int]:
            text = template.render(plain, add_generation_prompt=add_generation_prompt, extra=extra)
            self._check_text(text, max_tokens, "messages")
            return self._encode([text], add_special_tokens)[0]

        # Never in the event loop, which would stand still for as long as the template takes.
        return await asyncio.get_running_loop().run_in_executor(self._executor, render_and_encode)

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
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _compile(assets: Assets) -> tuple[TemplateProcess | None, str]:
    """Return the chat template, or why there is none: completions work without one."""
    if assets.chat_template is None:
        return None, "this model has no chat template; use /v1/completions"
    try:
        return TemplateProcess(assets.chat_template, assets.special_tokens), ""
    except ModelError as error:
        logger.warning("the model's chat template cannot be used: %s", error)
        return None, f"this model's chat template cannot be used ({error}); use /v1/completions"


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
