"""Leader election's settings: honoured, or refused with the variable and the fix."""

from __future__ import annotations

import pytest

from stoker_operator.config import ConfigError, LeaderElection, OperatorConfig

ON = {"STOKER_LEADER_ELECT": "true", "STOKER_LEADER_ELECT_NAMESPACE": "stoker-system"}


def settings(**env: str) -> LeaderElection | None:
    given = {f"STOKER_LEADER_ELECT_{name}": value for name, value in env.items()}
    return OperatorConfig.from_env({"STOKER_RUNTIME_IMAGE": "runtime:1", **ON, **given}).leader_election


def test_an_operator_is_alone_unless_told_otherwise() -> None:
    assert OperatorConfig.from_env({"STOKER_RUNTIME_IMAGE": "runtime:1"}).leader_election is None


def test_defaults_and_all_settings() -> None:
    assert settings() == LeaderElection(namespace="stoker-system")
    found = settings(NAME="other", LEASE_DURATION_S="15", RENEW_DEADLINE_S="10", RETRY_PERIOD_S="2.5")
    assert found == LeaderElection(
        namespace="stoker-system",
        name="other",
        lease_duration_s=15,
        renew_deadline_s=10.0,
        retry_period_s=2.5,
    )


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"NAMESPACE": ""}, "STOKER_LEADER_ELECT_NAMESPACE is ''"),
        ({"NAME": "Not_a_name"}, "STOKER_LEADER_ELECT_NAME is 'Not_a_name'"),
        ({"LEASE_DURATION_S": "7.5"}, "whole seconds"),
        ({"LEASE_DURATION_S": "soon"}, "LEASE_DURATION_S is 'soon'; use seconds"),
        ({"RETRY_PERIOD_S": "nan"}, "RETRY_PERIOD_S is 'nan'; use seconds"),
        ({"RENEW_DEADLINE_S": "6.5"}, "at least a second less than"),
        ({"RETRY_PERIOD_S": "2"}, "at most a third of"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**env)
