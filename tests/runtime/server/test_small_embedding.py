"""A tokenizer may have tokens that the model has no row for; a text with one is the client's to change."""

from __future__ import annotations

from typing import Any

import pytest
from server_builders import make_assets
from server_engine import FakeEngine, make_ready, running_stack

ASSETS = make_assets()
TOOL = ASSETS.tokenizer.get_vocab()["<tool>"]
READY = make_ready(vocab_size=TOOL)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": "a <tool> b"}, "prompt"),
        ("/v1/completions", {"prompt": ["fine", "a <tool> b"]}, "prompt"),
        ("/v1/completions", {"prompt": [1, TOOL]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "<tool>"}]}, "messages"),
    ],
)
async def test_a_token_beyond_the_embedding_is_a_400_that_names_it(
    path: str, fields: dict[str, Any], param: str
) -> None:
    async with running_stack(FakeEngine(ready=READY), ASSETS) as stack:
        response = await stack.http.post(path, json={"model": "tiny", **fields})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["code"]) == (param, "invalid_value")
        assert f"token {TOOL} ('<tool>')" in error["message"]
        assert f"ends at {TOOL - 1}" in error["message"]
        assert stack.engine.added == []


async def test_the_last_row_of_the_embedding_may_be_asked_for() -> None:
    async with running_stack(FakeEngine(ready=make_ready(vocab_size=TOOL + 1)), ASSETS) as stack:
        stack.say("b")
        response = await stack.http.post("/v1/completions", json={"model": "tiny", "prompt": "<tool>"})
        assert response.status_code == 200
