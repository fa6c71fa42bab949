"""Other projects own a kind named ModelDeployment, too: what people type must say whose they mean.

`kubectl get modeldeployments` shows those of one of the groups, and nothing says of which; `mdep` and
`modeldeployments.stoker.dev` are ours alone.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakeapi.kinds import THEIRS as STORED

from stoker_operator.api import labels
from stoker_operator.api.crd import crd

REPOSITORY = Path(__file__).resolve().parents[2]
_VERBS = "get|describe|explain|edit|delete|scale|wait|annotate|label|patch|events|rollout"
_NAME = r"modeldeployments?(?![\w-]|\.stoker\.dev)"
# The name among a command's words, in lower case; in any case right after the verb.
BARE = re.compile(
    rf"kubectl(?: -\S+| (?!{_VERBS})\S+)* (?:{_VERBS}) (?:(?i:{_NAME})|[^`|;&#\n]*(?<=[ ,]){_NAME})", re.ASCII
)
# What people read or are told: pages, manifests, and the texts of programs.
PATTERNS = ("*.md", "*.txt", "*.yaml", "*.yml", "*.py", "*.sh", "Makefile")
# The CRD's names, and those of a CRD that another project installs beside it.
OURS: dict[str, Any] = crd()["spec"]
THEIRS: dict[str, Any] = {
    "group": "serving.example.org",
    "names": {
        "kind": "ModelDeployment",
        "plural": "modeldeployments",
        "singular": "modeldeployment",
        "shortNames": ["md"],
    },
}


def told() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PATTERNS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path != Path(__file__)]


@pytest.mark.parametrize(
    ("text", "is_bare"),
    [
        ("kubectl get modeldeployments --watch", True),
        ("kubectl -n team describe modeldeployment/qwen3", True),
        ("kubectl get ModelDeployment", True),
        ("kubectl get pods,modeldeployments", True),
        ("kubectl explain modeldeployment.spec", True),
        ("kubectl get mdep", False),
        ("kubectl get modeldeployments.stoker.dev", False),
        ("kubectl explain modeldeployments.stoker.dev", False),
        ("kubectl delete crd modeldeployments.stoker.dev", False),
        ("kubectl apply --filename crds/modeldeployments.yaml", False),
        ("kubectl get pods   # of all modeldeployments", False),
        ("`kubectl get pods` shows those of a ModelDeployment", False),
    ],
)
def test_the_pattern_finds_bare_names_in_commands(text: str, is_bare: bool) -> None:
    assert bool(BARE.search(text)) is is_bare


def test_no_page_or_message_tells_people_to_type_the_bare_name() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in told()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if BARE.search(line)
    ]
    assert found == [], "write mdep, or modeldeployments.stoker.dev"


def meant(typed: str, *crds: dict[str, Any]) -> set[str]:
    """Return the groups whose kind a name in a command may mean: any of its names, the group behind a dot."""
    name, _, group = typed.lower().partition(".")
    return {
        found["group"]
        for found in crds
        if name in (found["names"]["plural"], found["names"]["singular"], *found["names"]["shortNames"])
        and group in ("", found["group"])
    }


def test_what_people_are_told_to_type_means_ours_alone() -> None:
    (short,) = OURS["names"]["shortNames"]
    assert short == "mdep"
    for typed in (short, f"{labels.PLURAL}.{labels.GROUP}", f"{short}.{labels.GROUP}"):
        assert meant(typed, OURS, THEIRS) == {labels.GROUP}
    assert len(meant(labels.PLURAL, OURS, THEIRS)) == 2


def test_theirs_on_the_fake_api_has_the_same_kind_and_plural() -> None:
    assert (STORED.group, STORED.kind, STORED.plural) == (THEIRS["group"], labels.KIND, labels.PLURAL)
    assert STORED.group != labels.GROUP


def test_the_chart_gives_rights_on_no_group_but_ours_to_the_kind() -> None:
    """A rule with a star, or with the kind's name under another group, would be one on theirs, too."""
    text = "\n".join(path.read_text() for path in (REPOSITORY / "charts/stoker/templates").glob("**/*.*"))
    ours = re.findall(r"apiGroups: \[([^\]]*)\]\n +resources: \[[^\]]*modeldeployments", text)
    assert set(ours) == {labels.GROUP}
    assert not re.search(r"apiGroups: \[[^\]]*\*", text)
