"""One request to an OpenAI-compatible server: what is sent, how the answer is judged, and the I/O between.

An answer counts as good only when it is complete: status 200, a finish reason, the closing `[DONE]` of a
stream, token counts in `usage`, and all tokens asked for when end-of-sequence is ignored.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from loadgen.results import Outcome
from loadgen.sse import DONE, SseParser

Api = Literal["completions", "chat"]
PATHS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they have in common."""

    url: str
    model: str
    api: Api = "completions"
    stream: bool = True
    ignore_eos: bool = True
    output_tokens: int = 64
    timeout_s: float = 120.0
    extra: Mapping[str, Any] = field(default_factory=dict)  # more fields of the body


@dataclass
class Answer:
    """What has arrived of one answer, with the times it arrived at."""

    text_at_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    done: bool = False
    error: str | None = None

    def event(self, payload: str, now_s: float) -> None:
        """Take in one event of a stream, or the whole body of an answer that is not streamed."""
        if payload == DONE:
            self.done = True
            return
        body = json.loads(payload)
        if "error" in body:
            self.error = json.dumps(body["error"])
            return
        self.usage = body.get("usage") or self.usage
        for choice in body.get("choices", ()):
            text = choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content")
            if text:
                self.text_at_s.append(now_s)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def fault(self, target: Target) -> tuple[str, str] | None:
        """Return (reason, detail) of what the finished answer lacks; None when it is whole."""
        if self.error is not None:
            return "error_event", self.error
        if target.stream and not self.done:
            return "cut_stream", f"the stream ended without {DONE} after {len(self.text_at_s)} pieces"
        if self.finish_reason is None:
            return "no_finish_reason", "no choice had a finish_reason"
        if self.usage is None:
            return "no_usage", "the answer had no usage"
        num_tokens = self.usage["completion_tokens"]
        if target.ignore_eos and num_tokens != target.output_tokens:
            return "wrong_length", f"{num_tokens} output tokens instead of {target.output_tokens}"
        return None


def body(target: Target, prompt: str) -> dict[str, Any]:
    """Return the JSON of a greedy request."""
    fields: dict[str, Any] = {
        "model": target.model,
        "max_tokens": target.output_tokens,
        "temperature": 0,
        "stream": target.stream,
    }
    if target.api == "chat":
        fields["messages"] = [{"role": "user", "content": prompt}]
    else:
        fields["prompt"] = prompt
    if target.ignore_eos:
        fields["ignore_eos"] = True
    if target.stream:
        fields["stream_options"] = {"include_usage": True}
    return {**fields, **target.extra}


def session(*, keep_alive: bool) -> aiohttp.ClientSession:
    """Return an HTTP session without a connection limit; a new connection per request unless `keep_alive`."""
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive, use_dns_cache=keep_alive)
    return aiohttp.ClientSession(connector=connector)


async def send(
    http: aiohttp.ClientSession,
    target: Target,
    prompt: str,
    index: int,
    zero_s: float,
    on_text: Callable[[], None] | None = None,
) -> Outcome:
    """Send one request, once, and read its answer to the end.

    Args:
        http: from `session`.
        target: where to and what for.
        prompt: the prompt's text.
        index: number of the request in its run.
        zero_s: time.perf_counter() at the start of the run.
        on_text: called once, when the first text has arrived.
    """
    answer = Answer()
    start_s = time.perf_counter()
    try:
        async with asyncio.timeout(target.timeout_s):
            fault = await _exchange(http, target, prompt, answer, on_text)
    except TimeoutError:
        fault = ("timeout", f"no complete answer in {target.timeout_s:g} s")
    except (aiohttp.ClientError, OSError) as error:
        fault = (_reason(error, answer), f"{type(error).__name__}: {error}")
    except (ValueError, KeyError) as error:
        fault = ("bad_body", f"{type(error).__name__}: {error}")
    end_s = time.perf_counter()
    times = answer.text_at_s
    usage = answer.usage or {}
    return Outcome(
        index=index,
        started_s=start_s - zero_s,
        e2e_s=end_s - start_s,
        ttft_s=times[0] - start_s if times and target.stream else None,
        itl_s=tuple(after - before for before, after in itertools.pairwise(times)),
        prompt_tokens=usage.get("prompt_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
        failure=fault[0] if fault else None,
        detail=fault[1] if fault else "",
    )


async def _exchange(
    http: aiohttp.ClientSession,
    target: Target,
    prompt: str,
    answer: Answer,
    on_text: Callable[[], None] | None,
) -> tuple[str, str] | None:
    url = target.url.rstrip("/") + PATHS[target.api]
    # aiohttp resends only idempotent requests when a reused connection fails, and POST is not one.
    async with http.post(
        url, json=body(target, prompt), timeout=aiohttp.ClientTimeout(total=None)
    ) as response:
        if response.status != 200:
            return f"http_{response.status}", (await response.text())[:300]
        if not target.stream:
            answer.event(await response.text(), time.perf_counter())
            return answer.fault(target)
        parser = SseParser()
        async for piece in response.content.iter_any():
            now_s = time.perf_counter()
            for payload in parser.feed(piece):
                had_text = bool(answer.text_at_s)
                answer.event(payload, now_s)
                if on_text is not None and answer.text_at_s and not had_text:
                    on_text()
    return answer.fault(target)


def _reason(error: Exception, answer: Answer) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect"
    return "cut_stream" if answer.text_at_s else "disconnected"
