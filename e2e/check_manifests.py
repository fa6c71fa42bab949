"""Check every manifest we ship against the API it is meant for; part of `make lint`.

The chart is linted and rendered with several settings; each result, each file of examples/ and each YAML
block of the documentation is validated: Kubernetes' own objects against its published schemas,
ModelDeployments against our CRD, and unknown fields are refused in both. Blocks that begin with
`# values.yaml` are values of the chart.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

import needs
from cluster import build, failures, shell
from cluster.api import ClusterError
from cluster.progress import say
from cluster.versions import load_tools, tools_of

REPOSITORY = Path(__file__).resolve().parent.parent
CHART = REPOSITORY / "charts" / "stoker"
CRD = REPOSITORY / "crds" / "modeldeployments.yaml"
KUBERNETES = "1.37"
# The chart has the CRD, of which the loader in Python takes a quarter of a second.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PAGES = tuple(sorted(path for pattern in ("*.md", "docs/**/*.md") for path in REPOSITORY.glob(pattern)))
# What a block of the chart's values begins with.
VALUES = "# values.yaml\n"
# Kinds of other projects' CRDs, for which no schema is at hand.
FOREIGN_KINDS = frozenset({"PodMonitor", "PrometheusRule", "ServiceMonitor"})
RENDERINGS: Mapping[str, tuple[str, ...]] = {
    "defaults": (),
    "replicas": ("replicaCount=3", "leaderElection.leaseDurationSeconds=15", "namespaces={team-a}"),
    "alone": ("leaderElection.enabled=false",),
    "two namespaces": ("namespaces={team-a,team-b}", "allowFileSources=true"),
    "monitored": (
        "monitoring.podMonitor.enabled=true",
        "monitoring.podMonitor.labels.team=ml",
        "monitoring.alerts.enabled=true",
        "monitoring.alerts.labels.team=ml",
        "monitoring.dashboard.enabled=true",
    ),
    "monitored by Service": (
        "monitoring.serviceMonitor.enabled=true",
        "monitoring.serviceMonitor.labels.team=ml",
        "namespaces={team-a}",
    ),
    "no CRD, no RBAC": ("crds.install=false", "rbac.create=false", "serviceAccount.name=ours"),
    "placed": (
        "imagePullSecrets[0].name=pull",
        "nodeSelector.pool=system",
        "tolerations[0].operator=Exists",
        "priorityClassName=system-cluster-critical",
        "extraEnv[0].name=HTTPS_PROXY",
        "extraEnv[0].value=http://proxy:3128",
        "podAnnotations.a=b",
        "podLabels.c=d",
    ),
    "air-gapped": (
        "global.imageRegistry=registry.example:5000/mirror",
        f"image.digest=sha256:{'1' * 64}",
        f"runtimeImage.digest=sha256:{'2' * 64}",
        "runtimeImage.pullPolicy=Always",
        "imagePullSecrets[0].name=pull",
        "runtimePods.imagePullSecrets[0].name=pull",
        "runtimePods.imagePullSecrets[1].name=mirror",
        "runtimePods.env.HF_ENDPOINT=https://hub.example",
        "runtimePods.env.NO_PROXY=.svc\\,.example",
        "runtimePods.caBundle.configMap=trusted",
        "test.modelSource=oci://registry.example:5000/smollm2:1",
    ),
    "guarded": (
        "networkPolicy.enabled=true",
        "networkPolicy.namespaces={team-a,team-b}",
        "networkPolicy.clients[0].namespaceSelector.matchLabels.team=apps",
        "networkPolicy.clients[1].ipBlock.cidr=10.0.0.0/8",
    ),
    "user assigned by the platform": ("assignedUser=true", "namespaces={team-a,team-b}"),
}


@dataclass(frozen=True)
class Problem:
    """One thing that the API server would refuse."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def closed(schema: Any) -> Any:
    """Return an OpenAPI schema that refuses fields it does not name, as strict validation does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    has_fields = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if has_fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def modeldeployment_schema(crd: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of the served version of a CRD, unknown fields refused."""
    (version,) = [version for version in crd["spec"]["versions"] if version["served"]]
    schema: dict[str, Any] = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"].update(
        apiVersion={"type": "string"}, kind={"type": "string"}, metadata={"type": "object"}
    )
    return schema


def check(manifest: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """Return what is wrong with one manifest, if anything.

    Args:
        manifest: an object of any kind.
        schema: what `modeldeployment_schema` returned.
    """
    kind = manifest.get("kind", "")
    if kind in FOREIGN_KINDS:
        return None
    try:
        if kind == "ModelDeployment":
            jsonschema.validate(manifest, schema)
        else:
            kubernetes_validate.validate(dict(manifest), KUBERNETES, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        path = ".".join(str(part) for part in error.absolute_path)
        return f"{kind}: {path or 'object'}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return str(error.message)
    return None


def documents(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a YAML stream, lists unfolded."""
    for document in yaml.load_all(text, LOADER):
        if document:
            yield document


def snippets(page: str) -> Iterator[tuple[int, str]]:
    """Yield the YAML blocks of a page of Markdown, each with the number of its first line."""
    for block in re.finditer(r"^```ya?ml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield page.count("\n", 0, block.start(1)) + 1, block[1]


def helm() -> str:
    """Return a helm: the one on PATH, else the one that the test cluster's tools include.

    Raises:
        ClusterError: there is none, and it cannot be compiled.
    """
    found = shutil.which("helm")
    if found:
        return found
    if not build.is_built(tools_of("charts", load_tools())):
        time = needs.duration(needs.TOOLS_S["kube"])
        say(
            "There is no helm on PATH (https://helm.sh/docs/intro/install): it is compiled with the programs"
            f" of the test cluster, once, in about {time} on 2 quiet cores."
        )
    return build.ensure("charts")["helm"]


def render(program: str, settings: tuple[str, ...], *options: str, chart: str = str(CHART)) -> str:
    """Return the chart's manifests with some values set.

    Args:
        program: helm.
        settings: `--set` values.
        options: further options of helm.
        chart: a folder, an archive or an address in a registry.

    Raises:
        ClusterError: helm refused; its output is in the text.
    """
    command = [program, "template", "stoker", chart, "--namespace=stoker-system", *options]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"helm template {' '.join(settings)}: {done.stderr.strip()}")
    return done.stdout


@cache
def rendered_by_default(program: str) -> str:
    """Return the chart's manifests without any value set."""
    return render(program, ())


def documentation(program: str) -> Iterator[tuple[str, str]]:
    """Yield the manifests of each YAML block of the documentation, with where they are.

    Raises:
        ClusterError: values of the chart that it refuses; where they are is in the text.
    """
    for page in PAGES:
        for line, text in snippets(page.read_text()):
            where = f"{page.relative_to(REPOSITORY)}:{line}"
            yield where, render_values(program, where, text) if text.startswith(VALUES) else text


def render_values(program: str, where: str, values: str) -> str:
    """Return the chart's manifests with the values of a block."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(values)
        file.flush()
        try:
            return render(program, (), f"--values={file.name}")
        except ClusterError as error:
            raise ClusterError(f"{where}: {error}") from error


def lint_chart(program: str) -> Iterator[Problem]:
    """Yield what `helm lint --strict` finds."""
    done = subprocess.run(
        [program, "lint", "--strict", "--quiet", str(CHART)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        yield Problem("helm lint", done.stdout.strip())


def problems(program: str) -> Iterator[Problem]:
    """Yield every problem of the chart, the examples and the documentation, by what helm makes of them."""
    schema = modeldeployment_schema(yaml.safe_load(CRD.read_text()))
    yield from lint_chart(program)
    sources = {f"chart ({name})": render(program, settings) for name, settings in RENDERINGS.items()}
    sources |= {
        f"examples/{path.name}": path.read_text() for path in sorted((REPOSITORY / "examples").glob("*.yaml"))
    }
    for where, text in (*sources.items(), *documentation(program)):
        for manifest in documents(text):
            if what := check(manifest, schema):
                yield Problem(where, what)


def main() -> int:
    """Print the problems; the exit status says whether there were any."""
    try:
        program = helm()
    except ClusterError as error:
        say(f"\n{failures.render(error, shell.again('make lint'))}")
        return 1
    try:
        found = list(problems(program))
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
