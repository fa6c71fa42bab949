"""What the images' recipes copy is what their builds are given."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

from cluster.images import Image, context_files
from product import images

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = [image for image in images() if image.context == REPOSITORY]


def copied(dockerfile: Path) -> list[str]:
    """Sources of the COPY lines that take files from the context."""
    lines = [line.split() for line in dockerfile.read_text().splitlines() if line.startswith("COPY ")]
    return [name for line in lines if not line[1].startswith("--from") for name in line[1:-1]]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.dockerfile.name)
def test_every_file_that_is_copied_is_in_the_context(image: Image) -> None:
    given = context_files(image)
    wanted = copied(image.dockerfile)
    assert len(wanted) > 4
    assert [name for name in wanted if not any(f"{file}/".startswith(f"{name}/") for file in given)] == []


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.dockerfile.name)
def test_docker_is_sent_what_is_copied(image: Image) -> None:
    sent = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    assert [name for name in copied(image.dockerfile) if name.split("/")[0] not in sent] == []


def test_compiled_files_stay_out_of_the_context() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert any(fnmatch.fnmatch("a/libstoker_cpu.so", pattern.removeprefix("**/")) for pattern in ignored[4:])
    for image in IMAGES:
        assert [name for name in context_files(image) if name.endswith((".so", ".pyc"))] == []
