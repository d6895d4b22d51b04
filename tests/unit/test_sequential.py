"""The e-process: its worth by hand, that it keeps its promise, which losses it sees, and the rules of a trial."""

import json
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.catalogue.eligible import Eligible
from headrace.evaluation.prequential import Queries, score
from headrace.evaluation.sequential import Tally, Trial, e_value
from headrace.experts.base import Expert
from headrace.inputs.contexts import Contexts, contexts_of
from headrace.recommend.recommender import Judged

RATE = 0.005
SAME = np.zeros(100, dtype=np.int8)
LOSS = -np.ones(40, dtype=np.int8)
ITEMS = np.arange(1000)


def signs(blend: np.ndarray, neural: np.ndarray | None = None) -> dict[str, np.ndarray]:
    return {"blend": blend, "neural": blend if neural is None else neural}


def add(trial: Trial, live: int, blend: np.ndarray, neural: np.ndarray | None = None) -> Trial:
    return trial.add(live, signs(blend, neural), ITEMS[: len(blend)])


def alarms(trial: Trial, window: int = 3) -> list[str]:
    return [name for name, e in trial.e_values(window).items() if e >= 1 / RATE]


def test_the_capital_by_hand() -> None:
    stakes = (np.arange(32) + 0.5) / 32
    assert Tally().e_value == 1.0
    assert Tally(10, 0, 1).e_value == pytest.approx(1.5)
    assert Tally(10, 1, 0).e_value == pytest.approx(0.5)
    assert Tally(10, 1, 2).e_value == pytest.approx(np.mean((1 - stakes) * (1 + stakes) ** 2))
    assert np.isfinite(Tally(10**6, 0, 10**6).e_value)


def test_a_share_of_the_capital_waits_for_each_cut_of_the_window_by_hand() -> None:
    lost, won = Tally(10, 0, 4), Tally(10, 4, 0)
    assert e_value([], 3) == 1.0
    assert e_value([lost], 3) == pytest.approx((lost.e_value + 2) / 3)
    assert e_value([won, lost], 3) == pytest.approx(((won + lost).e_value + lost.e_value + 1) / 3)
    assert e_value([won, lost], 1) == pytest.approx(((won + lost).e_value + lost.e_value) / 2)
    assert np.isfinite(e_value([Tally(10**6, 0, 10**6)] * 3, 3))


@given(worse=st.integers(0, 300), better=st.integers(0, 300))
def test_it_is_a_martingale_on_a_fair_coin_and_shrinks_on_a_kinder_one(worse: int, better: int) -> None:
    now, up, down = (Tally(0, b, w).e_value for b, w in ((better, worse), (better, worse + 1), (better + 1, worse)))
    assert (up + down) / 2 == pytest.approx(now)
    assert 0.4 * up + 0.6 * down <= now * (1 + 1e-9)


def test_false_alarms_stay_below_the_rate_in_a_window() -> None:
    draw, num_windows = np.random.default_rng(0), 4000
    num_alarms = 0
    for _ in range(num_windows):
        tallies = [Tally.of(draw.choice([-1, 0, 1], p=[0.2, 0.6, 0.2], size=200), ITEMS[:200]) for _ in range(3)]
        num_alarms += any(e_value(tallies[:cuts], 3) >= 1 / RATE for cuts in (1, 2, 3))
    assert num_alarms / num_windows <= RATE


@pytest.mark.parametrize(("better", "worse"), [(0, 11), (5, 24), (20, 50), (100, 161)])
def test_the_losses_that_raise_an_alarm(better: int, worse: int) -> None:
    assert Tally(1000, better, worse).e_value >= 1 / RATE
    assert Tally(1000, better, worse - 1).e_value < 1 / RATE


def test_after_the_window_the_version_that_opened_it_is_trusted() -> None:
    trial = Trial()
    for live in (4, 5, 6):
        assert trial.settled(3) is trial
        trial = add(trial, live, SAME)
    assert trial.needed == {0, 4}
    assert trial.settled(3) == Trial(trusted=4)


def test_a_cut_without_queries_is_no_cut_of_the_window() -> None:
    assert add(Trial(), 1, SAME[:0]) == Trial()


def test_the_neural_expert_is_judged_apart() -> None:
    assert alarms(add(Trial(), 1, SAME[:40], LOSS)) == ["neural"]
    assert alarms(add(Trial(), 1, LOSS, SAME[:40])) == ["blend"]
    assert alarms(add(Trial(), 1, -LOSS)) == []


def test_evidence_adds_up_over_the_cuts_of_a_window_and_not_beyond() -> None:
    some = LOSS[:7]
    two = add(add(Trial(), 1, some), 2, some)
    assert two.total("blend") == Tally(14, 0, 14)
    assert alarms(two) == ["blend", "neural"]
    apart = add(add(Trial(), 1, some).settled(1), 2, some)
    assert alarms(apart) == []


def test_what_live_won_before_does_not_hide_a_loss() -> None:
    before = add(Trial(), 1, -LOSS)
    assert alarms(add(before, 2, LOSS)) == ["blend", "neural"]


def test_a_trial_survives_json() -> None:
    trial = add(add(Trial(3), 5, SAME[:40], LOSS), 6, LOSS)
    assert Trial.from_state(json.loads(json.dumps(trial.state()))) == trial


def test_hot_items_that_tip_together_raise_no_alarm_and_a_true_loss_does() -> None:
    draw, num_windows = np.random.default_rng(1), 600
    false = caught = 0
    for _ in range(num_windows):
        kinds, tallies = [], []
        for _ in range(3):
            item_T = np.minimum(draw.zipf(1.3, 900), 500)
            tipped_I = draw.choice([-1, 0, 1], p=[0.15, 0.7, 0.15], size=501)
            kinds.append(Tally.of(tipped_I[item_T], item_T))
            tallies.append(Tally.of(draw.choice([-1, 0, 1], p=[0.14, 0.8, 0.06], size=900), item_T))
        false += any(e_value(kinds[:cuts], 3) >= 1 / RATE for cuts in (1, 2, 3))
        caught += e_value(tallies, 3) >= 1 / RATE
    assert false / num_windows <= RATE
    assert caught / num_windows > 0.95


def test_the_design_effect_by_hand() -> None:
    assert Tally.of(np.array([-1, 1, 0]), np.array([1, 2, 3])) == Tally(3, 1.0, 1.0)
    together = Tally.of(np.array([-1, -1, 1, 1]), np.array([5, 5, 7, 7]))
    assert together == Tally(4, 1.0, 1.0, 2.0), "two items with two queries each are as two"
    assert Tally.of(LOSS, ITEMS[:40]) == Tally(40, 0.0, 40.0)


class Ranks:
    """A version that ranks each query's target as told."""

    num_items = 10
    eligible = Eligible(np.arange(10))
    faults: Mapping[str, int] = {}
    experts: tuple[Expert, ...] = ()

    def __init__(self, *rank: int) -> None:
        self.rank_T = np.array(rank)

    def known(self, contexts: Contexts) -> Contexts:
        return contexts

    def judge(self, *_: object) -> Judged:
        unknown_T = np.full(len(self.rank_T), np.nan)
        p = {"neural": unknown_T, "uniform": unknown_T}
        return Judged({"blend": self.rank_T, "neural": 31 - self.rank_T}, p, {"neural": unknown_T})


def test_gains_are_told_for_every_rank_and_target() -> None:
    target_T = np.array([5, 5, 5, 2, 7, 7])
    live, trusted = Ranks(21, 30, 1, 1, 20, 21), Ranks(20, 1, 1, 25, 21, 1)
    contexts = contexts_of([[1]] * 6, as_of_ms=1, max_events=5)
    asked = Queries(contexts, target_T, np.arange(7), np.zeros(6, int), np.arange(6), np.zeros(6, np.uint64))
    alone = score(asked, live, live, None, lambda part: [part], trusted)  # type: ignore[arg-type]
    assert alone.gains["blend"].tolist() == [-1, -1, 0, 1, 1, -1]
    assert alone.target_T.tolist() == target_T.tolist()
    doubled = score(asked, live, live, None, lambda part: [part, part], trusted)  # type: ignore[arg-type]
    assert doubled.gains["neural"].tolist() == alone.gains["neural"].tolist() * 2
    assert score(asked, live, live, None, lambda part: [part]).gains == {}  # type: ignore[arg-type]
