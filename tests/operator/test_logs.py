import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys
from stoker_operator.logs import configure
configure(sys.argv[1])
for name in ("stoker_operator.reconcile", "kopf.objects", "aiohttp.access"):
    logging.getLogger(name).info("said by %s", name)
"""


@pytest.mark.parametrize(
    ("level", "speakers"),
    [
        pytest.param("info", ["stoker_operator.reconcile"], id="info-without-events-and-probes"),
        pytest.param("debug", ["stoker_operator.reconcile", "kopf.objects", "aiohttp.access"], id="debug"),
        pytest.param("error", [], id="error"),
    ],
)
def test_lines_are_json_and_only_news_at_info(level: str, speakers: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, level], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == speakers
    assert all(line["message"] == f"said by {line['logger']}" for line in lines)
