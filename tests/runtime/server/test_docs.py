from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from server_engine import running_stack

from stoker_runtime.server import app, problems
from stoker_runtime.server.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    SamplingBody,
    StreamOptions,
    TokenizeBody,
)
from stoker_runtime.server.unoffered import CHAT_NOT_OFFERED

DOCS = Path(__file__).parents[3] / "docs"


def words(page: str) -> set[str]:
    """Everything a page puts in backquotes."""
    return set(re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()))


@pytest.mark.parametrize("model", [ChatBody, CompletionBody, DetokenizeBody, StreamOptions, TokenizeBody])
def test_every_field_is_documented(model: type[BaseModel]) -> None:
    assert set(model.model_fields) - words("http-api.md") == set()


def test_every_other_name_of_a_field_is_documented() -> None:
    assert {name for names in SamplingBody.aliases.values() for name in names} - words("http-api.md") == set()


def test_what_is_not_offered_is_documented_with_what_asks_for_nothing() -> None:
    table = (DOCS / "http-api.md").read_text().partition("## What is not offered")[2].partition("\n\n## ")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines() if row.startswith("| `")]
    documented = {
        name: tuple(map(json.loads, re.findall(r"`([^`]+)`", accepted)))
        for names, accepted in rows
        for name in re.findall(r"`([^`]+)`", names)
        if name in CHAT_NOT_OFFERED
    }

    assert documented == dict(CHAT_NOT_OFFERED)


def test_every_error_code_is_documented_and_exists() -> None:
    sources = "".join(path.read_text() for path in Path(str(app.__file__)).parent.glob("*.py"))
    table = (DOCS / "http-api.md").read_text().partition("## Errors")[2]
    documented = set(re.findall(r"`([a-z]+_[a-z_]+|loading)`", table))

    assert {code for code in documented if f'"{code}"' not in sources} == set()
    in_code = set(re.findall(r'code="([a-z_]+)"', sources)) | set(problems._CODES.values())
    assert in_code - documented == set()


async def test_every_metric_is_documented() -> None:
    async with running_stack() as stack:
        text = (await stack.http.get("/metrics")).text

    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert "vllm:cache_config_info" in families
    assert families - words("runtime.md") - words("http-api.md") == set()
