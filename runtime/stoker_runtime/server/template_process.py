"""A chat template in a process of its own, which the kernel keeps small and the server ends when it hangs.

The sandbox keeps a template from the server's objects, but a single operator or filter may still take minutes
or gigabytes, and nothing inside the process can stop it. Here the worst that a template does is an error for
the request that it was rendered for.

`python -m stoker_runtime.server.template_process` is the other side: JSON frames on its standard input, one
answer to each on its standard output. JSON, because it carries whatever a client's JSON may hold.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from stoker_runtime.errors import ModelError, RequestError
from stoker_runtime.server.template import RENDER_LIMIT_S, ChatTemplate, Rendered, refusal

MEMORY_LIMIT_BYTES = 512 * 1024**2
_START_LIMIT_S = 30.0
_GRACE_S = 1.0  # the process itself notices most of what takes too long
_SIZE = struct.Struct("<I")
# What Python needs to start, and to tell a template the local time. Nothing else is there: a template that
# found a way out of its sandbox would look for keys and tokens.
_ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")

logger = logging.getLogger(__name__)

Frame = Mapping[str, Any]


class TemplateProcess:
    """A compiled chat template; the counterpart of template.ChatTemplate. Threads take turns.

    Args:
        source: Jinja source.
        variables: what the template sees besides the messages, such as bos_token.
        limit_s: longest time a rendering may take.
        is_started: start the process now rather than with the first rendering.

    Raises:
        ModelError: the source is no template, or none that can be compiled within the limits.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        *,
        limit_s: float = RENDER_LIMIT_S,
        is_started: bool = True,
    ) -> None:
        self._template = {"source": source, "variables": dict(variables), "limit_s": limit_s}
        self._limit_s = limit_s
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        if is_started:
            self._start()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """See ChatTemplate.render. A process that has ended is started again by the next call."""
        wanted = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "extra": dict(extra or {}),
        }
        with self._turn:
            try:
                answer = _ask(self._process or self._start(), wanted, self._limit_s + _GRACE_S)
            except RecursionError as error:  # before anything was sent
                raise refusal("they are nested too deeply") from error
            except (OSError, EOFError, ModelError) as error:
                logger.warning("the chat template's process is ended and will be started again: %s", error)
                self._end()
                raise refusal(error) from error
        if "error" in answer:
            raise RequestError(answer["error"], param=answer["param"], code=answer["code"])
        rendered = Rendered(**{**answer, "ignored": tuple(answer["ignored"])})
        logger.debug("rendered a chat", extra={"form": rendered.form, "ignored": rendered.ignored})
        return rendered

    def close(self) -> None:
        """End the process."""
        with self._turn:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        self._process, self._bury = process, weakref.finalize(self, _bury, process)
        try:
            answer = _ask(process, self._template, _START_LIMIT_S)
        except (OSError, EOFError) as error:
            self._end()
            raise ModelError(str(error)) from error
        if "error" in answer:
            self._end()
            raise ModelError(answer["error"])
        return process

    def _end(self) -> None:
        if self._process is not None:
            self._bury()
            self._process = None


def _bury(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    process.wait()


def _ask(process: subprocess.Popen[bytes], request: Frame, limit_s: float) -> dict[str, Any]:
    """Send a frame and return the answer.

    Raises:
        TimeoutError: there is none within the limit.
        EOFError, OSError: the process is gone.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    deadline_s = time.monotonic() + limit_s
    answers = process.stdout.fileno()
    arrival = select.poll()  # not select(), which knows the first 1024 files only
    arrival.register(answers, select.POLLIN)

    def read(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not arrival.poll(left_s * 1000):
                raise TimeoutError(f"takes longer than {limit_s:g} s")
            part = os.read(answers, size - len(data))
            if not part:
                raise EOFError("its process ended, which may have run out of memory")
            data += part
        return bytes(data)

    _write(process.stdin, request)
    (size,) = _SIZE.unpack(read(_SIZE.size))
    answer: dict[str, Any] = json.loads(read(size))
    return answer


def _write(pipe: IO[bytes], frame: Frame) -> None:
    data = json.dumps(frame).encode()
    left = memoryview(_SIZE.pack(len(data)) + data)
    while left:
        left = left[pipe.write(left) :]


def main() -> None:
    """Answer frames until the server is gone."""
    _limit_this_process()
    frames, answers = sys.stdin.buffer, os.fdopen(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    template: ChatTemplate | None = None
    while len(head := frames.read(_SIZE.size)) == _SIZE.size:
        request = json.loads(frames.read(*_SIZE.unpack(head)))
        if template is not None:
            _write(answers, _rendered(template, request))
            continue
        answer = {}
        try:
            template = ChatTemplate(request["source"], request["variables"], limit_s=request["limit_s"])
        # Jinja's own errors, and what Python says to the code that Jinja makes of the source
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        _write(answers, answer)


def _rendered(template: ChatTemplate, request: Frame) -> Frame:
    try:
        return asdict(template.render(**request))
    except RequestError as error:
        return {"error": str(error), "param": error.param, "code": error.code}


def _limit_this_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the server, which then drains
    _, hardest = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT_BYTES if hardest == resource.RLIM_INFINITY else min(hardest, MEMORY_LIMIT_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a sandbox may not let it; then the kernel chooses
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory is short, this process goes first


if __name__ == "__main__":
    main()
