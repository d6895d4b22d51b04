"""Steps 3 and 4 of an increment: learn from the rows, and stage them for replay; alike on every rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.clock import Stopwatch
from headrace.config.methods import EarlyStopConfig
from headrace.inputs.examples import Examples
from headrace.methods.progressive import CONSOLIDATED
from headrace.recommend.prior import Prior
from headrace.replay.packed import groups_of, join
from headrace.train import questions
from headrace.train.again import Due
from headrace.train.checkpoint import Checkpoint
from headrace.train.encodings import encode_experts, herded
from headrace.train.group import Group
from headrace.train.intake import Fate, Intake
from headrace.train.passes import PassStats, train_passes
from headrace.train.rows import follow_attributes, start_rows
from headrace.train.state import LearnerState
from headrace.train.taken import Taken
from headrace.train.targets import check_behaviours, targets

_REPLAY_BATCH = 2048
"""Examples in a request to replay, of which a few are in flight."""


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
            "useful_tokens": passed.useful_tokens,
            **(validation if passed.validated else {}),
            **({"methods": {kind: dict(facts) for kind, facts in self.methods.items()}} if self.methods else {}),
        }


UNTRAINED = Trained(PassStats(0, 0, 0, (), 0.0, 0.0), 0, 0.0)
"""Of a cut whose rows nothing may learn from."""


def learn(
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
    if warmup:
        check_behaviours(wanted.intake.rows, recipe, group)
    state.step.begin_increment(state.catalogue.num_slots, increment)
    start_rows(state)
    made = targets(wanted.intake, recipe, group, state.step.model.reads_empty)
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
        asked_level=recipe.asked_level,
        checkpoint=checkpoint,
    )
    watch.book("train", passed.earlier_s)
    update_ratio = state.step.update_ratio()
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
        "kind": intake.told_N,
        "group": rows.group_N,
    }
    state.history.append({name: column[kept_N] for name, column in history.items()})
    if state.seen is not None:
        new_N = ~np.isin(intake.fate_N, (Fate.DUPLICATE, Fate.LATE_SET_ASIDE, Fate.QUARANTINED))
        arrived: dict[str, NDArray[Any]] = {"key": rows.event_N, "ts": rows.ts_N, "group": rows.group_N}
        oldest_ms = state.watermark_ms - state.recipe.feed.duplicate_horizon_s * 1000
        state.seen.append({name: column[new_N] for name, column in arrived.items()}, oldest_ms)
