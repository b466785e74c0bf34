"""How much memory this process may still take: by the machine, and by the container or job that it runs in."""

from collections.abc import Iterator
from pathlib import Path


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can be taken without swapping or being killed; None where the system does not tell (not Linux).

    The least of MemAvailable and of what every enclosing control group (version 1 or 2) has left. Files that the kernel
    merely keeps because there is room count as free, as they do in MemAvailable.
    """
    machine = _numbers(proc / "meminfo").get("MemAvailable:")
    if machine is None:
        return None
    return max(0, min([machine * 1024, *_left_in_groups(proc / "self/cgroup", cgroups)]))


def size_text(num_bytes: int) -> str:
    """Bytes for people: 512 KiB, 3.4 MiB, 1.2 GiB."""
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.0f} KiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"


def _left_in_groups(membership: Path, cgroups: Path) -> Iterator[int]:
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names, reclaimable = cgroups, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            root, reclaimable = cgroups / "memory", "total_inactive_file"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = root / path.lstrip("/")
        # A container may see its own group as the root while the path is still the one outside.
        for group in (own, *own.parents):
            limit, used = (_number(group / name) for name in names)
            if limit is not None and used is not None:
                yield limit - used + _numbers(group / "memory.stat").get(reclaimable, 0)
            if group == root:
                break


def _number(file: Path) -> int | None:
    """The file's one number; None when it says `max` or is not there."""
    words = " ".join(_lines(file)).split()
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None


def _numbers(file: Path) -> dict[str, int]:
    """First word of each line -> the number behind it."""
    words = [line.split() for line in _lines(file)]
    return {entry[0]: int(entry[1]) for entry in words if len(entry) > 1 and entry[1].isdigit()}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
