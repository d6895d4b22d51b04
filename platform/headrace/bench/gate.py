"""``headrace bench gate``: what the gate costs on clean data, and what it makes of increments gone wrong.

Clean: increments as they come; whatever is rejected, held or rolled back is a false alarm. Poisoned: every so many-th
increment goes wrong, in one way after another (bench/poisons.py). The shards themselves hold the poison, so that all of
the platform meets it. Told for each: which hard rule kept it from being published, or which contest of the sequential
test rolled it back, after how many cuts; how many queries a poisoned version answered meanwhile; and what it cost, on
the cut after, against trusted, as the test sees it, and against the clean replay of the same cuts.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from headrace.bench.output import print_table
from headrace.bench.poisons import POISONS, Poison, TooFast, poison
from headrace.clock import monotonic_s
from headrace.commit.manifest import Manifest
from headrace.config.feed import ReplayConfig
from headrace.config.load import load_recipe
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError
from headrace.evaluation.sequential import CONTESTS
from headrace.feed.landing import Landing, ShardSource, shard_name
from headrace.feed.replayer import Replayer
from headrace.feed.synthetic import SyntheticStream
from headrace.records import CutRows, generator
from headrace.train.offline import replay
from headrace.train.state import LearnerState

_SETTLED = 12
"""Increments after the warm-up before the first poisoned one."""
_WITHIN = (0, 1, 3)
"""Cuts after which it is asked whether a poisoned increment has been caught; 0: it was never published."""
_LONG_S = 1e6
"""So long after another, a shard of a synthetic stream is due."""
_TELL_S = 20.0
_HEADER = (
    "poison",
    "given",
    "never published",
    "rolled back: blend / neural",
    "within 1, 3 cuts",
    "never",
    "answers",
    "rows added / capped",
    "below trusted",
    "below clean, before / after",
)


def run(
    *,
    increments: int = 1000,
    poisons: int = 50,
    every: int = 5,
    kinds: str = ",".join(POISONS),
    data: Path | None = None,
    split: int = 1,
    device: str = "cpu",
    recipe: Path = Path("jobs/recipes/quickstart.toml"),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure ``increments`` clean ones, then ``poisons`` poisoned ones, ``every`` so many-th; 0 leaves a part out.

    ``kinds`` take turns. ``data`` is a log that the recipe replays, each of its shards cut into ``split``; without one,
    it is the recipe's synthetic stream.
    """
    made = load_recipe([str(recipe)], list(overrides))
    plan = _plan(_kinds(kinds), poisons, every)
    last = max([increments, *(cut + every - 1 for cut in plan)])
    result: dict[str, Any] = {"gate": made.gate.model_dump(mode="json"), "split": split}
    with tempfile.TemporaryDirectory(prefix="headrace-gate-") as folder:
        source = _landed(made, data, Path(folder), split, last)
        clean = list(_replayed(source, device, increments, {}, "clean")) if increments else []
        if clean:
            result["clean"] = _clean(clean)
        if plan:
            added = _poison_shards(source, plan)
            poisoned = list(_replayed(source, device, max(plan) + every - 1, plan, "poisoned"))
            cases = _cases(poisoned, clean, plan, added, every)
            result["poisons"] = {kind: _summary([c for c in cases if c.kind == kind]) for kind in _kinds(kinds)}
            result["poisons"] |= {"all": _summary(cases)}
            result["other_alarms"] = _other_alarms(poisoned, cases)
            result["cases"] = [asdict(case) for case in cases]
    _print(result)
    return result


def _kinds(words: str) -> list[Poison]:
    unknown = sorted(set(words.split(",")) - set(POISONS))
    if unknown:
        raise ConfigError(f"no poison is called {', '.join(unknown)}: there are {', '.join(POISONS)}")
    return [kind for kind in POISONS if kind in words.split(",")]


def _plan(kinds: Sequence[Poison], poisons: int, every: int) -> dict[int, Poison]:
    """What is poisoned, by cut."""
    return {_SETTLED + nth * every: kinds[nth % len(kinds)] for nth in range(poisons)}


def _landed(made: Recipe, data: Path | None, folder: Path, split: int, last_cut: int) -> Recipe:
    """The recipe over a log in ``folder`` with a file for each shard that it lands, up to the last one needed."""
    whole, log = Landing(str(folder / "whole")), Landing(str(folder / "log"))
    num_shards = made.feed.warmup_shards + -(-last_cut // split)
    source, landed = _source(made, data, whole, num_shards), 0
    while landed < num_shards and not source.exhausted:
        landed += len(source.step(_LONG_S * landed, landed))
    for nth in range(min(landed, num_shards)):
        table = pq.read_table(whole.uri_of(shard_name(nth)))
        edges = np.linspace(0, table.num_rows, split + 1).astype(int)
        for part, (begin, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            log.land(shard_name(nth * split + part), table.slice(begin, end - begin))
    changed = {
        "path": log.uri,
        "cut": "shard",
        "synthetic": None,
        "replay": ReplayConfig(slice_s="file"),
        "warmup_shards": made.feed.warmup_shards * split,
    }
    evaluation = made.evaluation.model_copy(update={"frozen_every": 10**9})  # not asked for, and not cheap
    return made.model_copy(update={"feed": made.feed.model_copy(update=changed), "evaluation": evaluation})


def _source(made: Recipe, data: Path | None, landing: Landing, num_shards: int) -> ShardSource:
    feed, path = made.feed, str(data) if data is not None else made.feed.path
    if feed.replay is not None and path is not None:
        unhurried = feed.replay.model_copy(update={"speed": None})
        return Replayer(unhurried, made.columns, Landing(path), landing, feed.warmup_shards)
    if feed.synthetic is None or data is not None:
        raise ConfigError("there is no stream: name a log with --data and a recipe with [feed.replay] that fits it")
    enough = feed.synthetic.model_copy(update={"num_shards": num_shards})
    return SyntheticStream(enough, made.seed, landing)


def _poison_shards(made: Recipe, plan: Mapping[int, Poison]) -> dict[int, int]:
    """Put each poison into the shard that its cut takes; by cut, how many rows came with it."""
    assert made.feed.path is not None
    log, added = Landing(made.feed.path), {}
    for cut, kind in plan.items():
        name = shard_name(made.feed.warmup_shards - 1 + cut)
        if not Path(log.uri_of(name)).is_file():
            raise ConfigError(f"the log ends before cut {cut}: fewer --poisons, or a larger --split, would fit")
        wrong = poison(pq.read_table(log.uri_of(name)), kind, made.columns, generator(made.seed, "poison", cut))
        log.land(name, wrong.table)
        added[cut] = wrong.added
    return added


def _replayed(made: Recipe, device: str, last_cut: int, plan: Mapping[int, Poison], name: str) -> Iterator[Manifest]:
    """The increments, one by one; progress is told where it takes long."""

    def change(part: CutRows, state: LearnerState) -> CutRows:
        too_fast = [TooFast()] if plan.get(part.cut.number) == "learning_rate" else []
        state.step.methods = [*state.methods, *too_fast]
        return part

    told_s = monotonic_s()
    for manifest in replay(made, torch.device(device), last_cut, change):
        if monotonic_s() - told_s > _TELL_S:
            told_s = monotonic_s()
            sys.stdout.write(f"{name}: increment {manifest.cut} of {last_cut}\n")
            sys.stdout.flush()
        yield manifest


@dataclass(frozen=True)
class Case:
    """What became of one poisoned increment."""

    cut: int
    kind: Poison
    added: int
    """Rows that came with it."""
    capped: int
    """Rows of the cut that ``feed.max_events_per_user`` kept out, whatever became of the others."""
    rejected: str | None
    """The hard rule's words, where one kept it from being published, or its rows from being learned from."""
    within: int | None
    """Cuts until it was gone: 0 where it was never published, None where nothing has undone it before the next one."""
    seen_by: tuple[str, ...]
    """The contests that rolled it back."""
    answers: int
    """Queries that a version with it has answered."""
    below_trusted: Mapping[str, float]
    """By contest, on the cut after it: the share of targets that live misses alone, less that it finds alone."""
    below_clean: Mapping[str, tuple[float, float]]
    """How far recall@20 of live and of the neural expert is below the clean replay's, on the cut before and after."""


def _cases(
    poisoned: Sequence[Manifest],
    clean: Sequence[Manifest],
    plan: Mapping[int, Poison],
    added: Mapping[int, int],
    every: int,
) -> list[Case]:
    cuts, others = {m.cut: m for m in poisoned}, {m.cut: m for m in clean}
    return [_case(cut, kind, cuts, others, added[cut], every) for cut, kind in plan.items() if cut + every - 1 in cuts]


def _case(
    cut: int, kind: Poison, cuts: Mapping[int, Manifest], clean: Mapping[int, Manifest], added: int, every: int
) -> Case:
    given = cuts[cut]
    after = [cuts[cut + n] for n in range(1, every)]
    within = 0 if given.verdict != "publish" else _rolled_back(after, cut)
    served = after if within is None else after[:within]
    return Case(
        cut,
        kind,
        added,
        given.facts["signs"]["capped"],
        None if given.verdict == "publish" else given.reason,
        within,
        tuple(after[within - 1].facts["review"]["alarms"]) if within else (),
        sum(m.facts["metrics"]["queries"] for m in served),
        {name: _below(after[0], name) if served else 0.0 for name in CONTESTS},
        _below_clean(cut, cuts, clean),
    )


def _rolled_back(after: Sequence[Manifest], cut: int) -> int | None:
    """The first of these cuts that went back to before the poisoned one, counted from 1."""
    for n, manifest in enumerate(after, start=1):
        review = manifest.facts["review"]
        if review["rolled_back_to"] is not None and review["trusted"] < cut:
            return n
    return None


def _below(manifest: Manifest, name: str) -> float:
    review = manifest.facts["review"]
    worse, better = review["worse_better"].get(name, (0, 0))
    return float((worse - better) * review["design_effect"].get(name, 1.0) / max(review["targets"], 1))


def _below_clean(
    cut: int, cuts: Mapping[int, Manifest], clean: Mapping[int, Manifest]
) -> dict[str, tuple[float, float]]:
    pairs = [(cuts[n], clean[n]) for n in (cut - 1, cut + 1) if n in cuts and n in clean]
    if len(pairs) < 2 or not all(_scored(m) for pair in pairs for m in pair):
        return {}
    live, neural = ([figure(theirs) - figure(ours) for ours, theirs in pairs] for figure in (_live, _neural))
    return {"live": (live[0], live[1]), "neural": (neural[0], neural[1])}


def _scored(manifest: Manifest) -> bool:
    return bool(manifest.facts["metrics"]["queries"])


def _live(manifest: Manifest) -> float:
    return float(manifest.facts["metrics"]["live"]["recall@20"])


def _neural(manifest: Manifest) -> float:
    return float(manifest.facts["metrics"]["experts"]["neural"]["recall@20"])


def _summary(cases: Sequence[Case]) -> dict[str, Any]:
    """What became of poisoned increments together."""
    rolled = [case for case in cases if case.within]
    below = [case.below_clean for case in cases if case.below_clean]
    return {
        "given": len(cases),
        "rejected": dict(Counter(_rule(case.rejected) for case in cases if case.rejected)),
        "rolled_back": {name: sum(name in case.seen_by for case in rolled) for name in CONTESTS},
        "caught_within": {str(n): sum(case.within is not None and case.within <= n for case in cases) for n in _WITHIN},
        "never": sum(case.within is None for case in cases),
        "answers": sum(case.answers for case in cases),
        "added": sum(case.added for case in cases),
        "capped": sum(case.capped for case in cases),
        "below_trusted": {name: _mean([case.below_trusted[name] for case in cases]) for name in CONTESTS},
        "below_clean": {
            name: [_mean([one[name][step] for one in below]) for step in (0, 1)] for name in ("live", "neural")
        },
    }


def _rule(reason: str) -> str:
    """The hard rule of this reason: its words, but for the figures, up to where it explains them."""
    words = reason.split(",")[0].split(" (")[0]
    return " ".join("…" if any(letter.isdigit() for letter in word) else word for word in words.split())


def _other_alarms(manifests: Sequence[Manifest], cases: Sequence[Case]) -> int:
    """Increments that were rejected, held or rolled back and had no poison to blame."""
    blamed = {case.cut for case in cases} | {case.cut + case.within for case in cases if case.within}
    return sum(_alarmed(m) for m in manifests if m.cut not in blamed)


def _alarmed(manifest: Manifest) -> bool:
    return manifest.verdict != "publish" or manifest.facts["review"]["rolled_back_to"] is not None


def _clean(manifests: Sequence[Manifest]) -> dict[str, Any]:
    reviews = [m.facts["review"] for m in manifests if m.facts["review"]["e_values"]]
    coherences = [found["mean"] for m in manifests if (found := m.facts["signs"]["coherence"])]
    return {
        "increments": len(manifests) - 1,
        "compared": len(reviews),
        "queries": _mean([m.facts["metrics"]["queries"] for m in manifests[1:]]),
        "windows": sum(found["window_cut"] == 1 for found in reviews),
        "false_alarms": sum(map(_alarmed, manifests)),
        "reasons": [f"cut {m.cut}: {m.reason}" for m in manifests if _alarmed(m)],
        "highest_e": {name: max((found["e_values"][name] for found in reviews), default=1.0) for name in CONTESTS},
        "coherence": np.percentile(coherences, [0, 50, 100]).tolist() if coherences else None,
        "live_recall_at_20": _mean([_live(m) for m in manifests if _scored(m)]),
        "neural_recall_at_20": _mean([_neural(m) for m in manifests if _scored(m)]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _print(result: Mapping[str, Any]) -> None:
    if clean := result.get("clean"):
        share = clean["false_alarms"] / max(clean["windows"], 1)
        rows = [
            ["increments", str(clean["increments"])],
            ["queries a cut", f"{clean['queries']:.0f}"],
            ["windows", str(clean["windows"])],
            ["false alarms", f"{clean['false_alarms']} ({share:.2%} of windows)"],
            ["highest e, blend / neural", " / ".join(f"{clean['highest_e'][name]:.3g}" for name in CONTESTS)],
            *[["false alarm", reason] for reason in clean["reasons"]],
        ]
        print_table("the gate, clean increments", ("figure", "value"), rows)
    if poisons := result.get("poisons"):
        print_table("the gate, poisoned increments", _HEADER, [_row(name, found) for name, found in poisons.items()])
        for name, found in poisons.items():
            for rule, count in found["rejected"].items() if name != "all" else ():
                sys.stdout.write(f"{name}: {count} by the rule: {rule}\n")
        sys.stdout.write(f"alarms without a poison: {result['other_alarms']}\n")


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    within = found["caught_within"]
    before, after = found["below_clean"]["live"]
    return [
        name,
        str(found["given"]),
        str(within["0"]),
        " / ".join(str(found["rolled_back"][contest]) for contest in CONTESTS),
        f"{within['1']}, {within['3']}",
        str(found["never"]),
        str(found["answers"]),
        f"{found['added']} / {found['capped']}",
        f"{100 * found['below_trusted']['blend']:.1f}",
        f"{100 * before:.1f} / {100 * after:.1f}",
    ]
