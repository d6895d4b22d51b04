"""``headrace clean``: what runs have left on this machine, in processes, folders and megabytes, and how to remove it.

It shows, and removes nothing by itself: a store is somebody's model. What a run that goes on still uses is marked.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_RAY = Path("/tmp/ray")
_SESSION = re.compile(r"session_\d{4}-\d{2}-\d{2}_.*_(\d+)$")
_OURS = ("headrace.cli", "bin/headrace")


@dataclass(frozen=True)
class Leftover:
    """Something that lies, or runs, here. Made by ``leftovers``, shown by the command line."""

    kind: str
    what: str
    size_bytes: int | None
    """None for a process."""
    in_use: bool
    remedy: str
    """The command that removes it; "" where it is in use."""


def leftovers(runs: Path, ray: Path = _RAY, proc: Path = Path("/proc")) -> Iterator[Leftover]:
    """Runs in the folder ``runs``, Ray's session folders, and our processes."""
    alive = {int(path.name) for path in proc.iterdir() if path.name.isdigit()}
    for process in sorted(alive):
        if (words := _words(proc / str(process))) and process != os.getpid() and _is_ours(words):
            yield Leftover("process", f"{process}: {' '.join(words)[:80]}", None, True, f"kill {process}")
    for folder in sorted(runs.glob("*")) if runs.is_dir() else ():
        if (folder / "recipe.json").is_file():
            held = _holder(folder / "store" / "trainer.lock", alive)
            yield Leftover("run", str(folder), _size(folder), held, "" if held else f"rm -r {folder}")
    for folder in sorted(ray.glob("session_*")) if ray.is_dir() else ():
        if (match := _SESSION.search(folder.name)) and not folder.is_symlink():
            held = int(match[1]) in alive
            yield Leftover("Ray session", str(folder), _size(folder), held, "" if held else f"rm -r {folder}")


def _is_ours(words: list[str]) -> bool:
    return any(part in word for word in words[:3] for part in _OURS) and "clean" not in words


def _words(process: Path) -> list[str]:
    """A process's command line; empty where it has gone, or is not ours to read."""
    try:
        return [word.decode(errors="replace") for word in (process / "cmdline").read_bytes().split(b"\0") if word]
    except OSError:
        return []


def _holder(lock: Path, alive: set[int]) -> bool:
    """Whether the process that noted itself in a trainer's lock is still there."""
    try:
        return int(lock.read_text().strip() or -1) in alive
    except (OSError, ValueError):
        return False


def _size(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # it has just gone
                continue
    return total
