"""The operator's settings, read once from STOKER_* variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOG_LEVELS = ("debug", "info", "warning", "error")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False, "": False}


class ConfigError(Exception):
    """A setting that cannot work; the text names the variable and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorConfig:
    """Settings of one operator process.

    Args:
        runtime_image: image of pods that name none themselves.
        watch_namespaces: namespaces to serve; empty for the whole cluster.
        allow_file_sources: whether ``file://`` may mount a folder of the node.
        cluster_domain: DNS suffix of the cluster, for ``status.url``.
        log_level: one of LOG_LEVELS.
    """

    runtime_image: str
    watch_namespaces: tuple[str, ...] = ()
    allow_file_sources: bool = False
    cluster_domain: str = "cluster.local"
    log_level: str = "info"

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> OperatorConfig:
        """Read the settings.

        Raises:
            ConfigError: a variable is missing or malformed.
        """
        image = env.get("STOKER_RUNTIME_IMAGE", "").strip()
        if not image:
            raise ConfigError("STOKER_RUNTIME_IMAGE is not set; give the image that runtime pods run")
        text = env.get("STOKER_ALLOW_FILE_SOURCES", "").strip().lower()
        if text not in _BOOLEANS:
            raise ConfigError(f"STOKER_ALLOW_FILE_SOURCES is {text!r}; use true or false")
        level = env.get("STOKER_LOG_LEVEL", "info").strip().lower()
        if level not in LOG_LEVELS:
            raise ConfigError(f"STOKER_LOG_LEVEL is {level!r}; use one of {', '.join(LOG_LEVELS)}")
        names = env.get("STOKER_WATCH_NAMESPACES", "").split(",")
        return cls(
            runtime_image=image,
            watch_namespaces=tuple(name.strip() for name in names if name.strip()),
            allow_file_sources=_BOOLEANS[text],
            cluster_domain=env.get("STOKER_CLUSTER_DOMAIN", "").strip() or "cluster.local",
            log_level=level,
        )
