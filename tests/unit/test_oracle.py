"""The synthetic shop's oracle: its law is the walk's own, and nobody who has only seen the stream is above it."""

import numpy as np
import pytest

from headrace.config.feed import SyntheticConfig
from headrace.feed.landing import shard_name
from headrace.feed.oracle import Oracle
from headrace.feed.synthetic import shard_events, steps_of

CONFIG = SyntheticConfig(num_items=200, events_per_shard=4000, warmup_events=4000)


def test_chances_are_those_of_the_steps_taken() -> None:
    steps = steps_of(CONFIG, 3, 5)
    p_QI = steps.probabilities(steps.from_Q)
    np.testing.assert_allclose(p_QI.sum(axis=1), 1.0)
    assert (p_QI[np.arange(len(steps.from_Q)), steps.from_Q] == 0.0).mean() > 0.99
    taken = np.zeros_like(p_QI[0])
    np.add.at(taken, steps.to_Q, 1.0)
    expected, variance = p_QI.sum(axis=0), (p_QI * (1 - p_QI)).sum(axis=0)
    away = (taken - expected)[expected > 5] / np.sqrt(variance[expected > 5])
    assert abs(away.mean()) < 0.3
    assert 0.8 < away.std() < 1.2


def test_its_questions_are_those_of_the_shard() -> None:
    rows = shard_events(CONFIG, 3, 5)
    session = rows["session_id"].to_numpy()
    own, spilt = steps_of(CONFIG, 3, 5), steps_of(CONFIG, 3, 4)
    before = shard_events(CONFIG, 3, 4)["session_id"].to_numpy()
    num_spilt = int(np.isin(session, before).sum())  # the last events of sessions that began in the shard before
    assert int(spilt.spills_Q.sum()) == num_spilt > 0
    assert int((~own.spills_Q).sum()) == rows.num_rows - len(np.unique(session))


@pytest.mark.parametrize("seed", [1, 2])
def test_it_beats_what_is_popular_and_what_follows_most(seed: int) -> None:
    oracle = Oracle(CONFIG, seed)
    best = oracle.recall([shard_name(1), shard_name(2)])
    assert best is not None
    steps = steps_of(CONFIG, seed, 1)
    popular = np.argsort(-steps.shop.shares())[:20]
    assert best > np.isin(steps.to_Q, popular).mean() + 0.2
    assert 0.6 < best < 0.95


def test_the_warm_up_and_strangers_have_no_oracle() -> None:
    oracle = Oracle(CONFIG, 1)
    assert oracle.recall([shard_name(0)]) is None
    assert oracle.recall(["mine.parquet"]) is None
    assert oracle.recall([]) is None
