"""What a platform asks of pods and Services beyond the engine: accounts, users, volumes, spread, families."""

from __future__ import annotations

from typing import Any

import pytest
from golden_cases import CASES, CONFIGS
from operator_builders import CONFIG, make_wanted, service_of, shape_of

from stoker_operator.api import labels
from stoker_operator.api.volumes import OWN_PATHS, OWN_VOLUMES
from stoker_operator.config import OperatorConfig, PodDefaults
from stoker_operator.plan.drift import drift
from stoker_operator.profiles.stoker import USER_ID

HUB = {"source": "hf://org/name"}
ZONE = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
CASES_CONFIG = OperatorConfig(runtime_image="r", allow_file_sources=True)
ASSIGNED = OperatorConfig(runtime_image="r", pod_defaults=PodDefaults(has_assigned_user=True))


def pod_spec(config: OperatorConfig = CONFIG, **spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = shape_of(make_wanted(config, **spec)).leader["spec"]
    return found


def test_pods_run_under_the_account_and_mount_no_token() -> None:
    found = pod_spec(pod={"serviceAccountName": "models"})
    assert found["serviceAccountName"] == "models"
    assert found["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod_spec()


def test_ids_that_are_asked_for_win_and_the_rest_stays_restricted() -> None:
    found = pod_spec(pod={"securityContext": {"runAsUser": 2000, "supplementalGroups": [4000]}})
    assert found["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 2000,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        "supplementalGroups": [4000],
    }


def test_where_the_platform_assigns_ids_only_those_asked_for_are_named() -> None:
    context = pod_spec(ASSIGNED, pod={"securityContext": {"fsGroup": 3000}})["securityContext"]
    assert context["fsGroup"] == 3000
    assert not {"runAsUser", "runAsGroup"} & set(context)


def test_volumes_reach_both_containers_beside_our_own() -> None:
    volumes = [{"name": "trust", "configMap": {"name": "trusted"}}]
    mounts = [{"name": "trust", "mountPath": "/etc/team", "readOnly": True}]
    found = pod_spec(model=HUB, pod={"volumes": volumes, "volumeMounts": mounts})
    without = pod_spec(model=HUB)
    assert found["volumes"] == [*without["volumes"], *volumes]
    for kind in ("initContainers", "containers"):
        assert found[kind][0]["volumeMounts"] == [*without[kind][0]["volumeMounts"], *mounts]


@pytest.mark.parametrize("name", CASES)
def test_the_schema_keeps_every_name_and_path_of_ours_free(name: str) -> None:
    spec = shape_of(make_wanted(CONFIGS.get(name, CASES_CONFIG), **CASES[name])).leader["spec"]
    theirs = CASES[name].get("pod", {})
    own_volumes = {volume["name"] for volume in spec["volumes"]}
    own_volumes -= {volume["name"] for volume in theirs.get("volumes", ())}
    assert own_volumes <= set(OWN_VOLUMES)
    paths = {
        mount["mountPath"]
        for container in (*spec.get("initContainers", ()), *spec["containers"])
        for mount in container["volumeMounts"]
    }
    paths -= {mount["mountPath"] for mount in theirs.get("volumeMounts", ())}
    assert {path for path in paths if not any(f"{path}/".startswith(f"{own}/") for own in OWN_PATHS)} == set()


def test_replicas_of_one_revision_spread_unless_the_spec_says_which_pods_count() -> None:
    wanted = make_wanted(scheduling={"topologySpreadConstraints": [ZONE]})
    (constraint,) = shape_of(wanted).leader["spec"]["topologySpreadConstraints"]
    expected = {labels.DEPLOYMENT: "smol", labels.ROLE: labels.LEADER, labels.REVISION: wanted.revision}
    assert constraint == {**ZONE, "labelSelector": {"matchLabels": expected}}
    own = {**ZONE, "labelSelector": {"matchLabels": {"team": "a"}}}
    assert pod_spec(scheduling={"topologySpreadConstraints": [own]})["topologySpreadConstraints"] == [own]


def test_keys_that_pods_have_in_common_take_the_place_of_the_revision() -> None:
    asked = {**ZONE, "matchLabelKeys": [labels.REVISION]}
    (constraint,) = pod_spec(scheduling={"topologySpreadConstraints": [asked]})["topologySpreadConstraints"]
    # A key must not stand in the selector as well: the API server refuses that.
    assert labels.REVISION not in constraint["labelSelector"]["matchLabels"]


def test_families_of_the_service_are_the_clusters_unless_asked_for() -> None:
    plain = service_of(make_wanted())
    assert not {"ipFamilies", "ipFamilyPolicy"} & set(plain["spec"])
    asked = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}
    found = service_of(make_wanted(service=asked))
    assert {name: found["spec"][name] for name in asked} == asked
    assert make_wanted(service=asked).revision == make_wanted().revision


def test_what_the_cluster_chose_is_no_drift() -> None:
    """Stored Services have families that nobody asked for; none of them is written again."""
    plain = service_of(make_wanted())
    chosen = {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"], "clusterIPs": ["fd00::1"]}
    assert drift(plain, {**plain, "spec": {**plain["spec"], **chosen}}) == []


@pytest.mark.parametrize(
    "change",
    [
        {"pod": {"serviceAccountName": "models"}},
        {"pod": {"securityContext": {"runAsUser": 2000}}},
        {"pod": {"volumes": [{"name": "a", "emptyDir": {}}]}},
        {"scheduling": {"topologySpreadConstraints": [ZONE]}},
        {"model": {**HUB, "fetch": {"resources": {"limits": {"memory": "1Gi"}}}}},
    ],
)
def test_what_shapes_pods_makes_a_revision_and_left_out_makes_none(change: dict[str, Any]) -> None:
    before: dict[str, Any] = {"model": HUB}
    changed: dict[str, Any] = {**before, **change}
    assert make_wanted(**changed).revision != make_wanted(**before).revision
    assert make_wanted(model=HUB, pod={}, scheduling={}).revision == make_wanted(**before).revision
