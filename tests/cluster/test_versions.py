import re
import shutil
from pathlib import Path

import pytest

from cluster import versions
from cluster.build import build_command, compiler_environment, packages_of, place, target
from cluster.versions import HERE, STAGES, Tool, content_key, load_tools, tools_of


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    """A copy of the pins that a test may change."""
    shutil.copy(HERE / "versions.toml", tmp_path)
    shutil.copytree(HERE / "go", tmp_path / "go")
    return tmp_path


@pytest.mark.parametrize("tool", load_tools().values(), ids=lambda tool: tool.name)
def test_pinned_versions_are_those_that_go_mod_requires(tool: Tool) -> None:
    text = (tool.module / "go.mod").read_text()
    required = dict(re.findall(r"^(?:require)?\s+(\S+) (v\S+)", text, flags=re.MULTILINE))
    sums = (tool.module / "go.sum").read_text()
    pins = {**tool.also, **({tool.require: tool.version} if tool.require else {})}
    for path, version in pins.items():
        assert required[path] == version
        assert f"{path} {version} h1:" in sums


@pytest.mark.parametrize("tool", load_tools().values(), ids=lambda tool: tool.name)
def test_binaries_have_the_names_that_the_compiler_gives_them(tool: Tool) -> None:
    for name, package in tool.packages.items():
        assert package.rpartition("/")[2] == name
        assert (tool.module / package).is_dir() == package.startswith("./")


def test_every_kubernetes_module_has_the_same_minor_version() -> None:
    kube = load_tools()["kube"]
    staging = "v0" + kube.version.removeprefix("v1")
    replaced = re.findall(r"=> k8s\.io/\S+ (v\S+)", (kube.module / "go.mod").read_text())
    assert len(replaced) == 33
    assert set(replaced) == {staging}
    assert f"gitVersion={kube.version}" in kube.ldflags
    assert f"version.version={kube.also['helm.sh/helm/v4']}" in kube.ldflags


def test_every_tool_serves_a_stage_and_binaries_have_one_name_each() -> None:
    tools = load_tools()
    assert all(set(tool.stages) <= set(STAGES) and tool.stages for tool in tools.values())
    names = [name for tool in tools.values() for name in tool.binaries()]
    assert len(names) == len(set(names))


def test_integration_needs_the_one_binary_with_kubernetes_and_etcd_only() -> None:
    (tool,) = tools_of("integration", load_tools())
    assert {"kube-apiserver", "etcd", "kubectl"} <= set(tool.binaries())


def test_key_changes_with_the_recipe_and_with_the_module_and_only_for_that_tool(pins: Path) -> None:
    before = load_tools(pins)
    assert {name: tool.key for name, tool in before.items()} == {n: t.key for n, t in load_tools().items()}
    (pins / "go/cluster/cmd/pause/main.go").write_text("package main\n")
    text = (pins / "versions.toml").read_text()
    (pins / "versions.toml").write_text(text.replace("gitMinor=37", "gitMinor=38"))
    after = load_tools(pins)
    assert {name for name in before if before[name].key != after[name].key} == {"pause", "kube", "kubeadm"}
    (pins / "go/cluster/go.sum").write_text("")
    last = load_tools(pins)
    assert all(last[name].key != after[name].key for name in before if before[name].module.name == "cluster")


def test_content_key_tells_apart_where_one_part_ends() -> None:
    assert content_key({"a": b"bc"}) != content_key({"ab": b"c"})
    assert content_key({"a": b"1", "b": b"2"}) == content_key({"b": b"2", "a": b"1"})


def test_builds_are_kept_below_the_cache_folder_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert versions.cache_dir() == tmp_path / "stoker"
    cni = load_tools()["cni"]
    assert target(cni) == tmp_path / "stoker" / "tools" / f"cni-{cni.version}-{cni.key}"


def test_compiler_may_not_change_the_pins_and_makes_all_binaries_of_a_module_at_once() -> None:
    tools = [tool for tool in load_tools().values() if tool.module.name == "cluster"]
    command = build_command(tools, Path("/out"))
    assert "-mod=readonly" in command
    assert "-o=/out/" in command
    assert command[-len(packages_of(tools)) :] == packages_of(tools)
    (ldflags,) = [part for part in command if part.startswith("-ldflags=")]
    assert all(tool.ldflags in ldflags for tool in tools)
    assert "-tags=" in command
    assert "-tags=remove_all_sd" in build_command([load_tools()["promtool"]], Path("/out"))


@pytest.mark.parametrize(
    ("available_gib", "num_cpus", "wanted"),
    [
        (24, 2, {"GOGC": "off", "GOMEMLIMIT": "2048MiB"}),
        (6, 2, {"GOGC": "off", "GOMEMLIMIT": "1536MiB"}),
        (1, 2, {}),
        (32, 64, {}),
        (0, 2, {}),
    ],
)
def test_compiler_collects_no_garbage_where_memory_is_plenty(
    available_gib: int, num_cpus: int, wanted: dict[str, str]
) -> None:
    assert compiler_environment(available_gib << 30, num_cpus) == wanted


def test_binaries_are_moved_to_the_cache_with_their_links(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tool = load_tools()["containerd"]
    built = tmp_path / "stoker" / "tools" / ".cluster-x"
    built.mkdir(parents=True)
    for name in tool.packages:
        (built / name).write_text(name)
    place(tool, built)
    assert sorted(path.name for path in target(tool).iterdir()) == sorted(tool.binaries())
    assert (target(tool) / "ctr").read_text() == "containerd"
