"""Metrics against figures worked out by hand, the draw of queries, and what the gate says."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from headrace.config.answers import GateConfig
from headrace.evaluation.gate import Signs, decide
from headrace.evaluation.metrics import METRICS
from headrace.evaluation.prequential import Queries, sample
from headrace.evaluation.usual import Usual
from headrace.inputs.contexts import Contexts

MISS = 10**9
RANKS = np.array([1, 20, 21, MISS, 2, 3, 40])  # four queries with one target each, one basket of three
OFFSETS = np.array([0, 1, 2, 3, 4, 7])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recall@10", [1, 0, 0, 0, 2 / 3]),
        ("recall@20", [1, 1, 0, 0, 2 / 3]),
        ("recall@100", [1, 1, 1, 0, 1]),
        ("mrr@10", [1, 0, 0, 0, 1 / 2]),
        ("mrr@20", [1, 1 / 20, 0, 0, 1 / 2]),
        (
            "ndcg@20",
            [
                1,
                1 / math.log2(21),
                0,
                0,
                (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3) + 1 / math.log2(4)),
            ],
        ),
    ],
)
def test_metrics_by_hand(name: str, expected: list[float]) -> None:
    np.testing.assert_allclose(METRICS[name](RANKS, OFFSETS), expected, atol=1e-12)


@pytest.mark.parametrize("name", list(METRICS))
def test_no_queries_give_no_values(name: str) -> None:
    assert len(METRICS[name](np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))) == 0


def queries(events: list[int]) -> Queries:
    size = len(events)
    contexts = Contexts(
        np.arange(size),
        np.zeros(size, dtype=np.int64),
        np.zeros(size, dtype=np.int16),
        np.arange(size + 1),
        np.ones(size, dtype=np.int64),
        np.zeros(size, dtype=np.uint64),
        np.zeros(size, dtype=np.int64),
    )
    place = np.arange(size)
    return Queries(contexts, place, np.arange(size + 1), place, place, np.array(events, dtype=np.uint64))


def test_the_draw_is_the_same_however_the_rows_lie_on_ranks() -> None:
    events = list(range(100, 160))

    def split(world: int) -> list[int]:
        parts = [queries(events[rank::world]) for rank in range(world)]
        smallest: list[Mapping[str, Any]] = []
        for part in parts:
            sample(part, 20, 7, lambda mine: smallest.append(mine) or [mine])
        drawn = [sample(part, 20, 7, lambda mine: smallest) for part in parts]
        return sorted(int(event) for part in drawn for event in part.event_Q)

    assert split(1) == split(2) == split(3)
    assert len(split(2)) == 20


def test_all_queries_where_there_is_no_limit() -> None:
    asked = queries(list(range(10)))
    assert sample(asked, None, 1, lambda mine: [mine]) is asked
    assert len(sample(asked, 50, 1, lambda mine: [mine])) == 10


GOOD = {
    "is_warmup": False,
    "finite": True,
    "max_abs": 1.0,
    "update_ratio": 0.1,
    "steps": 10,
    "churn": 0.3,
    "eligible_before": 100,
    "eligible_after": 104,
}


@pytest.mark.parametrize(
    ("sign", "verdict", "word"),
    [
        ({}, "publish", "passed"),
        ({"finite": False}, "reject", "NaN"),
        ({"max_abs": 1e38}, "reject", "1e+38"),
        ({"update_ratio": 7.0}, "reject", "7.00 of the weights"),
        ({"update_ratio": 7.0, "is_warmup": True}, "publish", "passed"),
        ({"update_ratio": 0.9}, "publish", "passed"),
        ({"eligible_after": 3}, "reject", "3 of 100 items could still be answered"),
        ({"churn": 0.9}, "hold", "90% of the probes"),
    ],
)
def test_each_rule_says_what_it_saw(sign: dict[str, Any], verdict: str, word: str) -> None:
    decision = decide(Signs(**{**GOOD, **sign}), Usual(), GateConfig(max_churn=0.8))
    assert decision.verdict == verdict
    assert word in decision.reason
