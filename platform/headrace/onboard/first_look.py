"""``headrace try``: a log of one's own through production's own increment, in about a minute and without Ray.

It says what it guesses and why, trains on the first four fifths, then follows the last fifth in slices of event time,
each scored before it is trained, and ends with a table, a few answers and the command to go on with.
``headrace init`` is its beginning: guesses and recipe, nothing learned.
"""

import logging
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from headrace.clock import monotonic_s
from headrace.commit.manifest import Manifest
from headrace.config.load import load_recipe
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError, DataError, TrainingError
from headrace.onboard import columns, draft, log, plan, shape
from headrace.onboard.answers import Answers, read_names
from headrace.onboard.guess import Guess, guess
from headrace.onboard.words import count, listing, share, span
from headrace.tracking.console import align
from headrace.train.offline import replay

_METRICS = ("recall@20", "mrr@20", "recall@100")
_MOST_COPIED_ROWS = 20_000_000


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    folder: Path
    recipe: Path | None = None
    """Where to write the recipe."""
    names: Path | None = None
    name_column: str | None = None
    overrides: Sequence[str] = ()
    learn: bool = True
    """Whether to go on after the recipe is written."""
    budget_s: float = plan.BUDGET_S
    """Of training."""


def first_look(options: Options) -> None:
    """All that ``headrace try`` and ``init`` print; ConfigError and DataError say what is wrong with the log."""
    teller = _Teller()
    if options.recipe is not None and options.recipe.exists():
        raise ConfigError(f"{options.recipe} is there already: name another file for --recipe, or move it away")
    load_recipe((), [word for word in options.overrides if not word.startswith("columns.")])  # misspelt: say so now
    files = log.find_files(options.folder)
    teller.say(
        f"{options.folder}: {count(len(files.paths))} files, {count(files.num_rows)} rows, "
        f"{files.size_bytes / 2**20:.0f} MB"
    )
    for text in files.left_out:
        teller.say(f"  left out: {text}")
    guessed = guess(columns.look(log.sample(files)), _pinned(options.overrides))
    teller.title("Columns (say columns.item_id=NAME and so on where a guess is wrong)")
    teller.table(("part", "column", "why"), guessed.reasons, frozenset({0, 1, 2}))
    whole = log.load(files, guessed)
    found = shape.shape_of(whole, guessed)
    _tell_log(teller, whole, found, f"{count(found.num_owners)} users, " if guessed.user_id else "")
    names = read_names(options.names, options.name_column, guessed.item_id) if options.names else {}
    planned = plan.plan(whole, guessed, found, options.budget_s, plan.measure_slowness())
    looked = whole.take(planned.keep_N)
    source = _source(options, files, whole)
    name = _name(options.folder)
    if options.recipe is not None:
        text = draft.draft(guessed, found, planned.whole_effort, source, name)
        _write_recipe(teller, options.recipe, text, files, guessed, whole, source)
    if not options.learn:
        _tell_next(teller, options)
        return
    _tell_plan(teller, looked, whole, planned, found)
    with tempfile.TemporaryDirectory(prefix="headrace-try-") as folder:
        log.write(looked, Path(folder) / "log", rows_per_file=10**9)
        text = draft.draft(guessed, found, planned.effort, source, name)
        (Path(folder) / "recipe.toml").write_text(text, encoding="utf-8")
        recipe = load_recipe([f"{folder}/recipe.toml"], [*options.overrides, f"feed.path={folder}/log"])
        answers = Answers(names)
        scored = _follow(teller, recipe, answers)
    _tell_scores(teller, scored, recipe)
    for line in answers.lines():
        teller.say(line)
    _tell_next(teller, options)


class _Teller:
    """Prints plain lines at once, in a terminal and in a pipe alike."""

    def __init__(self) -> None:
        self.began_s = monotonic_s()

    def say(self, text: str = "") -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def title(self, text: str) -> None:
        self.say()
        self.say(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], left: frozenset[int]) -> None:
        for line in align(header, rows, left):
            self.say(f"  {line}")

    def step(self, text: str) -> None:
        self.say(f"{monotonic_s() - self.began_s:6.1f} s  {text}")


class _Notes(logging.Handler):
    """Warnings of lower rooms, as lines among ours."""

    def __init__(self, teller: _Teller) -> None:
        super().__init__(logging.WARNING)
        self._teller = teller

    def emit(self, record: logging.LogRecord) -> None:
        self._teller.say(f"          note: {record.getMessage()}")


def _pinned(overrides: Sequence[str]) -> Mapping[str, str | None]:
    pinned: dict[str, str | None] = {}
    for word in overrides:
        key, _, value = word.partition("=")
        role = key.removeprefix("columns.")
        if key != role and role in ("item_id", "ts", "session_id", "user_id", "event", "event_id"):
            value = value.strip("\"'")
            pinned[role] = None if value.lower() in ("none", "null") else value
    return pinned


def _tell_log(teller: _Teller, whole: log.Log, found: shape.Shape, who: str) -> None:
    teller.title("The log")
    per = "" if whole.loaded_share == 1 else f" (read: {share(whole.loaded_share)} of them, drawn by hash)"
    teller.say(
        f"  {count(len(whole))} events over {span(found.span_s)}, {count(found.num_items)} items, "
        f"{who}{count(found.num_sessions)} sessions{per}"
    )
    for finding in found.findings:
        teller.say(f"  {finding}")
    for text in whole.mend:
        teller.say(f"  note: {text}")


def _tell_plan(teller: _Teller, looked: log.Log, whole: log.Log, planned: plan.Plan, found: shape.Shape) -> None:
    teller.title("What is done")
    if planned.share < 1:
        teller.say(
            f"  a sample of {share(planned.share)} of the people, drawn by hash, each with all events, so that it "
            f"takes about a minute: {count(len(looked))} events. On the whole log the figures will differ"
        )
    teller.say(
        f"  warm-up on the first {span(found.first_slice_s)} ({planned.effort.warmup_epochs} passes), then the rest in "
        f"slices of {span(found.slice_s)}, each scored before it is trained; "
        f"about {planned.estimate_s:.0f} s of training"
    )


def _follow(teller: _Teller, recipe: Recipe, answers: Answers) -> list[Manifest]:
    teller.title("Progress")
    scored: list[Manifest] = []
    teller.step("the warm-up begins; it takes most of the time")
    notes = _Notes(teller)
    logger = logging.getLogger("headrace")
    logger.addHandler(notes)
    try:
        for manifest in replay(recipe, torch.device("cpu"), change=answers.ask):
            facts = manifest.facts
            metrics = facts["metrics"]
            what = "warm-up" if manifest.cut == 0 else f"slice {manifest.cut}"
            line = f"{what}: {count(facts['events'])} events learned"
            if metrics["queries"]:
                scored.append(manifest)
                line = (
                    f"{what}: {count(metrics['queries'])} questions, R@20 {share(metrics['live']['recall@20'])}; "
                    + (f"then {count(facts['events'])} events learned")
                )
            teller.step(line if manifest.verdict == "publish" else f"{line} ({manifest.verdict}: {manifest.reason})")
    except TrainingError as error:
        raise DataError(f"the log could not be learned from: {error}") from error
    finally:
        logger.removeHandler(notes)
    if not scored:
        raise DataError(
            "the last fifth of the log asks nothing: no session in it has two events at different times (or all users "
            "are held out). A longer log, or another feed.session_gap_s or columns.session_id may help"
        )
    return scored


def _tell_scores(teller: _Teller, scored: Sequence[Manifest], recipe: Recipe) -> None:
    means = _means(scored)
    experts = [name for name in means if name not in ("live", "learner", "frozen", "neural", "uniform")]
    order = [*sorted(experts, key=lambda name: -means[name]["recall@20"]), "neural", "live", "frozen"]
    label = {"neural": "neural model", "live": "blend (what is served)", "frozen": "blend, frozen after the warm-up"}
    for config in recipe.experts:
        if config.kind == "popular" and config.half_life_s is not None:
            label[config.name] = f"popular, half-life {span(config.half_life_s)}"
    queries = sum(manifest.facts["metrics"]["queries"] for manifest in scored)
    what = "baskets, asked before they began" if recipe.inputs.sessions == "set" else "next items"
    teller.title(f"The last fifth, in %: {count(queries)} {what}; each answered before it was learned from")
    rows = [
        [label.get(name, name), *(f"{100 * means[name][metric]:.1f}" for metric in _METRICS)]
        for name in order
        if name in means
    ]
    teller.table(("alone", "R@20", "MRR@20", "R@100"), rows, frozenset({0}))
    best = max((name for name in [*experts, "neural"] if name in means), key=lambda name: means[name]["recall@20"])
    teller.say(
        "  R@20: how often the item is among the 20 best; MRR@20: the mean of 1 / its place there. In points of R@20, "
        "with twice"
    )
    teller.say(
        f"  the standard error over slices, the blend is above its best part ({label.get(best, best)}) by "
        f"{_above(scored, best)}"
        + (f", and above what does not learn on by {_above(scored, 'frozen')}" if "frozen" in means else "")
    )
    weights = sorted(scored[-1].facts["weights"].items(), key=lambda pair: -pair[1])
    shown = [f"{label.get(name, name)} {share(weight)}" for name, weight in weights if weight >= 0.005]
    teller.say(f"  weights in the blend at the end: {listing(shown)}")


def _above(scored: Sequence[Manifest], name: str) -> str:
    """How far live's R@20 is above another's, and twice the standard error over slices, in points."""
    metrics = [manifest.facts["metrics"] for manifest in scored]
    weight_K = np.array([one["queries"] for one in metrics], dtype=np.float64)
    weight_K /= weight_K.sum()
    other = [(one["frozen"] if name == "frozen" else one["experts"][name])["recall@20"] for one in metrics]
    above_K = 100 * (np.array([one["live"]["recall@20"] for one in metrics]) - np.array(other))
    mean = float(weight_K @ above_K)
    return f"{mean:+.1f} ± {2 * float(np.sqrt(weight_K**2 @ (above_K - mean) ** 2)):.1f}"


def _means(scored: Sequence[Manifest]) -> dict[str, dict[str, float]]:
    """Means over all queries, as shares, of what was scored in every slice."""
    total = sum(manifest.facts["metrics"]["queries"] for manifest in scored)
    sums: dict[str, dict[str, float]] = {}
    times: dict[str, int] = {}
    for manifest in scored:
        metrics = manifest.facts["metrics"]
        voters = {name: metrics[name] for name in ("live", "frozen") if metrics[name]} | metrics["experts"]
        for name, values in voters.items():
            times[name] = times.get(name, 0) + 1
            into = sums.setdefault(name, dict.fromkeys(_METRICS, 0.0))
            for metric in _METRICS:
                into[metric] += values[metric] * metrics["queries"] / total
    return {name: values for name, values in sums.items() if times[name] == len(scored)}


def _name(folder: Path) -> str:
    return folder.resolve().stem or "log"


def _source(options: Options, files: log.Files, whole: log.Log) -> Path:
    """The folder that the recipe replays: the log's own, or a mended copy beside the recipe."""
    if not whole.mend:
        return options.folder.resolve()
    beside = options.recipe if options.recipe is not None else Path("my.toml")
    return (beside.parent / f"{beside.stem}-log").resolve()


def _write_recipe(
    teller: _Teller, path: Path, text: str, files: log.Files, guessed: Guess, whole: log.Log, source: Path
) -> None:
    teller.title(f"Recipe: {path}")
    if whole.mend:
        if files.num_rows > _MOST_COPIED_ROWS:
            raise DataError(
                f"{listing(whole.mend)}: `headrace run` needs that mended, and {count(files.num_rows)} rows are too "
                "many to copy here. Write them sorted by time, with times in milliseconds, and try again"
            )
        log.write(whole if whole.loaded_share == 1 else log.load(files, guessed, files.num_rows), source)
        teller.say(f"  a mended copy of the log lies in {source}, because {listing(whole.mend)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    teller.say("  written; every line in it says why it is so")


def _tell_next(teller: _Teller, options: Options) -> None:
    quoted = "".join(f" {_quoted(word)}" for word in options.overrides)
    teller.title("Go on with")
    if options.recipe is not None:
        teller.say(f"  headrace run {_quoted(str(options.recipe))}{quoted}")
    else:
        teller.say(f"  headrace try {_quoted(str(options.folder))} --recipe my.toml{quoted}")
        teller.say(f"  # the same, and writes these guesses down; then: headrace run my.toml{quoted}")
    teller.say(f"  ({monotonic_s() - teller.began_s:.0f} s in all)")


def _quoted(word: str) -> str:
    return shlex.quote(word)
