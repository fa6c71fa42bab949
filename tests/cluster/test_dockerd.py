"""A Docker engine of our own: what it changes of the host is undone, and nothing of others."""

import os
import subprocess
from pathlib import Path

import pytest

import kind_check
from cluster import baseimage, dockerd, packages, prerequisites
from cluster.api import ClusterError
from cluster.dockerd import HostState, changed_parameters, missing_capabilities, runc_wrapper, undo_commands

BEFORE = HostState(
    rules={"iptables filter": ["-P FORWARD ACCEPT", "-A INPUT -i docker0 -j DROP"]},
    parameters={"net/ipv4/ip_forward": "0", "kernel/panic": "0"},
    links=["lo", "eth0", "br-0123456789ab"],
)
NOW = HostState(
    rules={
        "iptables filter": [
            "-P FORWARD DROP",
            "-N DOCKER",
            "-N DOCKER-USER",
            "-N SOMEBODY",
            "-A INPUT -i docker0 -j DROP",
            "-A FORWARD -j DOCKER-USER",
            '-A FORWARD -i br-ba9876543210 -m comment --comment "two words" -j ACCEPT',
            "-A FORWARD -s 10.0.0.0/8 -j SOMEBODY",
            "-A DOCKER-USER -j RETURN",
        ],
        "iptables nat": ["-N DOCKER", "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"],
    },
    parameters={"net/ipv4/ip_forward": "1", "kernel/panic": "0"},
    links=["lo", "eth0", "br-0123456789ab", "br-ba9876543210", "docker0", "veth1"],
)


def test_an_engines_rules_chains_and_bridges_go_and_those_of_others_stay() -> None:
    do = ["iptables", "--wait", "--table", "filter"]
    nat = ["iptables", "--wait", "--table", "nat"]
    assert undo_commands(BEFORE, NOW) == [
        [*do, "-P", "FORWARD", "ACCEPT"],
        [*do, "-D", "FORWARD", "-j", "DOCKER-USER"],
        [
            *do,
            "-D",
            "FORWARD",
            *["-i", "br-ba9876543210", "-m", "comment", "--comment"],
            "two words",
            "-j",
            "ACCEPT",
        ],
        [*do, "-F", "DOCKER"],
        [*do, "-F", "DOCKER-USER"],
        [*do, "-X", "DOCKER"],
        [*do, "-X", "DOCKER-USER"],
        [*nat, "-D", "POSTROUTING", *["-s", "172.17.0.0/16", "!", "-o", "docker0", "-j", "MASQUERADE"]],
        [*nat, "-F", "DOCKER"],
        [*nat, "-X", "DOCKER"],
        ["ip", "link", "delete", "br-ba9876543210"],
        ["ip", "link", "delete", "docker0"],
    ]


def test_nothing_is_undone_where_nothing_changed() -> None:
    assert undo_commands(BEFORE, BEFORE) == []
    assert changed_parameters(BEFORE, BEFORE) == {}


def test_only_parameters_that_changed_are_put_back() -> None:
    assert changed_parameters(BEFORE, NOW) == {"net/ipv4/ip_forward": "0"}


@pytest.mark.parametrize(
    ("status", "missing"),
    [
        pytest.param("CapBnd:\t000001ffffffffff\n", [], id="all"),
        pytest.param("CapEff:\t0\nCapBnd:\t000001fffeffffff\n", ["CAP_SYS_RESOURCE"], id="one-withheld"),
        pytest.param("", [], id="unreadable"),
    ],
)
def test_withheld_capabilities_are_found(status: str, missing: list[str]) -> None:
    assert missing_capabilities(status) == missing


@pytest.mark.parametrize(("flag", "file"), [("--bundle", "config.json"), ("--process", "")])
def test_the_wrapper_asks_for_no_withheld_capability_and_keeps_every_argument(
    tmp_path: Path, flag: str, file: str
) -> None:
    asked = tmp_path / (file or "process")
    asked.write_text(
        '{"bounding":["CAP_A","CAP_SYS_RESOURCE","CAP_B"],"effective":["CAP_SYS_RESOURCE","CAP_A"]}'
    )
    wrapper = tmp_path / "runc"
    wrapper.write_text(runc_wrapper("echo", ["CAP_SYS_RESOURCE"]))
    wrapper.chmod(0o755)
    value = str(tmp_path if file else asked)
    done = subprocess.run(
        [wrapper, "create", flag, value, "two words"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"create {flag} {value} two words\n"
    assert asked.read_text() == '{"bounding":["CAP_A","CAP_B"],"effective":["CAP_A"]}'


@pytest.fixture
def host_without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dockerd, "answers", lambda address=None: False)
    monkeypatch.setattr(packages, "missing", lambda programs: ["dockerd"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("host_without_engine")
def test_an_engine_is_started_by_root_on_debian_and_ubuntu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseimage, "planned", lambda: object())
    assert dockerd.lacks() is None
    monkeypatch.setattr(baseimage, "planned", lambda: None)
    assert "Debian and Ubuntu only" in (dockerd.lacks() or "")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (dockerd.lacks() or "")
    with pytest.raises(ClusterError, match=r"no Docker engine answers, and .*root"):
        dockerd.up()


@pytest.mark.usefixtures("host_without_engine")
def test_where_kind_cannot_run_its_tests_say_so_and_succeed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dockerd, "lacks", lambda: "starting one takes Linux and root")
    for arguments, status in (([], 0), (["--few"], 0), (["--can"], kind_check.CANNOT)):
        assert kind_check.main(arguments) == status
        assert capsys.readouterr().err == (
            "kind was not tested: no Docker engine answers, and starting one takes Linux and root.\n"
        )
    monkeypatch.setattr(dockerd, "lacks", lambda: None)
    monkeypatch.setattr(prerequisites, "no_client", lambda: "there is no kind on PATH")
    assert kind_check.why_not() == "there is no kind on PATH"
    monkeypatch.setattr(kind_check, "why_not", lambda: None)
    assert kind_check.main(["--can"]) == 0


@pytest.mark.usefixtures("host_without_engine")
def test_a_few_tests_are_left_out_where_no_engine_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> str:
        raise ClusterError("dockerd ended.")

    monkeypatch.delenv("STOKER_CLUSTER_BACKEND", raising=False)
    down: list[bool] = []
    monkeypatch.setattr(dockerd, "up", fail)
    monkeypatch.setattr(dockerd, "down", lambda: down.append(True))
    assert kind_check.run_few() == 0
    assert down == [True]
    assert capsys.readouterr().err == (
        "kind was not tested: no Docker engine answers, and none could be started. dockerd ended.\n"
    )


@pytest.mark.parametrize("has_engine", [True, False])
@pytest.mark.parametrize("backend", ["", "kind", "native"])
def test_a_few_tests_run_where_kind_had_none_and_may_run(
    backend: str, has_engine: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dockerd, "answers", lambda address=None: has_engine)
    monkeypatch.setattr(dockerd, "up", lambda: dockerd.ADDRESS)
    monkeypatch.setattr(kind_check, "run", {kind_check.FEW: 7}.__getitem__)
    monkeypatch.setenv("STOKER_CLUSTER_BACKEND", backend)
    status, words = kind_check.run_few(), capsys.readouterr().err
    if backend == "native":
        assert (status, words) == (0, "kind was not tested: STOKER_CLUSTER_BACKEND is native.\n")
    elif has_engine:
        assert (status, words) == (0, "kind had all scenarios already.\n")
    else:
        assert (status, words) == (7, "")


def test_the_engine_that_answers_is_used_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dockerd, "answers", lambda address=None: True)
    monkeypatch.setattr(dockerd, "down", lambda: pytest.fail("an engine of somebody else was stopped"))
    monkeypatch.setenv("DOCKER_HOST", "tcp://engine.example:2375")
    with dockerd.engine() as found:
        assert "answers" in found
        assert os.environ["DOCKER_HOST"] == "tcp://engine.example:2375"


def test_an_engine_of_our_own_is_named_to_what_runs_in_it_and_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped: list[bool] = []
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(dockerd, "answers", lambda address=None: False)
    monkeypatch.setattr(dockerd, "up", lambda: dockerd.ADDRESS)
    monkeypatch.setattr(dockerd, "down", lambda: stopped.append(True))

    def interrupted() -> None:
        with dockerd.engine():
            assert os.environ["DOCKER_HOST"] == dockerd.ADDRESS
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stopped == [True]
    assert "DOCKER_HOST" not in os.environ
