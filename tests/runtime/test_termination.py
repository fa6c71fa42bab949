import json
from pathlib import Path

import pytest
import torch

from stoker_runtime import termination
from stoker_runtime.errors import ConfigError, ModelError, StokerError


def test_report_writes_one_json_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "termination-log"
    monkeypatch.setenv("STOKER_TERMINATION_LOG", str(path))
    termination.report("ModelNotFound", "there is no model at /x")
    assert path.read_bytes().count(b"\n") == 1
    assert json.loads(path.read_text()) == {"reason": "ModelNotFound", "message": "there is no model at /x"}


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "\x00" * 100_000, '"' * 4090])
def test_long_message_is_cut_to_what_a_kubelet_keeps(text: str) -> None:
    line = termination.encode("DiskFull", text)
    assert len(line) <= 4096
    message = json.loads(line)["message"]
    assert message.endswith("…")
    assert len(message) > 300
    assert text.startswith(message[:-1])


def test_message_that_fits_is_kept_whole() -> None:
    assert json.loads(termination.encode("DiskFull", "y" * 4000))["message"] == "y" * 4000


def test_unwritable_file_does_not_hide_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STOKER_TERMINATION_LOG", str(tmp_path / "missing" / "log"))
    termination.report("DiskFull", "no space")
    assert "cannot write the termination message" in caplog.text


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (ConfigError("x"), "InvalidConfig", 2),
        (ModelError("x", reason="DiskFull"), "DiskFull", 3),
        (MemoryError(), "OutOfMemory", 3),
        (torch.OutOfMemoryError("x"), "OutOfMemory", 3),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: x"), "OutOfMemory", 3),
        (StokerError("x"), "EngineCrashed", 1),
        (RuntimeError("x"), "EngineCrashed", 1),
    ],
)
def test_reason_and_exit_status(error: Exception, reason: str, status: int) -> None:
    assert termination.reason_of(error) == reason
    assert termination.exit_status(reason) == status
