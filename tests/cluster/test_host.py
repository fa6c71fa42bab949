import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

from cluster import cgroups, daemons, host, mounts, packages, state
from cluster.api import ClusterError
from cluster.plan import ClusterPlan
from cluster.state import State


def test_failed_command_says_what_it_printed() -> None:
    with pytest.raises(ClusterError, match=r"`sh -c 'echo why >&2; exit 3'` failed with 3: why"):
        host.run(["sh", "-c", "echo why >&2; exit 3"])


def test_command_that_takes_too_long_is_ended() -> None:
    with pytest.raises(ClusterError, match="did not end within 0 s"):
        host.run(["sleep", "60"], timeout_s=0.05)


def test_waiting_ends_with_the_condition_or_with_the_hint() -> None:
    answers = iter([False, False, True])
    host.wait_for("it", lambda: next(answers), 5)
    with pytest.raises(ClusterError, match=r"it did not happen within 0 s\. the log"):
        host.wait_for("it", lambda: False, 0.01, lambda: "the log")


def test_another_run_is_waited_for_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "lock"
    held, release = threading.Event(), threading.Event()

    def other() -> None:
        with host.locked(lock):
            held.set()
            release.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(20)
    with host.locked_now(lock) as is_free:
        assert not is_free
    threading.Timer(0.2, release.set).start()
    with host.locked(lock):
        assert release.is_set()
    thread.join()
    assert capsys.readouterr().err == f"    waiting for another run, which holds {lock}\n"


def test_tail_shows_the_end(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("x" * 100 + "the end")
    assert host.tail(log, max_bytes=7) == f"End of {log}:\nthe end"
    assert "does not exist" in host.tail(tmp_path / "b.log")


def test_daemon_joins_its_cgroup_before_anything_else_runs() -> None:
    command = daemons.daemon_command(
        ["kubelet", "--flag"], cgroup="stoker-dev/x", pid_file=Path("/run/k.pid"), netns="stoker-dev-0"
    )
    script = command[command.index("-c") + 1]
    assert command[:2] == ["setsid", "--fork"]
    assert script.startswith('echo $$ >"$1" &&')
    assert str(cgroups.tracking_root() / "stoker-dev/x" / "cgroup.procs") in command
    assert command[-4:] == ["nsenter", "--net=/run/netns/stoker-dev-0", "kubelet", "--flag"]


def test_version_2_cgroups_hand_their_controllers_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [tmp_path])
    cgroups.make("stoker-dev")
    assert cgroups.tracking_root() == tmp_path
    assert (tmp_path / "stoker-dev").is_dir()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_version_1_cgroups_are_made_in_every_hierarchy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [tmp_path / name for name in ("pids", "memory")]
    for root in roots:
        root.mkdir()
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups, "hierarchies", lambda: roots)
    cgroups.make("stoker-dev/n0")
    assert cgroups.tracking_root() == tmp_path / "pids"
    assert all((root / "stoker-dev" / "n0").is_dir() for root in roots)


def test_container_that_keeps_its_root_cgroup_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    (tmp_path / "cgroup.subtree_control").mkdir()
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [tmp_path])
    with pytest.raises(ClusterError, match="inside a container, move its processes"):
        cgroups.make("stoker-dev")


def test_pid_files_of_living_and_dead_processes(tmp_path: Path) -> None:
    pid_file = tmp_path / "a.pid"
    assert not daemons.is_running(pid_file)
    pid_file.write_text(str(os.getpid()))
    assert daemons.is_running(pid_file)
    with subprocess.Popen(["true"]) as process:
        process.wait()
    pid_file.write_text(str(process.pid))
    assert not daemons.is_running(pid_file)


def test_node_mounts_its_own_folders_over_the_fixed_ones() -> None:
    node = ClusterPlan("dev").node(1)
    command = mounts.unshared(node, ["containerd"])
    script = command[command.index("-c") + 1]
    assert f"mount --bind {node.data_dir}/fixed/var-lib-kubelet /var/lib/kubelet" in script
    assert script.endswith('exec "$@"')
    assert len({mounts.own_folder(node, fixed) for fixed in mounts.FIXED_FOLDERS}) == len(
        mounts.FIXED_FOLDERS
    )


def test_kubelet_sees_the_kernel_parameters_it_wants_and_sets_none() -> None:
    node = ClusterPlan("dev").node(1)
    command = mounts.joined(node, 4711, ["kubelet"])
    script = command[command.index("-c") + 1]
    assert command[:2] == ["nsenter", "--mount=/proc/4711/ns/mnt"]
    assert script.startswith("mount --make-rprivate /proc && ")
    for name in mounts.TUNABLES:
        assert f"mount --bind {mounts.tunable_file(node, name)} /proc/sys/{name}" in script


def test_state_survives_a_round_trip(tmp_path: Path) -> None:
    assert state.load(tmp_path) is None
    written = State((0, 2), 3, 4, 40000, ("/a.tar",), is_ready=True)
    written.save(tmp_path)
    assert state.load(tmp_path) == written


def test_missing_programs_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"missing programs: no-such-program\.") as caught:
        packages.ensure({"no-such-program": "package-x", "sh": "dash"})
    assert re.match("as root `apt-get install .*package-x`", caught.value.next_step or "")


def test_installed_programs_need_nothing() -> None:
    packages.ensure({"sh": "dash"})


def test_a_folder_takes_at_least_what_its_files_hold(tmp_path: Path) -> None:
    empty = host.num_bytes(tmp_path)
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    assert 100_000 <= host.num_bytes(tmp_path) - empty < 200_000


def test_a_path_without_blanks_leads_to_the_same_folder(tmp_path: Path) -> None:
    plain, blank = tmp_path / "plain", tmp_path / "with a blank"
    for folder in (plain, blank):
        folder.mkdir()
        with host.without_blanks(folder) as path:
            (path / "file").touch()
            assert " " not in str(path)
        assert (folder / "file").exists()
        assert not path.exists() or path == plain
