"""The operator's settings, read once from STOKER_* variables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

LOG_LEVELS = ("debug", "info", "warning", "error")
CORDONED_NODES = ("drain", "keep")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False, "": False}
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_DATA_KEY = re.compile(r"(?!\.{1,2}$)[-._a-zA-Z0-9]{1,253}")
# A crashed leader is replaced 7 s after a follower saw its last renewal, which it does within 1.2 s.
LEASE_NAME = "stoker-operator"
LEASE_DURATION_S = 7
RENEW_DEADLINE_S = 5.0
RETRY_PERIOD_S = 1.0
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# Variables that cannot be a default of all runtime pods, and what to do instead.
_RESERVED_VARIABLES = {
    "HF_HOME": "the operator sets it to where downloads are kept: use spec.model.cache of a ModelDeployment",
    "HF_TOKEN": "it would stand in every pod as plain text: use spec.model.secretName of a ModelDeployment",
    "AWS_SECRET_ACCESS_KEY": "it would stand in every pod as plain text: use spec.model.secretName of a "
    "ModelDeployment",
}


class ConfigError(Exception):
    """A setting that cannot work; the text names the variable and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaBundle:
    """Certificates of the authorities that downloads trust, instead of those in the runtime image.

    Args:
        config_map: its name; it must exist in each namespace with models that are downloaded.
        key: of the PEM text in it.
    """

    config_map: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDefaults:
    """What runtime pods get where their ModelDeployment says nothing else.

    No part of a pod's revision: a change shapes the pods that are made from then on, and restarts none.

    Args:
        image_pull_policy: of the operator's default image; None leaves it to Kubernetes.
        image_pull_secrets: Secrets in the pods' own namespaces, beside those that they name themselves.
        env: variables of all containers; those of the same name in ``spec.pod.env`` win.
        ca_bundle: what downloads trust; None leaves the authorities that the image brings along.
        has_assigned_user: whether the platform gives each pod its user and groups, so that we must not.
    """

    image_pull_policy: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ca_bundle: CaBundle | None = None
    has_assigned_user: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderElection:
    """How one of several operator processes becomes the one that writes: it holds a Lease. Times are seconds.

    Args:
        namespace: of the Lease.
        name: of the Lease.
        lease_duration_s: others wait so long after the last renewal that they saw.
        renew_deadline_s: the leader writes no more so long after it sent the last renewal that worked.
        retry_period_s: between renewals, and between two looks of a follower (a fifth more, at most).
    """

    namespace: str
    name: str = LEASE_NAME
    lease_duration_s: int = LEASE_DURATION_S
    renew_deadline_s: float = RENEW_DEADLINE_S
    retry_period_s: float = RETRY_PERIOD_S


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorConfig:
    """Settings of one operator process.

    Args:
        runtime_image: image of pods that name none themselves.
        watch_namespaces: namespaces to serve; empty for the whole cluster.
        allow_file_sources: whether ``file://`` may mount a folder of the node.
        cluster_domain: DNS suffix of the cluster, for ``status.url``.
        log_level: one of LOG_LEVELS.
        cordoned_nodes: what happens to pods on cordoned nodes, one of CORDONED_NODES: others take their
            place elsewhere at once, or they stay until something else says that the node leaves.
        pod_defaults: what runtime pods get beside their image.
        leader_election: how several operators agree on one that writes; None for one that is alone.
    """

    runtime_image: str
    watch_namespaces: tuple[str, ...] = ()
    allow_file_sources: bool = False
    cluster_domain: str = "cluster.local"
    log_level: str = "info"
    cordoned_nodes: str = "drain"
    pod_defaults: PodDefaults = PodDefaults()
    leader_election: LeaderElection | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> OperatorConfig:
        """Read the settings.

        Raises:
            ConfigError: a variable is missing or malformed.
        """
        image = env.get("STOKER_RUNTIME_IMAGE", "").strip()
        if not image:
            raise ConfigError("STOKER_RUNTIME_IMAGE is not set; give the image that runtime pods run")
        level = env.get("STOKER_LOG_LEVEL", "info").strip().lower()
        if level not in LOG_LEVELS:
            raise ConfigError(f"STOKER_LOG_LEVEL is {level!r}; use one of {', '.join(LOG_LEVELS)}")
        cordoned = env.get("STOKER_CORDONED_NODES", "").strip().lower() or "drain"
        if cordoned not in CORDONED_NODES:
            raise ConfigError(
                f"STOKER_CORDONED_NODES is {cordoned!r}; use one of {', '.join(CORDONED_NODES)}"
            )
        return cls(
            runtime_image=image,
            watch_namespaces=_names(env, "STOKER_WATCH_NAMESPACES"),
            allow_file_sources=_boolean(env, "STOKER_ALLOW_FILE_SOURCES"),
            cluster_domain=env.get("STOKER_CLUSTER_DOMAIN", "").strip() or "cluster.local",
            log_level=level,
            cordoned_nodes=cordoned,
            pod_defaults=_pod_defaults(env),
            leader_election=_leader_election(env),
        )


def _leader_election(env: Mapping[str, str]) -> LeaderElection | None:
    if not _boolean(env, "STOKER_LEADER_ELECT"):
        return None
    duration_s = _seconds(env, "STOKER_LEADER_ELECT_LEASE_DURATION_S", LEASE_DURATION_S)
    deadline_s = _seconds(env, "STOKER_LEADER_ELECT_RENEW_DEADLINE_S", RENEW_DEADLINE_S)
    period_s = _seconds(env, "STOKER_LEADER_ELECT_RETRY_PERIOD_S", RETRY_PERIOD_S)
    if duration_s != int(duration_s):
        raise ConfigError(
            f"STOKER_LEADER_ELECT_LEASE_DURATION_S is {duration_s:g}; a Lease has whole seconds, such as 7"
        )
    # Clocks that do not run alike, and calls that are still on their way, need the room between the two.
    if deadline_s > duration_s - 1:
        raise ConfigError(
            f"STOKER_LEADER_ELECT_RENEW_DEADLINE_S is {deadline_s:g}; use at least a second less than "
            f"STOKER_LEADER_ELECT_LEASE_DURATION_S, which is {duration_s:g}"
        )
    if period_s > deadline_s / 3:
        raise ConfigError(
            f"STOKER_LEADER_ELECT_RETRY_PERIOD_S is {period_s:g}; use at most a third of "
            f"STOKER_LEADER_ELECT_RENEW_DEADLINE_S, which is {deadline_s:g}"
        )
    return LeaderElection(
        namespace=_object_name(env, "STOKER_LEADER_ELECT_NAMESPACE", ""),
        name=_object_name(env, "STOKER_LEADER_ELECT_NAME", LEASE_NAME),
        lease_duration_s=int(duration_s),
        renew_deadline_s=deadline_s,
        retry_period_s=period_s,
    )


def _object_name(env: Mapping[str, str], variable: str, default: str) -> str:
    name = env.get(variable, "").strip() or default
    if not _OBJECT_NAME.fullmatch(name):
        raise ConfigError(
            f"{variable} is {name!r}; STOKER_LEADER_ELECT needs the namespace and name of a Lease"
        )
    return name


def _seconds(env: Mapping[str, str], variable: str, default: float) -> float:
    text = env.get(variable, "").strip()
    try:
        seconds = float(text) if text else float(default)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ConfigError(f"{variable} is {text!r}; use seconds, more than 0 and at most 3600")
    return seconds


def _pod_defaults(env: Mapping[str, str]) -> PodDefaults:
    policy = env.get("STOKER_RUNTIME_IMAGE_PULL_POLICY", "").strip()
    if policy not in ("", *PULL_POLICIES):
        raise ConfigError(
            f"STOKER_RUNTIME_IMAGE_PULL_POLICY is {policy!r}; use one of {', '.join(PULL_POLICIES)}"
        )
    secrets = _names(env, "STOKER_RUNTIME_IMAGE_PULL_SECRETS")
    for name in secrets:
        if not _OBJECT_NAME.fullmatch(name):
            raise ConfigError(
                f"STOKER_RUNTIME_IMAGE_PULL_SECRETS has {name!r}; use names of Secrets, separated by commas"
            )
    variables, ca_bundle = _variables(env), _ca_bundle(env)
    if ca_bundle is not None and "SSL_CERT_FILE" in variables:
        raise ConfigError(
            "STOKER_RUNTIME_ENV sets SSL_CERT_FILE, and so does STOKER_RUNTIME_CA_BUNDLE: remove one"
        )
    return PodDefaults(
        image_pull_policy=policy or None,
        image_pull_secrets=secrets,
        env=variables,
        ca_bundle=ca_bundle,
        has_assigned_user=_boolean(env, "STOKER_RUNTIME_ASSIGNED_USER"),
    )


def _variables(env: Mapping[str, str]) -> dict[str, str]:
    text = env.get("STOKER_RUNTIME_ENV", "").strip() or "{}"
    try:
        variables = json.loads(text)
    except ValueError:
        variables = None
    if not isinstance(variables, dict) or not all(isinstance(value, str) for value in variables.values()):
        raise ConfigError(
            'STOKER_RUNTIME_ENV must be a JSON object of strings, such as {"HF_ENDPOINT": "https://hub.example"}'
        )
    for name in variables:
        if not _VARIABLE_NAME.fullmatch(name):
            raise ConfigError(f"STOKER_RUNTIME_ENV has {name!r}, which is no name of a variable")
        if name in _RESERVED_VARIABLES:
            raise ConfigError(f"STOKER_RUNTIME_ENV must not set {name}: {_RESERVED_VARIABLES[name]}")
    return variables


def _ca_bundle(env: Mapping[str, str]) -> CaBundle | None:
    text = env.get("STOKER_RUNTIME_CA_BUNDLE", "").strip()
    if not text:
        return None
    config_map, _, key = text.partition("/")
    if not _OBJECT_NAME.fullmatch(config_map) or not _DATA_KEY.fullmatch(key):
        raise ConfigError(f"STOKER_RUNTIME_CA_BUNDLE is {text!r}; use CONFIGMAP/KEY, such as ours/ca.crt")
    return CaBundle(config_map=config_map, key=key)


def _names(env: Mapping[str, str], variable: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in env.get(variable, "").split(",") if name.strip())


def _boolean(env: Mapping[str, str], variable: str) -> bool:
    text = env.get(variable, "").strip().lower()
    if text not in _BOOLEANS:
        raise ConfigError(f"{variable} is {text!r}; use true or false")
    return _BOOLEANS[text]
