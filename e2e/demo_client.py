"""The demo's chat: sent into the runtime's pod as `python -c`, so it has nothing but the standard library.

Arguments: base URL, model, question.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any


def events(base_url: str, model: str, question: str) -> Iterator[dict[str, Any]]:
    """Yield the chunks of one streamed chat completion."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 96,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Content-Type": "application/json"}
    url = base_url + "/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            data = line.removeprefix(b"data: ").strip()
            if line.startswith(b"data: ") and data != b"[DONE]":
                yield json.loads(data)


def main(base_url: str, model: str, question: str) -> None:
    """Print the answer as it comes, then how fast it came."""
    start = time.monotonic()
    first_s: float | None = None
    num_tokens = 0
    for event in events(base_url, model, question):
        if "error" in event:
            sys.exit(f"the server answered with an error: {event['error']}")
        num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        for choice in event["choices"]:
            text = choice["delta"].get("content") or ""
            if text and first_s is None:
                first_s = time.monotonic() - start
            print(text, end="", flush=True)
    if first_s is None:
        sys.exit("the server sent no text")
    rate = (num_tokens - 1) / (time.monotonic() - start - first_s)
    print(
        f"\n\n  ({num_tokens} tokens: the first after {first_s:.2f} s, then {rate:.0f} a second)", flush=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:4])
