import ctypes
import resource
from pathlib import Path

import pytest

from stoker_runtime.machine import (
    available_memory_bytes,
    memory_limit_bytes,
    num_oom_kills,
    return_freed_memory,
    usable_cpus,
)

GIB = 1024**3


def make_root(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {8 * GIB // 1024} kB\n",
        **files,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


POD = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"
V1_CPU = "sys/fs/cgroup/cpu"
V1_MEMORY = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        pytest.param({}, 8, id="no-cgroups"),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8, id="v2-no-quota"
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2, id="v2-rounded-down"
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1, id="v2-half-a-cpu"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/pod/container",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000",
                "sys/fs/cgroup/pod/container/cpu.max": "max 100000",
            },
            3,
            id="v2-limit-on-the-pod",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/outside/name", "sys/fs/cgroup/cpu.max": "400000 100000"},
            4,
            id="v2-path-of-another-namespace",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:cpuset:/a\n3:cpu,cpuacct:/a/b\n0::/",
                f"{V1_CPU}/cpu.cfs_quota_us": "-1",
                f"{V1_CPU}/cpu.cfs_period_us": "100000",
                f"{V1_CPU}/a/b/cpu.cfs_quota_us": "200000",
                f"{V1_CPU}/a/b/cpu.cfs_period_us": "100000",
            },
            2,
            id="v1",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 8, id="affinity"
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1, id="v2-1500m"
        ),
        pytest.param(
            {
                "proc/self/cgroup": f"0::/{POD}/cri-containerd-5.scope",
                "sys/fs/cgroup/kubepods.slice/cpu.max": "1600000 100000",
                f"sys/fs/cgroup/{POD}/cpu.max": "250000 100000",
                f"sys/fs/cgroup/{POD}/cri-containerd-5.scope/cpu.max": "700000 100000",
            },
            2,
            id="v2-tighter-pod-on-the-hosts-tree",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "11:cpuset:/\n4:cpu,cpuacct:/kubepods/pod1/c\n1:name=systemd:/x\n",
                f"{V1_CPU}/cpu.cfs_quota_us": "150000",  # a container's own group, mounted as the root
                f"{V1_CPU}/cpu.cfs_period_us": "50000",
            },
            3,
            id="v1-of-a-container",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/../../other", "sys/fs/cgroup/cpu.max": "200000 100000"},
            2,
            id="v2-outside-of-its-namespace",
        ),
    ],
)
def test_usable_cpus(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    assert usable_cpus(make_root(tmp_path, files), affinity=8) == cpus


@pytest.mark.parametrize(
    ("files", "available"),
    [
        pytest.param({}, 8 * GIB, id="no-cgroups"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": str(2 * GIB),
                "sys/fs/cgroup/memory.current": str(GIB),
                "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
            },
            3 * GIB // 2,
            id="v2-page-cache-counts-as-free",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": "max",
                "sys/fs/cgroup/memory.current": str(GIB),
            },
            8 * GIB,
            id="v2-no-limit",
        ),
        pytest.param(
            {
                "proc/self/cgroup": f"0::/{POD}/cri-containerd-5.scope",
                f"sys/fs/cgroup/{POD}/memory.max": str(2 * GIB),
                f"sys/fs/cgroup/{POD}/memory.current": str(GIB + GIB // 2),
                f"sys/fs/cgroup/{POD}/memory.stat": f"inactive_file {GIB // 4}",
                f"sys/fs/cgroup/{POD}/cri-containerd-5.scope/memory.max": str(4 * GIB),
                f"sys/fs/cgroup/{POD}/cri-containerd-5.scope/memory.current": str(GIB),
            },
            3 * GIB // 4,
            id="v2-tighter-pod",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/kubepods/pod1/c",
                f"{V1_MEMORY}/memory.limit_in_bytes": "9223372036854771712",
                f"{V1_MEMORY}/memory.usage_in_bytes": str(5 * GIB),
                f"{V1_MEMORY}/kubepods/pod1/memory.limit_in_bytes": str(GIB),
                f"{V1_MEMORY}/kubepods/pod1/memory.usage_in_bytes": str(GIB // 2),
                f"{V1_MEMORY}/kubepods/pod1/memory.stat": "inactive_file 7\ntotal_inactive_file 1024",
                f"{V1_MEMORY}/kubepods/pod1/c/memory.limit_in_bytes": "9223372036854771712",
                f"{V1_MEMORY}/kubepods/pod1/c/memory.usage_in_bytes": str(GIB // 2),
            },
            GIB // 2 + 1024,
            id="v1-limit-on-the-pod",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/a",
                f"{V1_MEMORY}/a/memory.limit_in_bytes": str(3 * GIB),
                f"{V1_MEMORY}/a/memory.usage_in_bytes": str(GIB),
                f"{V1_MEMORY}/a/memory.stat": "total_inactive_file 0\n",
            },
            2 * GIB,
            id="v1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": str(GIB),
                "sys/fs/cgroup/memory.current": str(2 * GIB),
                "sys/fs/cgroup/memory.stat": "inactive_file 0",
            },
            0,
            id="nothing-left",
        ),
    ],
)
def test_available_memory(tmp_path: Path, files: dict[str, str], available: int) -> None:
    assert available_memory_bytes(make_root(tmp_path, files)) == available


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        pytest.param({"proc/meminfo": f"MemTotal: {9 * GIB // 1024} kB\n"}, 9 * GIB, id="no-cgroups"),
        pytest.param(
            {
                "proc/meminfo": f"MemTotal: {9 * GIB // 1024} kB\n",
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/memory.max": str(2 * GIB),
                "sys/fs/cgroup/a/b/memory.max": "max",
            },
            2 * GIB,
            id="v2-limit-on-the-pod",
        ),
        pytest.param(
            {
                "proc/meminfo": f"MemTotal: {9 * GIB // 1024} kB\n",
                "proc/self/cgroup": "4:memory:/a",
                f"{V1_MEMORY}/a/memory.limit_in_bytes": str(3 * GIB),
            },
            3 * GIB,
            id="v1",
        ),
    ],
)
def test_memory_limit(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    assert memory_limit_bytes(make_root(tmp_path, files)) == limit


@pytest.mark.parametrize(
    ("files", "count"),
    [
        pytest.param({}, 0, id="no-cgroups"),
        pytest.param(
            {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.events": "low 0\noom 4\noom_kill 3\n"},
            3,
            id="v2",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/pod/c",
                f"{V1_MEMORY}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2",
            },
            2,
            id="v1-path-of-another-namespace",
        ),
        pytest.param(
            {"proc/self/cgroup": "4:memory:/", f"{V1_MEMORY}/memory.oom_control": "oom_kill_disable 0"},
            0,
            id="v1-kernel-that-does-not-count",
        ),
    ],
)
def test_oom_kills(tmp_path: Path, files: dict[str, str], count: int) -> None:
    assert num_oom_kills(make_root(tmp_path, files)) == count


def test_kernel_without_memavailable_is_an_error_not_a_guess(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="MemAvailable"):
        available_memory_bytes(make_root(tmp_path, {"proc/meminfo": "MemTotal: 9 kB\n"}))


def test_this_machine_has_something_to_use() -> None:
    assert usable_cpus() >= 1
    assert available_memory_bytes() > 0


def test_freed_memory_goes_back_to_the_kernel() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("only glibc gives memory back when it is asked to")
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    size, count = 64 << 10, 1000
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    full = resident_bytes()
    for block in blocks[:-1]:  # behind the last one, nothing can be given back by itself
        libc.free(block)
    return_freed_memory()
    assert resident_bytes() < full - size * count // 2
    libc.free(blocks[-1])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
