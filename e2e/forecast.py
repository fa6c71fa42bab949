"""How long `make demo` will take: what an earlier run left ready, and what is to be made."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass

import needs
import product
from cluster import baseimage, build, buildah, images, packages
from cluster.prerequisites import CLIENTS
from cluster.progress import found, say
from cluster.versions import load_tools, tools_of


@dataclass(frozen=True)
class Part:
    """One thing that a first run makes.

    Attributes:
        seconds: what making it takes on 2 quiet cores.
        is_ready: whether an earlier run left it.
    """

    title: str
    seconds: float
    is_ready: bool


def stages(*, with_kind: bool) -> list[str]:
    """What has to be compiled for the demo: all of it, or with kind only the clients that are not on PATH."""
    if not with_kind:
        return ["e2e"]
    return sorted(stage for name, stage in CLIENTS.items() if shutil.which(name) is None)


def parts(*, with_kind: bool, with_docker: bool) -> list[Part]:
    """Look at what the demo needs; changes nothing.

    Args:
        with_kind: whether kind runs the cluster.
        with_docker: whether a Docker engine builds the images.

    Raises:
        ClusterError: neither Docker nor Debian or Ubuntu.
    """
    known = load_tools()
    tools = {tool.name: tool for stage in stages(with_kind=with_kind) for tool in tools_of(stage, known)}
    results = [
        Part(f"compile {name}", needs.TOOLS_S.get(name, needs.OTHER_S), build.is_built([tool]))
        for name, tool in tools.items()
    ]
    recipes = product.images()
    built = [images.built(recipe) is not None for recipe in recipes]
    if not with_docker:
        absent = packages.missing({**packages.CLUSTER_PROGRAMS, **packages.IMAGE_PROGRAMS})
        results.append(Part("packages of the distribution", needs.PACKAGES_S, not absent))
        has_base = all(built) or (not absent and buildah.has_image(baseimage.wanted()[0].tag))
        results.append(Part("base image", needs.BASE_IMAGE_S, has_base))
    for recipe, is_ready in zip(recipes, built, strict=True):
        name = recipe.tag.rpartition("/")[2].partition(":")[0]
        results.append(Part(f"image {name}", needs.IMAGES_S.get(name, needs.OTHER_S), is_ready))
    return results


def text(found_parts: Iterable[Part]) -> str:
    """Say how long it will take and of what."""
    missing = [part for part in found_parts if not part.is_ready]
    total = needs.duration(sum(part.seconds for part in missing) + needs.DEMO_S)
    if not missing:
        return f"Everything is built; it takes about {total}."
    listed = ", ".join(f"{part.title} {needs.duration(part.seconds)}" for part in missing)
    return (
        f"It takes about {total} on 2 quiet cores, once: {listed}; {needs.duration(needs.DEMO_S)} the rest."
    )


def announce(found_parts: list[Part]) -> None:
    """Print the forecast, and record for the ledger what is there already."""
    say(text(found_parts))
    for part in found_parts:
        if part.is_ready:
            found(part.title.removeprefix("compile "))
