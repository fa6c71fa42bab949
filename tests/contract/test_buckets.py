"""What the CRD lets pass as a bucket's source, the runtime reads; and what both refuse."""

from __future__ import annotations

import re

import pytest

from stoker_operator.api.crd import crd
from stoker_runtime.errors import ConfigError
from stoker_runtime.sources import parse_source
from stoker_runtime.sources.bucket import BucketSource

SPEC = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
SOURCE = SPEC["properties"]["model"]["properties"]["source"]
(RULE,) = [
    rule["rule"]
    for rule in SOURCE["x-kubernetes-validations"]
    if rule["rule"].startswith("!self.startsWith('s3:")
]
PATTERN = RULE.split("self.matches('")[1].removesuffix("')")


def is_accepted(text: str) -> bool:
    return re.fullmatch(PATTERN, text) is not None and not re.search(r"/\.\.(/|$)", text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://models",
        "s3://models/",
        "s3://team.models-1/a/b",
        "s3://models/a b/ü/v=3/",
        "s3://models/a.gguf",
        "s3://models/a/m-00001-of-00002.gguf",
    ],
)
def test_a_source_that_is_applied_is_read(text: str) -> None:
    assert is_accepted(text)
    assert isinstance(parse_source(text), BucketSource)


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3://Models/a", "s3://m/a", "s3://models//a", "s3:///a", "s3://models/../a", "s3://models-/a"],
)
def test_a_source_that_is_none_is_refused_by_both(text: str) -> None:
    assert not is_accepted(text)
    with pytest.raises(ConfigError):
        parse_source(text)
