"""The e-process: its worth by hand, that it keeps its promise, which losses it sees, and the rules of a trial."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.evaluation.sequential import Tally, Trial

RATE = 0.005
SAME = np.zeros(100, dtype=np.int8)
LOSS = -np.ones(40, dtype=np.int8)


def signs(blend: np.ndarray, neural: np.ndarray | None = None) -> dict[str, np.ndarray]:
    return {"blend": blend, "neural": blend if neural is None else neural}


def test_the_capital_by_hand() -> None:
    stakes = (np.arange(32) + 0.5) / 32
    assert Tally().e_value == 1.0
    assert Tally(10, 0, 1).e_value == pytest.approx(1.5)
    assert Tally(10, 1, 0).e_value == pytest.approx(0.5)
    assert Tally(10, 1, 2).e_value == pytest.approx(np.mean((1 - stakes) * (1 + stakes) ** 2))
    assert np.isfinite(Tally(10**6, 0, 10**6).e_value)


@given(worse=st.integers(0, 300), better=st.integers(0, 300))
def test_it_is_a_martingale_on_a_fair_coin_and_shrinks_on_a_kinder_one(worse: int, better: int) -> None:
    now, up, down = (Tally(0, b, w).e_value for b, w in ((better, worse), (better, worse + 1), (better + 1, worse)))
    assert (up + down) / 2 == pytest.approx(now)
    assert 0.4 * up + 0.6 * down <= now * (1 + 1e-9)


def test_false_alarms_stay_below_the_rate_wherever_one_stops() -> None:
    draw, num_windows = np.random.default_rng(0), 4000
    alarms = 0
    for _ in range(num_windows):
        sign_Q = draw.choice([-1, 0, 1], p=[0.2, 0.6, 0.2], size=600)
        worse_Q, better_Q = np.cumsum(sign_Q < 0), np.cumsum(sign_Q > 0)
        alarms += any(
            Tally(0, int(better_Q[at]), int(worse_Q[at])).e_value >= 1 / RATE for at in range(49, len(sign_Q), 50)
        )
    assert alarms / num_windows <= RATE


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
    assert Trial().add(1, signs(SAME, LOSS)).alarms(RATE) == ("neural",)
    assert Trial().add(1, signs(LOSS, SAME)).alarms(RATE) == ("blend",)
    assert Trial().add(1, signs(-LOSS)).alarms(RATE) == ()


def test_evidence_adds_up_over_the_cuts_of_a_window_and_not_beyond() -> None:
    some = LOSS[:6]
    two = Trial().add(1, signs(some)).add(2, signs(some))
    assert two.alarms(RATE) == ("blend", "neural")
    assert two.restarted() == Trial()
    apart = Trial().add(1, signs(some)).settled(1).add(2, signs(some))
    assert apart.alarms(RATE) == ()


def test_a_trial_survives_json() -> None:
    trial = Trial(3).add(5, signs(SAME, LOSS)).add(6, signs(LOSS))
    assert Trial.from_state(json.loads(json.dumps(trial.state()))) == trial
