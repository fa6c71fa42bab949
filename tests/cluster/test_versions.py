import re
import shutil
from pathlib import Path

import pytest

from cluster import versions
from cluster.build import build_command, target
from cluster.versions import HERE, STAGES, Tool, content_key, load_tools, tools_of


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    """A copy of the pins that a test may change."""
    shutil.copy(HERE / "versions.toml", tmp_path)
    shutil.copytree(HERE / "go", tmp_path / "go")
    return tmp_path


@pytest.mark.parametrize("tool", load_tools().values(), ids=lambda tool: tool.name)
def test_pinned_version_is_the_one_that_go_mod_requires(tool: Tool) -> None:
    text = (tool.module / "go.mod").read_text()
    required = dict(re.findall(r"^(?:require)?\s+(\S+) (v\S+)", text, flags=re.MULTILINE))
    if tool.require:
        assert required[tool.require] == tool.version
        assert f"{tool.require} {tool.version} h1:" in (tool.module / "go.sum").read_text()
    else:
        assert required == {}


def test_every_kubernetes_module_has_the_same_minor_version() -> None:
    kube = load_tools()["kube"]
    staging = "v0" + kube.version.removeprefix("v1")
    replaced = re.findall(r"=> k8s\.io/\S+ (v\S+)", (kube.module / "go.mod").read_text())
    assert len(replaced) == 33
    assert set(replaced) == {staging}
    assert f"gitVersion={kube.version}" in kube.ldflags


def test_every_tool_serves_a_stage_and_binaries_have_one_name_each() -> None:
    tools = load_tools()
    assert all(set(tool.stages) <= set(STAGES) and tool.stages for tool in tools.values())
    names = [name for tool in tools.values() for name in tool.binaries()]
    assert len(names) == len(set(names))


def test_integration_needs_kubernetes_and_etcd_only() -> None:
    assert [tool.name for tool in tools_of("integration", load_tools())] == ["kube", "etcd"]


def test_key_changes_with_the_recipe_and_with_the_module_and_only_for_that_tool(pins: Path) -> None:
    before = load_tools(pins)
    assert {name: tool.key for name, tool in before.items()} == {n: t.key for n, t in load_tools().items()}
    (pins / "go/etcd/main.go").write_text("package main\n")
    text = (pins / "versions.toml").read_text()
    (pins / "versions.toml").write_text(text.replace("gitMinor=37", "gitMinor=38"))
    after = load_tools(pins)
    assert {name for name in before if before[name].key != after[name].key} == {"etcd", "kube", "kubeadm"}


def test_content_key_tells_apart_where_one_part_ends() -> None:
    assert content_key({"a": b"bc"}) != content_key({"ab": b"c"})
    assert content_key({"a": b"1", "b": b"2"}) == content_key({"b": b"2", "a": b"1"})


def test_builds_are_kept_below_the_cache_folder_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert versions.cache_dir() == tmp_path / "stoker"
    etcd = load_tools()["etcd"]
    assert target(etcd) == tmp_path / "stoker" / "tools" / f"etcd-{etcd.version}-{etcd.key}"


def test_compiler_may_not_change_the_pins() -> None:
    command = build_command(load_tools()["kube"], ".", Path("/out/kube"))
    assert "-mod=readonly" in command
    assert command[-3:] == ["-o", "/out/kube", "."]
