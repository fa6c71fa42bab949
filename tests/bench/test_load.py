"""The command line, as a process of its own, against a scripted server."""

import asyncio
import json
import os
import sys
from pathlib import Path

from aiohttp import web
from click.testing import CliRunner

import load
from loadgen.process import memory

BENCH = Path(load.__file__)
STREAM = (
    b'data: {"choices": [{"text": "a", "finish_reason": "length"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 1}}\n\n'
    b"data: [DONE]\n\n"
)


async def test_runs_until_standard_input_closes_and_tells_how_far_it_is_when_asked() -> None:
    num_seen = 0
    ten_seen = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal num_seen
        num_seen += 1
        if num_seen == 10:
            ten_seen.set()
        return web.Response(body=STREAM, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/completions", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    arguments = ["--url", url, "--model", "m", "--output-tokens", "1", "--until-eof", "--records"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(BENCH), *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        await asyncio.wait_for(ten_seen.wait(), 60)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        told = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        out, _ = await asyncio.wait_for(process.communicate(b""), 60)
    finally:
        await runner.cleanup()
    report = json.loads(out)
    assert process.returncode == 0
    assert report["summary"]["requests"] == len(report["records"]) == num_seen >= 10
    # One is in flight at any time, so the tenth was the newest at the earliest moment of the question.
    assert 9 <= len(told["e2e_s"]) <= num_seen
    assert told["failed"] == 0
    assert report["records"][8]["started_s"] < told["now_s"] <= report["summary"]["duration_s"]
    assert report["summary"]["failures"] == {}


def test_a_run_without_an_end_is_refused() -> None:
    result = CliRunner().invoke(load.main, ["--url", "http://127.0.0.1:1", "--model", "m"])
    assert result.exit_code == 2
    assert "--until-eof" in result.output


def test_failed_requests_make_the_exit_status_1() -> None:
    arguments = ["--url", "http://127.0.0.1:1", "--model", "m", "--requests", "2"]
    result = CliRunner().invoke(load.main, arguments)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["summary"]["failures"] == {"connect": 2}


async def test_memory_counts_the_children_too() -> None:
    alone = memory(os.getpid())
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys; b = bytearray(b'x') * (64 << 20); print(); sys.stdin.read()",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    await asyncio.wait_for(child.stdout.readline(), 30)
    both = memory(os.getpid())
    await asyncio.wait_for(child.communicate(b""), 30)
    assert both.num_processes == alone.num_processes + 1
    assert both.rss_bytes - alone.rss_bytes > 60 << 20
    assert alone.pss_bytes <= alone.rss_bytes
