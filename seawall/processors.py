"""How many processors this process may use: by its affinity, and by the quota of its control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def available(groups: Path = _GROUPS, own: Path = _OWN_GROUP) -> int:
    """Processors, at least one; a quota of one and a half counts as one.

    Source: sched_getaffinity(2); `cpu.max` of the Linux kernel's cgroup v2, `cpu.cfs_quota_us` of v1.

    Args:
        groups: where control groups are mounted.
        own: the file that says in which of them this process is.
    """
    return max(1, int(min(len(os.sched_getaffinity(0)), *_quotas(groups, own), float("inf"))))


def wanted(workers: int) -> int:
    """How many workers a setting stands for; 0 is as many as there are processors."""
    return workers or available()


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    for folder in _folders(groups, own):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        yield from _ratio(quota, period)
    v1 = groups / "cpu"
    yield from _ratio(_text(v1 / "cpu.cfs_quota_us"), _text(v1 / "cpu.cfs_period_us"))


def _folders(groups: Path, own: Path) -> Iterator[Path]:
    """The process's group and all above it: the narrowest quota holds."""
    for line in _text(own).splitlines():
        number, _, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "")
        if number == "0":
            inside = PurePosixPath(path.lstrip("/"))
            yield from (groups / folder for folder in (inside, *inside.parents) if ".." not in folder.parts)


def _ratio(quota: str, period: str) -> Iterator[float]:
    # `max` and -1 are no quota.
    if quota.isdigit() and period.isdigit() and int(period):
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        # Not every system has control groups, and none has all of these files.
        return ""
