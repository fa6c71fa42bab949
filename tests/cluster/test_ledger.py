"""Where the time of a command went: what is added up, what is printed, what is kept."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from cluster import ledger, progress
from cluster.ledger import Ledger
from cluster.progress import CACHED, DONE, FAILED, STOPPED, Entry, Record, step


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no steps from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(ledger.STARTED, raising=False)
    record = Record()
    monkeypatch.setattr(progress, "RECORD", record)
    monkeypatch.setattr(ledger, "RECORD", record)
    return tmp_path / "stoker"


def test_steps_are_recorded_with_how_they_ended() -> None:
    with step("outer"):
        with step("inner"):
            pass
        with pytest.raises(ValueError, match="x"), step("wrong"):
            raise ValueError("x")
    with pytest.raises(KeyboardInterrupt), step("stopped"):
        raise KeyboardInterrupt
    progress.found("image a")
    found = [(entry.title, entry.depth, entry.outcome) for entry in progress.RECORD.entries()]
    assert found == [
        ("outer", 0, DONE),
        ("inner", 1, DONE),
        ("wrong", 1, FAILED),
        ("stopped", 0, STOPPED),
        ("image a", 0, CACHED),
    ]


def test_what_threads_do_side_by_side_is_no_part_of_each_other() -> None:
    both = threading.Barrier(2, timeout=20)

    def work(title: str) -> None:
        with step(title):
            both.wait()

    with step("all"):
        threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {entry.title: entry.depth for entry in progress.RECORD.entries()} == {"all": 0, "a": 0, "b": 0}


ENTRIES = (
    Entry("install", 100.0, 20.0),
    Entry("images", 125.0, 50.0),
    Entry("image a", 130.0, 40.0, depth=1),
    Entry("tools", 150.0, 30.0),
    Entry("base image", 121.0, outcome=CACHED),
    Entry("chart", 181.0, 9.0, FAILED),
)


def test_nothing_is_counted_twice() -> None:
    """Not parts within steps, and not steps that ran at the same time."""
    told = Ledger("make demo", 100.0, 195.0, FAILED, ENTRIES)
    assert ledger.covered_s(ENTRIES) == pytest.approx(84.0)
    assert told.total_s == 95.0
    assert told.other_s == pytest.approx(11.0)


def test_the_table_has_every_step_the_rest_and_the_total() -> None:
    lines = ledger.table(Ledger("make demo", 100.0, 195.0, FAILED, ENTRIES)).splitlines()
    assert lines[1:] == [
        "Where the time went:",
        "     20.0 s  install",
        "     50.0 s  images",
        "       40.0 s  image a",
        "     30.0 s  tools",
        "      9.0 s  chart  (failed)",
        "     11.0 s  between the steps",
        "     95.0 s  in all: make demo, failed",
        "  Ready from an earlier run: base image",
    ]


def test_processes_of_one_make_share_a_ledger(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ledger.STARTED, f"{int(time.time()) - 60}.77")
    with step("install"):
        pass
    ledger.hand_on()
    second = Record()
    monkeypatch.setattr(progress, "RECORD", second)
    monkeypatch.setattr(ledger, "RECORD", second)
    with step("demo"):
        pass
    told = ledger.close("make demo", DONE, time.time())
    assert [entry.title for entry in told.entries] == ["install", "demo"]
    assert 59 < told.total_s < 80
    assert list((cache / "ledger").iterdir()) == []


def test_another_make_begins_a_new_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ledger.STARTED, "1000.1")
    with step("install"):
        pass
    ledger.hand_on()
    monkeypatch.setenv(ledger.STARTED, "1000.2")
    assert ledger.handed_on() == []


def test_ledgers_are_kept_as_json_and_the_oldest_go(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(ledger.KEPT + 3):
        path = ledger.save(Ledger("make demo", 1000.0 + number, 1100.0, DONE, ENTRIES))
        os.utime(path, (number, number))
    stale = cache / "ledger" / "run-1.1.jsonl"
    stale.touch()
    os.utime(stale, (0, 0))
    with step("x"):
        pass
    ledger.finish("make demo", DONE, time.time())
    kept = sorted((cache / "ledger").glob("*.json"))
    assert len(kept) == ledger.KEPT
    assert not stale.exists()
    content = json.loads(kept[-1].read_text())
    assert content["command"] == "make demo"
    assert content["outcome"] == DONE
    assert [entry["title"] for entry in content["steps"]] == ["x"]
    assert f"As JSON: {kept[-1]}" in capsys.readouterr().err


def test_a_ledger_that_cannot_be_kept_is_still_printed(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file, where the folder should be")
    ledger.finish("make demo", DONE, time.time())
    said = capsys.readouterr().err
    assert "in all: make demo, done" in said
    assert "not kept as JSON" in said


def test_steps_that_cannot_be_handed_on_or_were_cut_off_are_left_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ledger.STARTED, "1000.3")
    with step("whole"):
        pass
    ledger.hand_on()
    path = ledger.shared_file()
    assert path is not None
    with path.open("a") as shared:
        shared.write('{"title": "cut o')
    assert [entry.title for entry in ledger.handed_on()] == ["whole"]
    (cache / "ledger").rmdir()
    (cache / "ledger").write_text("no folder")
    ledger.hand_on()
    assert (cache / "ledger").read_text() == "no folder"
