"""The mixtures' benchmark on a small model: both ways are measured, and what cannot be is refused."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

import mixture
from stoker_runtime.model.native.library import find_kernels

SMALL = ("--hidden", "64", "--layers", "2", "--experts", "4", "--expert-size", "64", "--threads", "2")


def test_both_ways_are_measured() -> None:
    kernels = find_kernels(torch.bfloat16, 1)
    if kernels is None:
        pytest.skip("no kernels for bfloat16 on this machine")
    kernels.close()
    result = CliRunner().invoke(mixture.main, [*SMALL, "--repeats", "1"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report) == {"kernels", "pytorch"}
    for times in report.values():
        assert set(times["decode_s"]) == {"1", "16"}
        assert min(*times["decode_s"].values(), times["prompt_s"]) > 0
    assert result.stderr.count("tok/s") == 4


@pytest.mark.parametrize("arguments", [("--per-token", "5"), ("--hidden", "80")])
def test_sizes_that_make_no_mixture_are_refused(arguments: tuple[str, str]) -> None:
    result = CliRunner().invoke(mixture.main, [*SMALL, *arguments])
    assert result.exit_code == 2
    assert "--per-token is at most --experts" in result.output
