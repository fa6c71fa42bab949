"""Where the repository keeps what scenarios and integration tests put on an API server."""

from __future__ import annotations

from product import CHART, REPOSITORY

__all__ = [
    "BAD_MODELDEPLOYMENTS",
    "BENCH",
    "CHART",
    "CRD_FILE",
    "EXAMPLE",
    "EXAMPLES",
    "EXAMPLE_AUTOSCALER",
    "GOLDEN",
]

BAD_MODELDEPLOYMENTS = REPOSITORY / "tests" / "operator" / "bad_modeldeployments.yaml"
BENCH = REPOSITORY / "bench"
CRD_FILE = REPOSITORY / "crds" / "modeldeployments.yaml"
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
EXAMPLE = REPOSITORY / "examples" / "smollm2.yaml"
EXAMPLE_AUTOSCALER = REPOSITORY / "examples" / "hpa.yaml"
GOLDEN = sorted((REPOSITORY / "tests" / "operator" / "golden").glob("*.yaml"))
