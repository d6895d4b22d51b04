"""What every benchmark's result carries: its table, and JSON with the machine and the commit it was measured on."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from headrace import __version__
from headrace.clock import wall_ms
from headrace.tracking.console import align

_PACKAGES = ("torch", "numpy", "ray", "pyarrow")


def print_table(
    title: str | None, header: Sequence[str], rows: Sequence[Sequence[str]], *, with_header: bool = True
) -> None:
    """Print aligned columns under a title; the first column is left-aligned.

    ``with_header=False`` goes on under a table that was printed before, row by row as results come.
    """
    lines = align(header, rows, left=frozenset({0}))
    head = [lines[0], "-" * max(map(len, lines))] if with_header else []
    sys.stdout.write("\n".join([*([title] if title else []), *head, *lines[1:]]) + "\n")
    sys.stdout.flush()


def with_facts(name: str, options: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with what one needs to measure it again: command, options, versions, commit, machine."""
    return {
        "benchmark": name,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
        "result": dict(result),
        "measured_at_ms": wall_ms(),
        "headrace": __version__,
        "commit": commit_facts(),
        "machine": machine_facts(),
        "packages": _package_versions(),
    }


def write_json(out: Path, name: str, content: Mapping[str, Any]) -> Path:
    """Write to ``out`` where it ends in .json, else to ``<name>.json`` in that folder; whole or not at all."""
    path = out if out.suffix == ".json" else out / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)
    return path


def commit_facts() -> dict[str, Any]:
    """The commit of the source tree and whether it was changed since; nulls for an installed package."""
    tree = Path(__file__).resolve().parents[3]
    if not (tree / "pyproject.toml").is_file():
        return {"sha": None, "changed": None}
    sha = _git(tree, "rev-parse", "HEAD")
    changed = _git(tree, "status", "--porcelain", "--untracked-files=no")
    return {"sha": sha, "changed": None if changed is None else bool(changed)}


def machine_facts() -> dict[str, Any]:
    """Processor, usable cores, memory, system, accelerator; nothing that names the machine."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "accelerator": _accelerator(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _accelerator() -> str | None:
    torch = sys.modules.get("torch")  # a benchmark that used one has imported it
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def _package_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def _git(tree: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
