"""``headrace bench compare``: how far one method of a study lies above another, on the same queries.

The difference of the neural experts, and of the blends that would be served with them, with 95 % intervals: a bootstrap
over sessions (in event time, slices) and seeds (bench/study/paired.py), of the ranks that the study has kept.
"""

from pathlib import Path
from typing import Any

from headrace.bench.continual import cycles_of
from headrace.bench.output import print_table
from headrace.bench.study.kinds import kind_of
from headrace.bench.study.results import Study
from headrace.bench.study.summary import Summary
from headrace.errors import ConfigError


def run(*, ours: str, theirs: str, folder: Path, cycles: str | None = None) -> dict[str, Any]:
    """Compare over those of ``cycles`` ("5-16"; None: all) that both were tested on. Shares; above 0: ours is above."""
    study = Study(folder)
    if not study.commands():
        raise ConfigError(f"{folder} is no study: name what bench continual, stream or sessions was given as --out")
    summary = Summary(study, kind_of(study.commands()[-1]))
    voters = summary.kind.voters
    for name in (ours, theirs):
        if name not in summary.methods:
            raise ConfigError(f"{folder} has no {name!r}; it has {', '.join(summary.methods) or 'nothing'}")
    wanted = summary.cycles if cycles is None else cycles_of(cycles)
    found = summary.compare(ours, theirs, wanted)
    if not found:
        raise ConfigError(
            f"{folder} has no cycle of {cycles or 'any'} that both {ours!r} and {theirs!r} were tested on"
        )
    one = next(iter(found.values()))
    numbers = ", ".join(map(str, one.cycles))
    title = (
        f"{ours} above {theirs}, points, 95 %: {summary.kind.unit}s {numbers}, {one.seeds} seeds, {one.queries} queries"
    )
    rows = [[voters[voter], metric, interval.words()] for (voter, metric), interval in found.items()]
    cpu_s = {name: summary.cpu_s(name, one.cycles) for name in (ours, theirs)}
    told = [f"{value:.1f}" for value in cpu_s.values() if value is not None]
    if len(told) == len(cpu_s):
        rows.append(["what was read and trained", "CPU s", " against ".join(told)])
    print_table(title, ("of", "metric", "above"), rows)
    result: dict[str, Any] = {voter: {} for voter in voters}
    for (voter, metric), interval in found.items():
        result[voter][metric] = interval.as_json()
    return {**result, "cpu_s": cpu_s}
