"""One increment: the eight steps, in order, without Ray. Benchmarks, tests and production run this same function.

Nothing may be reordered: what is scored has not been trained, what is committed has been gated, what is published has
been committed. Every rank runs all of it, with its own rows; whatever decides something is gathered first, so that all
ranks decide alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.blend.calibration import recalibrate
from headrace.blend.weights import NEURAL, update
from headrace.catalogue.eligible import Eligible
from headrace.clock import Stopwatch
from headrace.commit.manifest import Manifest
from headrace.config.recipe import EarlyStopConfig, NspConfig
from headrace.errors import TrainingError
from headrace.evaluation.gate import Decision, Signs, decide, decide_rows
from headrace.evaluation.prequential import Queries, Scored, sample, score
from headrace.evaluation.usual import RowSigns, Usual
from headrace.inputs.ahead import ahead
from headrace.inputs.contexts import Contexts, concatenate
from headrace.inputs.examples import Examples
from headrace.methods.base import Answered
from headrace.methods.progressive import CONSOLIDATED
from headrace.recommend.prior import Prior
from headrace.recommend.recommender import Recommender
from headrace.records import CutRows
from headrace.replay.packed import groups_of, join
from headrace.store.store import Store
from headrace.train import questions
from headrace.train.again import Due, due, settle
from headrace.train.checkpoint import Checkpoint
from headrace.train.committer import Committer
from headrace.train.encodings import encode_experts, herded
from headrace.train.group import Group
from headrace.train.intake import Fate, Intake, take
from headrace.train.passes import PassStats, train_passes
from headrace.train.review import Review, follow_rollback, review, rival
from headrace.train.rows import follow_attributes, start_rows
from headrace.train.state import LearnerState, load_version, restore
from headrace.train.times import believed_times
from headrace.train.vitals import look, measure

_REPLAY_BATCH = 2048
"""Examples in a request to replay, of which a few are in flight."""
_SCORES = 50_000_000
"""Queries times items that an increment scores at most, where ``evaluation.max_queries`` limits it."""


@dataclass(frozen=True)
class Taken:
    """What all ranks' rows of the cut amount to, alike on every rank."""

    number_N: NDArray[np.int64]
    """Items of the learned rows."""
    ts_N: NDArray[np.int64]
    fates: Mapping[str, int]
    """Rows by fate."""
    max_user_events: int
    repeats: tuple[int, int]
    """Targets that the cut's queries ask for, and how many lie in their own contexts."""
    num_clamped: int
    """Rows whose time lay too far ahead and was set to the present."""


@dataclass(frozen=True)
class Trained:
    """What the steps did, alike on every rank."""

    passed: PassStats
    replayed: int
    """Examples of earlier increments, over all ranks."""
    update_ratio: float
    """Norm of the model's update over the norm of what it was."""
    methods: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What methods say of it, by kind; those that say nothing are left out."""

    def facts(self) -> dict[str, Any]:
        """Plain JSON for the commit."""
        passed = self.passed
        validation = {
            "epochs": len(passed.loss_per_epoch),
            "best_epoch": passed.best_epoch,
            "validated": passed.validated,
            "recall_per_epoch": list(passed.recall_per_epoch),
        }
        return {
            "steps": passed.steps,
            "targets": passed.targets,
            "targets_outside": passed.targets_outside,
            "replayed": self.replayed,
            "loss_per_epoch": list(passed.loss_per_epoch),
            "gradient_norm": passed.last_gradient_norm,
            "update_ratio": self.update_ratio,
            **(validation if passed.validated else {}),
            **({"methods": {kind: dict(facts) for kind, facts in self.methods.items()}} if self.methods else {}),
        }


_UNTRAINED = Trained(PassStats(0, 0, 0, (), 0.0, 0.0), 0, 0.0)
"""Of a cut whose rows nothing may learn from."""


@dataclass(frozen=True)
class Candidate:
    """What an increment would publish, and what the gate says of it."""

    recommender: Recommender
    decision: Decision
    answered_PK: NDArray[np.int64] | None = None
    """What it answers to the probes; None where it was not asked."""
    churn: float | None = None
    """Share of those answers that live does not give; None where there is nothing to compare."""


def train_increment(
    cut_rows: CutRows,
    state: LearnerState,
    group: Group,
    committer: Committer,
    watch: Stopwatch | None = None,
    on_scored: Callable[[Scored], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Manifest:
    """Take a cut, score it, learn from it, and commit what came of it; ``state`` is then as the commit says.

    ``watch`` has booked how long the rows were waited for. ``on_scored`` hears of the cut's answers before anything
    learns from them, ``checkpoint`` keeps its passes: for benchmarks. FencedError when a newer run has taken the store.
    """
    watch = watch or Stopwatch()
    cut, warmup = cut_rows.cut, state.commit is None
    state.catalogue.admit(cut_rows.item_I)
    if cut_rows.told is not None:
        state.catalogue.tell(cut_rows.told)
    times = believed_times(cut_rows, state.watermark_ms, state.recipe.feed, group)
    intake = take(cut_rows.rows, state.catalogue, state.history, state.seen, state.recipe, times, cut.window)
    asked = questions.queries(intake, state.recipe.inputs)
    taken = _gather_taken(intake, asked, group)
    follow_rollback(state, cut.rollback, committer.store)
    scored = _score(asked, state, group, cut.number, committer.store, on_scored)
    vitals = look(asked, scored, state, group)
    state.repeats = state.repeats.add(*taken.repeats)
    reviewed = review(state, scored, committer.store) if scored is not None else Review()
    if scored is not None and scored.num_queries and reviewed.version is None:
        _observe(state, scored)
    row_signs, usual = _row_signs(taken, scored), _usual(state)
    rejected = decide_rows(row_signs, usual, state.recipe.gate)
    watch.lap("score")
    wanted = due(cut_rows, intake, state, group)
    trained = _UNTRAINED if rejected else _train(wanted, taken, state, group, cut.number, warmup, watch, checkpoint)
    watch.lap("train")
    if state.probes is None:
        state.probes = _probes(asked, state, group)
    made = Candidate(state.recommender(), rejected) if rejected else _try(state, taken, trained, reviewed, usual)
    decision, fates = reviewed.explain(made.decision), dict(taken.fates)
    if decision.verdict == "reject":
        _reject(state, committer.store, group, cut_rows, decision)
        made, fates = Candidate(state.recommender(), decision), {"quarantined": cut.num_rows}
    else:
        _accept(state, cut.number, decision, usual.add(row_signs, (trained.update_ratio, trained.passed.steps)))
        settle(wanted, cut, fates["deferred"], state)
        vitals |= measure(intake, state, group, cut.number, made.recommender)
    watch.lap("gate")
    state.rows = {fate: count + fates.get(fate, 0) for fate, count in state.rows.items()}
    figures = {
        "events": cut.num_rows,
        "fates": fates,
        "clamped": taken.num_clamped,
        "metrics": _metrics(scored),
        "training": trained.facts(),
        "window": wanted.facts(cut.window),
        "signs": row_signs.facts(),
        "review": reviewed.facts(decision.verdict),
        "vitals": {**vitals, "churn@20": made.churn},
    }
    manifest = committer.commit(state, decision, figures, cut, watch)
    _note_versions(state, made, manifest, committer.store)
    return manifest


def _max_queries(limit: int | Literal["all"], num_eligible: int) -> int | None:
    """Fewer queries where more items may be answered, so that scoring costs about the same; at least one."""
    return None if limit == "all" else max(1, min(limit, _SCORES // max(1, num_eligible)))


def _gather_taken(intake: Intake, asked: Queries, group: Group) -> Taken:
    learned_N = intake.learned_N
    _, per_owner = np.unique(intake.owner_N[learned_N], return_counts=True)
    counts = intake.counts()
    parts = group.gather(
        {
            "number": intake.number_N[learned_N],
            "ts": intake.rows.ts_N[learned_N],
            "fates": np.array(list(counts.values()), dtype=np.int64),
            "max_user": np.array([per_owner.max(initial=0)], dtype=np.int64),
            "repeats": np.array(asked.count_repeats(), dtype=np.int64),
            "clamped": np.array([intake.num_clamped], dtype=np.int64),
        }
    )
    fates = np.sum([part["fates"] for part in parts], axis=0)
    num_asked, num_repeated = np.sum([part["repeats"] for part in parts], axis=0).tolist()
    return Taken(
        np.concatenate([part["number"] for part in parts]),
        np.concatenate([part["ts"] for part in parts]),
        dict(zip(counts, fates.tolist(), strict=True)),
        max(int(part["max_user"][0]) for part in parts),
        (num_asked, num_repeated),
        sum(int(part["clamped"][0]) for part in parts),
    )


def _score(
    asked: Queries,
    state: LearnerState,
    group: Group,
    increment: int,
    store: Store,
    on_scored: Callable[[Scored], None] | None,
) -> Scored | None:
    """Before anything learns from the cut: figures of every version that matters, and the blend's new weights."""
    recipe = state.recipe
    if state.learner is None or state.live is None:
        return None
    asked = sample(
        asked, _max_queries(recipe.evaluation.max_queries, len(state.learner.eligible)), recipe.seed, group.gather
    )
    frozen = state.frozen if increment % recipe.evaluation.frozen_every == 0 else None
    scored = score(asked, state.live, state.learner, frozen, group.gather, rival(state, store))
    if on_scored is not None:
        on_scored(scored)
    if scored.num_queries:
        if recipe.blend.calibrate:
            state.calibration = recalibrate(state.calibration, state.weights, scored.probability, scored.slope)
        moved = update(state.weights, scored.probability, recipe.blend.eta, recipe.blend.share)
        state.weights = moved.weights
        if state.split is not None and scored.repeated is not None:
            state.split, state.calibration = state.split.moved(state.calibration, scored.repeated, recipe.blend)
    return scored


def _train(
    wanted: Due,
    taken: Taken,
    state: LearnerState,
    group: Group,
    increment: int,
    warmup: bool,
    watch: Stopwatch,
    checkpoint: Checkpoint | None,
) -> Trained:
    """Learn from the cut: the model by steps, then the counters by counting, then history takes the rows."""
    recipe, intake = state.recipe, wanted.own
    state.watermark_ms = max(state.watermark_ms, int(taken.ts_N.max(initial=0)))
    state.catalogue.observe(taken.number_N, taken.ts_N)
    state.catalogue.settle(state.watermark_ms, recipe.catalogue)
    state.step.begin_increment(state.catalogue.num_slots, increment)
    start_rows(state)
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    made = questions.examples(wanted.intake, recipe.inputs, recipe.objective.examples)
    if isinstance(recipe.model, NspConfig):
        made = ahead(made, recipe.model.sessions_ahead, recipe.model.ahead_weight, recipe.model.session_gap_s)
    replayed = _replayed(made, state, increment, watch)
    touched, slot_I = state.catalogue.touched(state.eligible), state.catalogue.slot_I
    counts_first = warmup and recipe.model.prior is not None  # there are no counters of before, and nothing else to add
    if counts_first:
        _count(intake, state, group)
    prior = None
    if recipe.model.prior is not None:
        prior = Prior(recipe.model.prior, state.experts, touched, slot_I, state.step.device)
    passed = train_passes(
        state.step,
        made,
        touched,
        slot_I,
        epochs=recipe.train.warmup_epochs if warmup else recipe.train.epochs,
        seed=recipe.seed,
        increment=increment,
        replayed=replayed,
        prior=prior,
        early_stop=recipe.train.budget if isinstance(recipe.train.budget, EarlyStopConfig) else None,
        checkpoint=checkpoint,
    )
    watch.book("train", passed.earlier_s)
    update_ratio = _update_ratio(before, list(state.model.parameters()))
    follow_attributes(state)
    watch.lap("train")
    state.step.end_increment(made, slot_I, slot_I[touched.number_E], prior, replayed)
    said = {method.kind: dict(state.methods[place].facts()) for place, method in enumerate(recipe.methods)}
    watch.lap("consolidate" if any(CONSOLIDATED in facts for facts in said.values()) else "train")
    if state.replay is not None:
        kept = wanted.first_time(made)
        state.replay.stage(increment, kept, groups_of(kept, wanted.intake.rows), herded(state, kept))
    if not counts_first:
        _count(intake, state, group)
    encode_experts(state)
    _remember(intake, state)
    counts = group.gather({"replayed": np.array([0 if replayed is None else len(replayed)])})
    num_replayed = sum(int(part["replayed"][0]) for part in counts)
    return Trained(passed, num_replayed, update_ratio, {kind: facts for kind, facts in said.items() if facts})


def _observe(state: LearnerState, scored: Scored) -> None:
    """The methods hear how the model answered a cut that it has not learned from."""
    answered = Answered(scored.num_queries, scored.metrics[NEURAL]["recall@20"])
    for method in state.methods:
        method.observe(answered)


def _count(intake: Intake, state: LearnerState, group: Group) -> None:
    """Every counter counts all ranks' rows of the cut."""
    counted = questions.counted(intake, state.recipe.inputs)
    for expert in state.experts:
        expert.apply(group.gather(expert.reduce(counted)), state.watermark_ms)


def _replayed(made: Examples, state: LearnerState, increment: int, watch: Stopwatch) -> Examples | None:
    """As many examples of the past as the methods ask for beside the new ones; the wait is booked under "replay"."""
    if state.replay is None:
        return None
    watch.lap("train")
    wanted = round(max(method.replay_ratio() for method in state.methods) * len(made))
    whole, rest = divmod(wanted, _REPLAY_BATCH)
    sizes = [_REPLAY_BATCH] * whole + ([rest] if rest else [])
    batches = list(state.replay.batches(increment, sizes))
    watch.lap("replay")
    return reduce(join, batches) if batches else None


def _remember(intake: Intake, state: LearnerState) -> None:
    """Rows that stay enter history; event ids that arrived are not to arrive again."""
    rows, kept_N = intake.rows, intake.kept_N
    history: dict[str, NDArray[Any]] = {
        "key": intake.owner_N,
        "ts": rows.ts_N,
        "session": intake.session_N,
        "item": intake.number_N,
        "kind": rows.kind_N,
        "group": rows.group_N,
    }
    state.history.append({name: column[kept_N] for name, column in history.items()})
    if state.seen is not None:
        new_N = ~np.isin(intake.fate_N, (Fate.DUPLICATE, Fate.LATE_SET_ASIDE, Fate.QUARANTINED))
        arrived: dict[str, NDArray[Any]] = {"key": rows.event_N, "ts": rows.ts_N, "group": rows.group_N}
        oldest_ms = state.watermark_ms - state.recipe.feed.duplicate_horizon_s * 1000
        state.seen.append({name: column[new_N] for name, column in arrived.items()}, oldest_ms)


def _update_ratio(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    moved = sum(float((new.detach() - old).double().square().sum()) for old, new in zip(before, after, strict=True))
    norm = sum(float(old.double().square().sum()) for old in before)
    return float(np.sqrt(moved / max(norm, 1e-30)))


def _probes(asked: Queries, state: LearnerState, group: Group) -> Contexts:
    """Contexts that versions are compared on, drawn from the warm-up's queries, alike on every rank."""
    probes = sample(asked, state.recipe.gate.num_probes, state.recipe.seed, group.gather)
    return concatenate([Contexts(**part) for part in group.gather(probes.contexts.__dict__)])


def _row_signs(taken: Taken, scored: Scored | None) -> RowSigns:
    """What the gate looks at before anything learns."""
    _, per_item = np.unique(taken.number_N, return_counts=True)
    coherence = None if scored is None else scored.coherence
    most, num_capped = int(per_item.max(initial=0)), taken.fates["capped"]
    return RowSigns(len(taken.number_N), most, taken.max_user_events, num_capped, coherence)


def _usual(state: LearnerState) -> Usual:
    """What the increment is held against: nothing after many unusual cuts in a row, since the stream has changed."""
    return state.usual if state.usual.num_rejected < state.recipe.gate.max_unusual else Usual()


def _try(state: LearnerState, taken: Taken, trained: Trained, reviewed: Review, usual: Usual) -> Candidate:
    """What would be published, and what the gate says of it."""
    candidate = state.recommender()
    finite, max_abs = state.step.extremes()
    answered_PK = state.probed(candidate) if finite else None
    churn = _churn(state, answered_PK)
    signs = Signs(
        is_warmup=state.commit is None,
        finite=finite,
        max_abs=max_abs,
        update_ratio=trained.update_ratio,
        steps=trained.passed.steps,
        churn=churn if reviewed.version is None else None,
        eligible_before=0 if state.learner is None else _not_retired(state, state.learner.eligible),
        eligible_after=len(candidate.eligible),
    )
    return Candidate(candidate, decide(signs, usual, state.recipe.gate), answered_PK, churn)


def _accept(state: LearnerState, cut: int, decision: Decision, usual: Usual) -> None:
    """The increment stays, published or held."""
    if state.replay is not None:
        state.replay.admit(cut)
    if state.commit is not None:  # the warm-up is like nothing that comes after it
        state.usual = usual
    state.num_holds = state.num_holds + 1 if decision.verdict == "hold" else 0


def _reject(state: LearnerState, store: Store, group: Group, cut_rows: CutRows, decision: Decision) -> None:
    """Take back everything but the position in the ledger, what the side feed says, and how often this has happened."""
    _go_back(state, store, group, decision)
    if cut_rows.told is not None:  # the side feed is no part of what was rejected
        state.catalogue.tell(cut_rows.told)
    if decision.unusual:
        state.usual = state.usual.rejected()
    state.deferrals = state.deferrals.reject(cut_rows.cut)


def _not_retired(state: LearnerState, eligible: Eligible) -> int:
    """Items that the side feed retires are no loss that a gate should see."""
    return int((~state.catalogue.listing.retired_I[eligible.number_E]).sum())


def _churn(state: LearnerState, answered_PK: NDArray[np.int64] | None) -> float | None:
    """Share of the candidate's answers to the probes that live does not give."""
    if state.live_top_PK is None or answered_PK is None:
        return None
    new = [
        np.isin(after[after >= 0], live, invert=True).mean()
        for after, live in zip(answered_PK, state.live_top_PK, strict=True)
    ]
    return float(np.mean(new))


def _note_versions(
    state: LearnerState,
    made: Candidate,
    manifest: Manifest,
    store: Store,
) -> None:
    """Who is learner, live and frozen from now on; a version that must outlast the learner's weights is loaded anew."""
    was_learner = state.live is state.learner
    state.learner = made.recommender
    if manifest.verdict == "publish":
        state.live, state.published = made.recommender, manifest
        if state.frozen is None:
            state.frozen = load_version(store, manifest, state.step.device)
        state.live_top_PK = made.answered_PK
    elif was_learner and state.published is not None:
        state.live = load_version(store, state.published, state.step.device)
    known = state.versions | ({state.published.cut: state.published} if state.published else {})
    state.versions = {cut: known[cut] for cut in known if cut in state.trial.needed or known[cut] is state.published}


def _go_back(state: LearnerState, store: Store, group: Group, decision: Decision) -> None:
    """Take back everything since the commit before, but for the position in the ledger."""
    if state.commit is None:
        raise TrainingError(
            f"the warm-up was rejected: {decision.reason}; there is no earlier state to go back to. "
            "Check the first shards and the recipe's learning rate"
        )
    before = restore(store, state.commit, state.recipe, group, state.step.device)
    if state.replay is not None:
        state.replay.revert()
    kept = ("replay", "rollback", "published", "live_top_PK", "learner", "live", "frozen", "versions", "loaded_trusted")
    for name in kept:
        setattr(before, name, getattr(state, name))
    state.__dict__.update(before.__dict__)


def _metrics(scored: Scored | None) -> dict[str, Any]:
    if scored is None:
        return {"queries": 0, "known": 0, "live": None, "learner": None, "frozen": None, "experts": {}, "faults": {}}
    named = {name: scored.metrics.get(name) for name in ("live", "learner", "frozen")}
    experts = {name: figures for name, figures in scored.metrics.items() if name not in named}
    return {
        "queries": scored.num_queries,
        "known": scored.num_known,
        **named,
        "experts": experts,
        "faults": scored.faults,
        "on_known": scored.metrics_known,
    }
