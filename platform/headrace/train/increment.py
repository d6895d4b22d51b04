"""One increment: the eight steps, in order, without Ray. Benchmarks, tests and production run this same function.

Nothing may be reordered: what is scored has not been trained, what is committed has been gated, what is published has
been committed. Every rank runs all of it, with its own rows; whatever decides something is gathered first, so that all
ranks decide alike.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from headrace.blend.calibration import recalibrate
from headrace.blend.weights import NEURAL, update
from headrace.clock import Stopwatch
from headrace.commit.manifest import Manifest
from headrace.evaluation.gate import decide_rows
from headrace.evaluation.prequential import Queries, Scored, sample, score
from headrace.evaluation.usual import RowSigns, Usual
from headrace.inputs.contexts import Contexts, concatenate
from headrace.methods.base import Answered
from headrace.records import CutRows
from headrace.store.store import Store
from headrace.train import questions
from headrace.train.again import due, settle
from headrace.train.candidate import Candidate, accept, note_versions, reject, try_out
from headrace.train.checkpoint import Checkpoint
from headrace.train.committer import Committer
from headrace.train.group import Group
from headrace.train.intake import take
from headrace.train.learning import UNTRAINED, learn
from headrace.train.review import Review, follow_rollback, review, rival
from headrace.train.state import LearnerState
from headrace.train.taken import Taken, gather_taken
from headrace.train.times import believed_times
from headrace.train.vitals import look, measure

_SCORES = 50_000_000
"""Queries times items that an increment scores at most, where ``evaluation.max_queries`` limits it."""


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
    taken = gather_taken(intake, asked, group)
    follow_rollback(state, cut.rollback, committer.store)
    scored = _score(asked, state, group, cut.number, committer.store, on_scored)
    vitals = look(asked, scored, state, group)
    state.repeats = state.repeats.add(*taken.repeats)
    reviewed = _review(state, scored, committer.store)
    row_signs, usual = _row_signs(taken, scored), _usual(state)
    rejected = decide_rows(row_signs, usual, state.recipe.gate)
    watch.lap("score")
    wanted = due(cut_rows, intake, state, group)
    trained = UNTRAINED if rejected else learn(wanted, taken, state, group, cut.number, warmup, watch, checkpoint)
    watch.lap("train")
    state.probes = state.probes or _probes(asked, state, group)
    made = Candidate(state.recommender(), rejected) if rejected else try_out(state, taken, trained, reviewed, usual)
    decision, fates = reviewed.explain(made.decision), dict(taken.fates)
    if decision.verdict == "reject":
        reject(state, committer.store, group, cut_rows, decision)
        made, fates = Candidate(state.recommender(), decision), {"quarantined": cut.num_rows}
    else:
        accept(state, cut.number, decision, usual.add(row_signs, (trained.update_ratio, trained.passed.steps)))
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
        "window": wanted.facts(cut.window, is_trained=decision.verdict != "reject"),
        "signs": row_signs.facts(),
        "review": reviewed.facts(decision.verdict),
        "vitals": {**vitals, "churn@20": made.churn},
    }
    manifest = committer.commit(state, decision, figures, cut, watch)
    note_versions(state, made, manifest, committer.store)
    return manifest


def _max_queries(limit: int | Literal["all"], num_eligible: int) -> int | None:
    """Fewer queries where more items may be answered, so that scoring costs about the same; at least one."""
    return None if limit == "all" else max(1, min(limit, _SCORES // max(1, num_eligible)))


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


def _review(state: LearnerState, scored: Scored | None, store: Store) -> Review:
    """The sequential test; the methods hear how a learner that stays has answered what it has not learned from."""
    if scored is None:
        return Review()
    reviewed = review(state, scored, store)
    if scored.num_queries and reviewed.version is None:
        answered = Answered(scored.num_queries, scored.metrics[NEURAL]["recall@20"])
        for method in state.methods:
            method.observe(answered)
    return reviewed


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
