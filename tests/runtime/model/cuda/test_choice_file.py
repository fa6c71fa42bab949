"""What was measured is read again where it holds; anything else costs a line in the log."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stoker_runtime.model.cuda import choice_file
from stoker_runtime.model.cuda.choice_file import Machine, default_folder, file_of, machine_of, read, write
from stoker_runtime.model.cuda.choices import Choice, Decision, pick

MACHINE = Machine("NVIDIA H100 80GB HBM3", "9.0", 132, "2.13.0", "13.0", "3.7.1", "0123456789abcdef")
CHOICE = Choice("attention", "32 heads of 128", ("triton", "sdpa"))
DECISION = Decision(CHOICE, "sdpa", {"triton": 0.002, "sdpa": 0.001})

names = st.text(min_size=1, max_size=8)
choices = st.builds(
    Choice, names, st.text(max_size=20), st.lists(names, min_size=1, max_size=4, unique=True).map(tuple)
)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    choice = draw(choices)
    seconds = draw(st.dictionaries(st.sampled_from(choice.candidates), st.floats(1e-7, 1.0)))
    excluded = {name: draw(names) for name in choice.candidates if name not in seconds}
    return Decision(choice, pick(choice, seconds), seconds, excluded)


@given(found=st.lists(decisions(), max_size=5, unique_by=lambda decision: decision.choice))
def test_decisions_survive_the_file(found: list[Decision], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cache") / "new" / "choices.json"
    write(path, MACHINE, found)
    assert read(path, MACHINE) == tuple(found)
    assert os.listdir(path.parent) == [path.name]


def test_decisions_are_added_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    other = Decision(replace(CHOICE, signature="8 heads"), "triton", {"triton": 1.0})
    newer = replace(DECISION, seconds={"triton": 0.004, "sdpa": 0.001})
    for found in ([DECISION], [other], [newer]):
        write(path, MACHINE, found)
    assert read(path, MACHINE) == (newer, other)


def test_a_missing_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path / "none.json", MACHINE) == ()
    assert not caplog.text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"\xff\x00", id="bytes"),
        pytest.param(b'{"format": "\xf1"}', id="bytes-in-a-text"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"[]", id="another-shape"),
        pytest.param(b'{"format": 1, "machine": {}, "decisions": []}', id="another-machine-shape"),
    ],
)
def test_a_damaged_file_is_measured_again(
    text: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "choices.json"
    path.write_bytes(text)
    assert read(path, MACHINE) == ()
    assert f"{path} cannot be read, so kernels are measured again" in caplog.text
    write(path, MACHINE, [DECISION])
    assert read(path, MACHINE) == (DECISION,)


@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    share=st.floats(0, 1),
)
def test_whatever_is_in_a_file_it_never_costs_a_start(
    places: list[tuple[float, int]], share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cache") / "choices.json"
    write(path, MACHINE, [DECISION])
    text = bytearray(path.read_bytes())
    for place, byte in places:
        text[int(place * (len(text) - 1))] = byte
    path.write_bytes(text[: int(share * len(text))] if share < 0.5 else text)
    for decision in read(path, MACHINE):
        assert decision.taken in decision.choice.candidates


@pytest.mark.parametrize("change", ["format", "machine", "taken", "seconds"])
def test_a_file_of_something_else_is_measured_again(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "choices.json"
    write(path, MACHINE, [DECISION])
    found = json.loads(path.read_text())
    match change:
        case "format":
            found["format"] = 2
        case "machine":
            found["machine"]["torch"] = "2.14.0"
        case "taken":
            found["decisions"][0]["taken"] = "another"
        case "seconds":
            found["decisions"][0]["seconds"]["sdpa"] = 0.1
    path.write_text(json.dumps(found))
    assert read(path, MACHINE) == ()
    assert "belongs to something else" in caplog.text


def test_a_folder_that_is_none_costs_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "choices.json"
    write(path, MACHINE, [DECISION])
    assert f"{path} cannot be written" in caplog.text
    assert read(path, MACHINE) == ()


def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "choices.json"
    write(path, MACHINE, [DECISION])

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    write(path, MACHINE, [replace(DECISION, choice=replace(CHOICE, name="other"))])
    assert "No space left on device" in caplog.text
    assert os.listdir(tmp_path) == [path.name]
    assert read(path, MACHINE) == (DECISION,)


def test_who_reads_while_others_write_sees_whole_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "choices.json"
    write(path, MACHINE, [DECISION])

    def write_often() -> None:
        for _ in range(20):
            write(path, MACHINE, [DECISION])

    writers = [threading.Thread(target=write_often) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert read(path, MACHINE) == (DECISION,)
    for writer in writers:
        writer.join()
    assert not caplog.text


def test_pods_that_share_a_volume_may_read_each_others_files(tmp_path: Path) -> None:
    """They may run as different users of one group."""
    path = tmp_path / "choices.json"
    mask = os.umask(0o022)
    try:
        write(path, MACHINE, [DECISION])
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_each_machine_has_a_file_of_its_own() -> None:
    changed = {field.name: 7 if field.name == "num_processors" else "other" for field in fields(Machine)}
    paths = {file_of(Path("/c"), replace(MACHINE, **{name: value})) for name, value in changed.items()}  # type: ignore[arg-type]
    assert len(paths | {file_of(Path("/c"), MACHINE)}) == len(changed) + 1
    assert file_of(Path("/c"), MACHINE).name.startswith("kernel-choices-nvidia-h100-80gb-hbm3-")
    assert file_of(Path("/c"), replace(MACHINE, device="../x/é")).parent == Path("/c")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/stoker"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/stoker"),
        ({}, "/home/someone/.cache/stoker"),
    ],
)
def test_where_files_are_kept(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    assert default_folder(environment) == Path(expected)


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    assert default_folder({}) is None


def test_a_machine_is_described_by_what_changes_times(device: torch.device) -> None:
    found = machine_of(device)
    assert found.torch == torch.__version__
    assert found.triton
    assert len(found.kernels) == 16
    if device.type == "cuda":
        assert found.device == torch.cuda.get_device_name(device)
        assert found.capability == "{}.{}".format(*torch.cuda.get_device_capability(device))
        assert found.num_processors > 0


def test_another_source_is_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_file, "__file__", str(tmp_path / "choice_file.py"))
    found = set()
    for text in ("x = 1", "x = 2"):
        (tmp_path / "kernel.py").write_text(text)
        found.add(choice_file.kernels_hash.__wrapped__())
    assert len(found) == 2
