import sys

import pytest

from dl.image_cache import available_memory
from ops.text import size_text

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """machine(available in KiB, lines of /proc/self/cgroup, {file below /sys/fs/cgroup: text}) -> bytes or None."""

    def make(available, groups=(), files=None):
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        if available is not None:
            (proc / "meminfo").write_text(f"MemTotal:  99999999 kB\nMemFree: 1 kB\nMemAvailable:   {available} kB\n")
        (proc / "self/cgroup").write_text("".join(f"{line}\n" for line in groups))
        for name, text in (files or {}).items():
            (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
            (cgroups / name).write_text(f"{text}\n")
        return available_memory(proc, cgroups)

    return make


def test_without_a_group_the_machine_counts(machine):
    assert machine(8 * 2**20) == 8 * GIB


def test_unknown_where_the_system_does_not_say(machine):
    assert machine(None) is None


def test_version_2_a_limit_above_counts_as_well(machine):
    files = {"a/memory.max": 4 * GIB, "a/memory.current": GIB, "a/b/memory.max": "max", "a/b/memory.current": 5}
    assert machine(8 * 2**20, ["0::/a/b"], files) == 3 * GIB


def test_version_2_without_a_limit(machine):
    assert machine(2 * 2**20, ["0::/a"], {"a/memory.max": "max", "a/memory.current": GIB}) == 2 * GIB


def test_version_2_kept_files_are_free(machine):
    stat = f"anon {GIB}\nfile 7\ninactive_file {GIB // 2}\nactive_file 9"
    files = {"memory.max": 2 * GIB, "memory.current": 2 * GIB, "memory.stat": stat}
    assert machine(8 * 2**20, ["0::/"], files) == GIB // 2


def test_version_2_in_a_container_that_sees_its_own_group_as_the_root(machine):
    files = {"memory.max": 3 * GIB, "memory.current": GIB}
    assert machine(8 * 2**20, ["0::/docker/0123"], files) == 2 * GIB


def test_version_1(machine):
    files = {
        "memory/job/memory.limit_in_bytes": 3 * GIB,
        "memory/job/memory.usage_in_bytes": 2 * GIB,
        "memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 4}",
        "memory/memory.limit_in_bytes": 9223372036854771712,  # how version 1 says "none"
        "memory/memory.usage_in_bytes": 5 * GIB,
    }
    assert machine(8 * 2**20, ["12:cpu,cpuacct:/job", "3:memory:/job"], files) == GIB * 5 // 4


def test_a_group_that_is_over_its_limit_has_nothing(machine):
    assert machine(2**20, ["0::/"], {"memory.max": GIB, "memory.current": 2 * GIB}) == 0


def test_other_controllers_and_odd_files_do_not_matter(machine):
    files = {"memory/memory.limit_in_bytes": "", "memory/memory.usage_in_bytes": "x y"}
    assert machine(2**20, ["2:cpu:/x", "1:name=systemd:/", "5:memory:/x"], files) == GIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_here():
    assert 2**20 < available_memory() < 2**50


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 KiB"), (5000, "5 KiB"), (3_565_158, "3.4 MiB"), (2**30, "1.0 GiB"), (10**12, "931.3 GiB")]
)
def test_sizes_for_people(size, text):
    assert size_text(size) == text
