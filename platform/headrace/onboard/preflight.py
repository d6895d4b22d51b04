"""Before Ray starts: what on this machine would make a run fail later, and worse, each finding with its remedy.

Finding out takes milliseconds and imports nothing heavy. Refusals are for what cannot work; the rest is said, and the
run goes on.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.config.recipe import Recipe

_GIB = 2**30
_NEEDED_GIB = 3.0
"""Of memory: Ray's own processes, two workers and a replica, before any table."""
_NEEDED_EACH_GIB = 0.6
_SHARED_GIB = 0.5
_DISK_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. Made by ``findings``, said by the command line."""

    words: str
    """What was found, and what to do."""
    stops: bool = False
    """Whether a run cannot work like this."""


@dataclass(frozen=True)
class Host:
    """What is looked at, so that tests can say it. Made by ``look``."""

    system: str
    python: tuple[int, int]
    free_memory: int | None
    """Bytes; None where it is not known."""
    free_shared: int | None
    """Of shared memory, bytes."""
    free_disk: int
    """Where the run's folder will lie, bytes."""
    environment: Mapping[str, str]


def look(run_dir: Path) -> Host:
    """This machine, as it is now."""
    return Host(
        platform.system(),
        (sys.version_info.major, sys.version_info.minor),
        _free_memory(),
        shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
        shutil.disk_usage(_existing(run_dir)).free,
        os.environ,
    )


def findings(recipe: Recipe, host: Host) -> Iterator[Finding]:
    """All that is worth saying about this host, for this recipe; nothing where all is well."""
    run = recipe.run
    if host.system != "Linux":
        yield Finding(f"this is {host.system}: Headrace is tested on Linux alone; a container or WSL 2 will do", True)
    if host.python < (3, 11):
        yield Finding(f"Python {host.python[0]}.{host.python[1]}: 3.11 or newer is needed", True)
    address = host.environment.get("RAY_ADDRESS")
    if run.ray_address == "local":
        if address:
            yield Finding(
                f"RAY_ADDRESS is {address} and is not joined, since this run starts its own Ray; run.ray_address=auto "
                "would join it"
            )
        yield from _local(recipe, host)
    elif run.ray_address == "auto" and not address and not Path("/tmp/ray/ray_current_cluster").exists():
        yield Finding(
            "run.ray_address=auto, and no cluster is known here: set RAY_ADDRESS, start one (ray start --head), or "
            "leave run.ray_address out"
        )
    if host.free_disk < _DISK_GIB * _GIB:
        yield Finding(
            f"{host.free_disk / _GIB:.1f} GiB are free where {run.dir} lies: commits stop when none are; free some, or "
            "set run.dir"
        )


def _local(recipe: Recipe, host: Host) -> Iterator[Finding]:
    """What a Ray of our own needs."""
    replicas = recipe.serve.most_replicas if recipe.serve.enabled else 0
    needed = _NEEDED_GIB + _NEEDED_EACH_GIB * max(0, recipe.run.num_workers + replicas - 3)
    if host.free_memory is not None and host.free_memory < needed * _GIB:
        yield Finding(
            f"{host.free_memory / _GIB:.1f} GiB of memory are free, and some {needed:.1f} will be used: close "
            "something, or take fewer workers (run.num_workers=1)"
        )
    if host.free_shared is not None and host.free_shared < _SHARED_GIB * _GIB:
        yield Finding(
            f"{host.free_shared / 2**20:.0f} MiB of shared memory are free in /dev/shm: Ray then writes to disk and is "
            "slow; in a container, start it with --shm-size=2g"
        )


def _free_memory() -> int | None:
    """Bytes that can be had, by the system or by this container's limit, whichever is less."""
    known = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                known.append(int(line.split()[1]) * 1024)
    except OSError:
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            known.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(known, default=None)


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path
