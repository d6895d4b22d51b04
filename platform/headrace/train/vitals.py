"""How the learner is, beside how well it answers: bias before it learns from a cut, forgetting after it.

Alike on every rank, and cheap: a block of queries each, and no more often than that many have been scored that these
are two in a hundred.
"""

from typing import Any

import numpy as np

from headrace.evaluation.bias import new_item_recall, recall_by_age, shown
from headrace.evaluation.forgetting import SIZE, Held
from headrace.evaluation.metrics import recall
from headrace.evaluation.prequential import Queries, Scored, sample
from headrace.evaluation.sequential import CONTESTS
from headrace.inputs.contexts import Contexts, concatenate, offsets
from headrace.recommend.recommender import Recommender
from headrace.train import questions
from headrace.train.group import Group
from headrace.train.intake import Fate, Intake
from headrace.train.state import LearnerState

_SHOWN = 32
"""Queries of a cut whose answers are looked at."""
_EVERY = 50 * _SHOWN
"""Scored queries from one look to the next, at least."""
_TOP = 20


def look(asked: Queries, scored: Scored | None, state: LearnerState, group: Group) -> dict[str, Any]:
    """Runs after a cut was scored, before anything learns from it: what live recommends, and which items it finds."""
    if scored is None or not scored.num_queries or state.live is None:
        return {}
    now_ms, first_ts_I = state.watermark_ms, state.catalogue.first_ts_I
    by_age = recall_by_age(scored.ranks["live"], scored.item_T, first_ts_I, now_ms)
    found = {"new_item_recall@20": new_item_recall(by_age), "recall_by_age": by_age}
    state.num_unlooked += scored.num_queries
    if state.num_unlooked < _EVERY:
        return found
    state.num_unlooked = 0
    few = sample(asked, _SHOWN, state.recipe.seed, group.gather)
    number_QK = state.live.top(few.contexts, _TOP).number_QK if len(few) else np.zeros((0, _TOP), dtype=np.int64)
    parts = group.gather({"number": number_QK, "target": few.target_T})
    number_QK, target_T = (np.concatenate([part[name] for part in parts]) for name in ("number", "target"))
    return found | shown(number_QK, target_T, state.catalogue.count_I, first_ts_I, now_ms, len(state.live.eligible))


def measure(intake: Intake, state: LearnerState, group: Group, cut: int, version: Recommender) -> dict[str, Any]:
    """Runs after an increment was trained and stays: its held-out queries wait, and an anchor is asked if it is time.

    It is time when ``look`` has just looked, and for an anchor that was never asked.
    """
    if not state.recipe.evaluation.eval_share:
        return {}
    held_out = questions.queries(intake, state.recipe.inputs, Fate.HELD_OUT)
    anchors = state.anchors.add(_gathered(sample(held_out, SIZE, state.recipe.seed, group.gather), group), cut)
    index, asked = anchors.due(cut), None
    if index is not None and (state.num_unlooked == 0 or not anchors.anchors[index].scores):
        held = anchors.of(index)
        judged = version.judge(held.contexts, held.target_T, held.offset_R, ranks_only=True)
        score = {name: float(recall(20)(judged.rank[name], held.offset_R).mean()) for name in CONTESTS}
        anchors, asked = anchors.noted(index, score), {"cut": anchors.anchors[index].cut, **score}
    state.anchors = anchors
    return {
        "anchor": asked,
        "average_forgetting": {name: anchors.forgotten(name) for name in CONTESTS},
        "backward_transfer": {name: anchors.transferred(name) for name in CONTESTS},
    }


def _gathered(asked: Queries, group: Group) -> Held:
    """All ranks' queries, in rank order."""
    contexts = concatenate([Contexts(**part) for part in group.gather(asked.contexts.__dict__)])
    parts = group.gather({"target": asked.target_T, "length": np.diff(asked.offset_R)})
    target_T, length_Q = (np.concatenate([part[name] for part in parts]) for name in ("target", "length"))
    return Held(contexts, target_T, offsets(length_Q))
