"""Bias toward the popular, and toward the old or the new: what live recommends, against what is then chosen.

Looked at before anything learns from a cut, on a few of its queries; every figure is defined in docs/metrics.md.
Shape legend: Q queries, K answers, T targets, I items by number.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from headrace.catalogue.eligible import NEVER

NEW_S = 86400
"""An item counts as new for so long after its first event."""
AGES_S: Mapping[str, float] = {"hour": 3600, "day": NEW_S, "week": 7 * 86400, "older": float("inf")}
"""Classes of age, each up to so many seconds after an item's first event."""
UNSEEN = "unseen"
"""The class of items without an event."""
_CUTOFF = 20


def shown(
    number_QK: NDArray[np.int64],
    target_T: NDArray[np.int64],
    count_I: NDArray[np.int64],
    first_ts_I: NDArray[np.int64],
    now_ms: int,
    num_eligible: int,
) -> dict[str, float | None]:
    """Figures of the answers to queries with these targets; ``count_I`` and ``first_ts_I`` as of answering."""
    answered_N = number_QK[number_QK >= 0]
    chosen_N = target_T[first_ts_I[target_T] != NEVER]
    if not len(answered_N):
        return {"popularity_lift": None, "coverage@20": None, "new_item_share": None}
    chosen = float(count_I[chosen_N].mean()) if len(chosen_N) else 0.0
    return {
        "popularity_lift": float(count_I[answered_N].mean()) / chosen if chosen else None,
        "coverage@20": len(np.unique(answered_N)) / min(len(answered_N), num_eligible),
        "new_item_share": float(_is_new(first_ts_I[answered_N], now_ms).mean()),
    }


def _is_new(first_ts_N: NDArray[np.int64], now_ms: int) -> NDArray[np.bool_]:
    """First met less than ``NEW_S`` ago, or not at all yet."""
    return np.asarray((first_ts_N == NEVER) | (now_ms - first_ts_N < 1000 * NEW_S))


def recall_by_age(
    rank_T: NDArray[np.int64], item_T: NDArray[np.int64], first_ts_I: NDArray[np.int64], now_ms: int
) -> dict[str, dict[str, float | None]]:
    """By class of age: how many targets are of it, and the share of them that rank among the first 20."""
    first_T = first_ts_I[item_T]
    class_T = np.searchsorted(1000 * np.array(list(AGES_S.values())), now_ms - first_T.astype(np.float64), side="right")
    class_T = np.where(first_T == NEVER, len(AGES_S), np.minimum(class_T, len(AGES_S) - 1))
    found = {}
    for number, name in enumerate((*AGES_S, UNSEEN)):
        hit_N = rank_T[class_T == number] <= _CUTOFF
        found[name] = {"targets": len(hit_N), "recall@20": float(hit_N.mean()) if len(hit_N) else None}
    return found


def new_item_recall(by_age: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """Recall@20 over targets that are new: first met less than ``NEW_S`` ago, or not at all yet."""
    classes = [by_age[name] for name, age_s in AGES_S.items() if age_s <= NEW_S] + [by_age[UNSEEN]]
    targets = sum(one["targets"] or 0 for one in classes)
    hits = sum((one["targets"] or 0) * (one["recall@20"] or 0.0) for one in classes)
    return hits / targets if targets else None
