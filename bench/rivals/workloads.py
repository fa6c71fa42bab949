"""What is measured: lists of requests, the same for every engine. Pure: a seed gives the same lists.

Each round uses prompts of its own, so that no prefix cache remembers the round before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from loadgen.prompts import prompt

SHARED_TOKENS = 512
LONG_PROMPT_TOKENS = 4096
NUM_STREAMS = 8  # that decode while the long prompt arrives
STREAM_OUTPUT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Job:
    """One request."""

    prompt: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, and how many of them are in flight at once."""

    jobs: tuple[Job, ...]
    concurrency: int


def serial(seed: int) -> Workload:
    """Short chats one after another."""
    return Workload(tuple(Job(prompt(64, seed, index), 64) for index in range(8)), 1)


def batch_16(seed: int) -> Workload:
    """Short chats, 16 at a time."""
    return Workload(tuple(Job(prompt(64, seed, index), 64) for index in range(48)), 16)


def mixed_32(seed: int) -> Workload:
    """Prompts of 16 to 512 and answers of 16 to 128 tokens, 32 at a time."""
    rng = random.Random(seed)
    jobs = (Job(prompt(rng.randint(16, 512), seed, i), rng.randint(16, 128)) for i in range(64))
    return Workload(tuple(jobs), 32)


def shared_prefix(seed: int) -> Workload:
    """A common prefix of 512 tokens, 16 of their own, 16 at a time."""
    shared = prompt(SHARED_TOKENS, seed, 0)
    return Workload(tuple(Job(shared + prompt(16, seed, 1 + i), 64) for i in range(48)), 16)


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "serial": serial,
    "concurrency 16": batch_16,
    "concurrency 32, mixed lengths": mixed_32,
    "concurrency 16, shared prefix": shared_prefix,
}
