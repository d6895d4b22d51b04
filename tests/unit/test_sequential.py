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
from headrace.inputs.contexts import Contexts, contexts_of
from headrace.recommend.recommender import Judged

RATE = 0.005
SAME = np.zeros(100, dtype=np.int8)
LOSS = -np.ones(40, dtype=np.int8)


def signs(blend: np.ndarray, neural: np.ndarray | None = None) -> dict[str, np.ndarray]:
    return {"blend": blend, "neural": blend if neural is None else neural}


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
        tallies = [Tally.of(draw.choice([-1, 0, 1], p=[0.2, 0.6, 0.2], size=200)) for _ in range(3)]
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
        trial = trial.add(live, signs(SAME))
    assert trial.needed == {0, 4}
    assert trial.settled(3) == Trial(trusted=4)


def test_a_cut_without_queries_is_no_cut_of_the_window() -> None:
    assert Trial().add(1, signs(SAME[:0])) == Trial()


def test_the_neural_expert_is_judged_apart() -> None:
    assert alarms(Trial().add(1, signs(SAME, LOSS))) == ["neural"]
    assert alarms(Trial().add(1, signs(LOSS, SAME))) == ["blend"]
    assert alarms(Trial().add(1, signs(-LOSS))) == []


def test_evidence_adds_up_over_the_cuts_of_a_window_and_not_beyond() -> None:
    some = LOSS[:7]
    two = Trial().add(1, signs(some)).add(2, signs(some))
    assert two.total("blend") == Tally(14, 0, 14)
    assert alarms(two) == ["blend", "neural"]
    assert two.restarted() == Trial()
    apart = Trial().add(1, signs(some)).settled(1).add(2, signs(some))
    assert alarms(apart) == []


def test_what_live_won_before_does_not_hide_a_loss() -> None:
    before = Trial().add(1, signs(-LOSS))
    assert alarms(before.add(2, signs(LOSS))) == ["blend", "neural"]


def test_a_trial_survives_json() -> None:
    trial = Trial(3).add(5, signs(SAME, LOSS)).add(6, signs(LOSS))
    assert Trial.from_state(json.loads(json.dumps(trial.state()))) == trial


class Ranks:
    """A version that ranks each query's target as told."""

    num_items = 10
    eligible = Eligible(np.arange(10))
    faults: Mapping[str, int] = {}

    def __init__(self, *rank: int) -> None:
        self.rank_T = np.array(rank)

    def known(self, contexts: Contexts) -> Contexts:
        return contexts

    def judge(self, *_: object) -> Judged:
        unknown_T = np.full(len(self.rank_T), np.nan)
        p = {"neural": unknown_T, "uniform": unknown_T}
        return Judged({"blend": self.rank_T, "neural": 31 - self.rank_T}, p, {"neural": unknown_T})


def test_an_item_that_many_want_is_one_piece_of_evidence() -> None:
    target_T = np.array([5, 5, 5, 2, 7, 7])
    live, trusted = Ranks(21, 30, 1, 1, 20, 21), Ranks(20, 1, 1, 25, 21, 1)
    contexts = contexts_of([[1]] * 6, as_of_ms=1, max_events=5)
    asked = Queries(contexts, target_T, np.arange(7), np.zeros(6, int), np.arange(6), np.zeros(6, np.uint64))
    alone = score(asked, live, live, None, lambda part: [part], trusted)  # type: ignore[arg-type]
    assert alone.signs["blend"].tolist() == [1, -1, 0], "items 2, 5 and 7"
    doubled = score(asked, live, live, None, lambda part: [part, part], trusted)  # type: ignore[arg-type]
    assert doubled.signs["blend"].tolist() == [1, -1, 0], "another rank's queries for the same items"
    assert score(asked, live, live, None, lambda part: [part]).signs == {}  # type: ignore[arg-type]
