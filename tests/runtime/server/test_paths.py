from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_runtime.server.paths import Paths, needs_key

KNOWN = (
    *("/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"),
    *("/health", "/ready", "/load", "/drain", "/metrics", "/version", "/openapi.json"),
)
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (CHAT, CHAT),
        ("/v1/chat/completions/", CHAT),
        ("//v1/chat/completions", CHAT),
        ("/v1//chat///completions//", CHAT),
        ("/chat/completions", CHAT),
        ("/completions/", "/v1/completions"),
        ("/models", "/v1/models"),
        ("/v1/models//", "/v1/models"),
        ("/v1/v1/chat/completions", CHAT),
        ("/v1/v1//v1/models", "/v1/models"),
        ("/v1" * 20_000 + "/chat/completions", CHAT),
        ("/v1" * 20_000, "/v1"),
        ("/" * 60_000 + "v1/models", "/v1/models"),
        ("/v1/v1x/models", "/v1/v1x/models"),
        ("/models/tiny", "/v1/models/tiny"),
        ("/v1/models/hf://org/name", "/v1/models/hf://org/name"),
        ("//v1//models/org/name/", "/v1/models/org/name/"),
        ("/health/", "/health"),
        ("/v1/health", "/v1/health"),
        ("/v1", "/v1"),
        ("/", "/"),
        ("//", "/"),
        ("*", "*"),
        ("", ""),
        ("/llm/v1/models", "/llm/v1/models"),
        ("/v1/../health", "/v1/../health"),
        ("/V1/models", "/V1/models"),
        ("/v1/modelsx/a", "/v1/modelsx/a"),
        ("/v1/chat/completions\n", "/v1/chat/completions\n"),
    ],
)
def test_a_path_is_brought_into_its_one_form(asked: str, meant: str) -> None:
    assert Paths(KNOWN).meant(asked) == meant


@pytest.mark.parametrize(
    ("root_path", "asked", "meant"),
    [
        ("/llm", "/llm/v1/models", "/v1/models"),
        ("/llm", "/v1/models", "/v1/models"),
        ("/llm", "//llm//v1/models/", "/v1/models"),
        ("/llm", "/llm/chat/completions", CHAT),
        ("/llm", "/llm/models/a", "/v1/models/a"),
        ("/llm", "/llm", "/"),
        ("/llm", "/llmx/v1/models", "/llmx/v1/models"),
        ("/a/b.c", "/a/b.c/health", "/health"),
        ("/a/b.c", "/a/bxc/health", "/a/bxc/health"),
        ("/v1", "/v1/models", "/v1/models"),
        ("/v1", "/v1/v1/models", "/v1/models"),
        ("/v1", "/models/a", "/v1/models/a"),
        ("/health", "/health", "/health"),
        ("/health", "/health/ready", "/ready"),
        ("/models", "/models/v1/models/a", "/v1/models/a"),
    ],
)
def test_a_prefix_may_be_there_or_not(root_path: str, asked: str, meant: str) -> None:
    assert Paths(KNOWN, root_path).meant(asked) == meant


PARTS = st.sampled_from(
    ["v1", "V1", "chat", "completions", "models", "health", "tokenize", "a", "..", ".", "%2f", "llm", ""]
)
PATHS = st.lists(PARTS, max_size=8).map(lambda parts: "/" + "/".join(parts))


@given(PATHS | st.text(max_size=40).map("/".__add__))
def test_the_one_form_is_its_own(path: str) -> None:
    paths = Paths(KNOWN)
    assert paths.meant(paths.meant(path)) == paths.meant(path)


@given(st.sampled_from(KNOWN), st.lists(st.integers(1, 3), min_size=8, max_size=8), st.booleans())
def test_slashes_and_the_prefix_do_not_matter(known: str, slashes: Sequence[int], is_below: bool) -> None:
    parts = [*(["llm"] if is_below else []), *known.strip("/").split("/"), ""]
    asked = "".join("/" * number + part for number, part in zip(slashes, parts, strict=False))

    assert Paths(KNOWN, "/llm").meant(asked) == known


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("/v1/chat/completion", CHAT),
        ("/V1/Chat/Completions", CHAT),
        ("/api/v1/chat/completions", CHAT),
        ("/openai/deployments/gpt/chat/completions", CHAT),
        ("/v1/completion", "/v1/completions"),
        ("/v1/model", "/v1/models"),
        ("/v1/tokenize", "/tokenize"),
        ("/healthz", "/health"),
        ("/v1/embeddings", None),
        ("/", None),
        ("/" + "a" * 100_000, None),
    ],
)
def test_the_nearest_path_is_named(asked: str, nearest: str | None) -> None:
    assert Paths(KNOWN).nearest(asked) == nearest
    assert Paths(KNOWN, "/llm").nearest(asked) == (nearest and f"/llm{nearest}")


def test_only_probes_the_drain_and_the_description_need_no_api_key() -> None:
    assert {path for path in KNOWN if not needs_key(path)} == {
        *("/health", "/ready", "/load", "/drain", "/metrics", "/version", "/openapi.json")
    }
    assert needs_key("/v1/models/health")
    assert needs_key("/")
