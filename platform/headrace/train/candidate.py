"""Step 5 of an increment: what it would publish, what the gate says of it, and what becomes of the learner then."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import Eligible
from headrace.commit.manifest import Manifest
from headrace.errors import TrainingError
from headrace.evaluation.gate import Decision, Signs, decide
from headrace.evaluation.usual import Usual
from headrace.recommend.recommender import Recommender
from headrace.records import CutRows
from headrace.store.store import Store
from headrace.train.group import Group
from headrace.train.learning import Trained
from headrace.train.review import Review
from headrace.train.state import LearnerState, load_version, restore
from headrace.train.taken import Taken


@dataclass(frozen=True)
class Candidate:
    """What an increment would publish, and what the gate says of it."""

    recommender: Recommender
    decision: Decision
    answered_PK: NDArray[np.int64] | None = None
    """What it answers to the probes; None where it was not asked."""
    churn: float | None = None
    """Share of those answers that live does not give; None where there is nothing to compare."""


def try_out(state: LearnerState, taken: Taken, trained: Trained, reviewed: Review, usual: Usual) -> Candidate:
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


def accept(state: LearnerState, cut: int, decision: Decision, usual: Usual) -> None:
    """The increment stays, published or held."""
    if state.replay is not None:
        state.replay.admit(cut)
    if state.commit is not None:  # the warm-up is like nothing that comes after it
        state.usual = usual
    state.num_holds = state.num_holds + 1 if decision.verdict == "hold" else 0


def reject(state: LearnerState, store: Store, group: Group, cut_rows: CutRows, decision: Decision) -> None:
    """Take back everything but the position in the ledger, what the side feed says, and how often this has happened."""
    _go_back(state, store, group, decision)
    if cut_rows.told is not None:  # the side feed is no part of what was rejected
        state.catalogue.tell(cut_rows.told)
    if decision.unusual:
        state.usual = state.usual.rejected()
    state.deferrals = state.deferrals.reject(cut_rows.cut)


def note_versions(
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
