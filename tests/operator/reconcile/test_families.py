"""Clusters whose pods have addresses of one family only, either one, or of two of which one leads nowhere."""

from __future__ import annotations

from typing import Any

import pytest
from fakeapi.kubelet import IPV4, IPV6
from golden_cases import CASES, CONFIG, CONFIGS
from operator_builders import make_wanted, service_of, shape_of
from operator_world import World, play
from virtual_time import pass_time, until

from stoker_operator.cluster.inflight import pod_addresses


@pytest.mark.parametrize(
    ("families", "unreachable"),
    [
        pytest.param((IPV4,), None, id="ipv4"),
        pytest.param((IPV6,), None, id="ipv6"),
        pytest.param((IPV4, IPV6), IPV4, id="dual-second-reachable"),
        pytest.param((IPV6, IPV4), IPV4, id="dual-first-reachable"),
    ],
)
def test_a_drain_ends_with_the_requests(families: tuple[str, ...], unreachable: str | None) -> None:
    in_flight: dict[str, int] = {}

    async def scenario(world: World) -> None:
        world.kubelet.families = families
        world.kubelet.in_flight = lambda name: in_flight.get(name, 0)
        world.kubelet.is_reachable = lambda address: not (unreachable and address.startswith(unreachable))
        world.apply()
        await world.ready()
        (name,) = world.pod_names()
        in_flight[name] = 2
        world.apply(engine={"maxNumSeqs": 8})
        await pass_time(40.0)
        assert name in world.pod_names(), "it still answers two requests"
        in_flight.clear()
        await until(lambda: name not in world.pod_names(), 10.0)

    play(scenario)


@pytest.mark.parametrize(
    ("status", "addresses"),
    [
        ({}, []),
        ({"podIP": "10.0.0.1"}, ["10.0.0.1"]),
        ({"podIP": "fd00::1", "podIPs": [{"ip": "fd00::1"}, {"ip": "10.0.0.1"}]}, ["fd00::1", "10.0.0.1"]),
        ({"podIP": "", "podIPs": None}, []),
    ],
)
def test_addresses_of_a_pod(status: dict[str, Any], addresses: list[str]) -> None:
    assert pod_addresses({"status": status}) == addresses


@pytest.mark.parametrize("name", CASES)
def test_manifests_leave_families_to_the_cluster(name: str) -> None:
    """A probe without a host goes to the pod's own address, whatever its family."""
    wanted = make_wanted(CONFIGS.get(name, CONFIG), **CASES[name])
    (engine,) = shape_of(wanted).leader["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert set(engine[probe]["httpGet"]) == {"path", "port"}
    assert not [argument for argument in engine["args"] if argument.startswith("--host")]
    assert not {"hostIP", "hostPort"} & {key for port in engine["ports"] for key in port}
    asked = CASES[name].get("service", {})
    assert {"ipFamilyPolicy", "ipFamilies"} & set(service_of(wanted)["spec"]) <= set(asked)
