"""Who stays and who is drawn: uniform, by age, by quota; the same whatever the pieces in which they came."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config.methods import FrequencyConfig, RecencyConfig, ReservoirConfig
from headrace.records import generator
from headrace.replay.policy import Candidates, build_policy, draw

POLICIES = (ReservoirConfig(), RecencyConfig(half_life_increments=2), FrequencyConfig())


def candidates(num: int, *, cut=0, items=None, sizes=None, first_row: int = 0) -> Candidates:
    """Examples of one shard, a second apart; ``cut`` may be one for all."""
    row_N = first_row + np.arange(num)
    return Candidates(
        np.broadcast_to(np.asarray(cut, dtype=np.int32), num).copy(),
        1000 * row_N,
        np.zeros(num, dtype=np.int32) if items is None else np.asarray(items, dtype=np.int32),
        np.full(num, 3, dtype=np.int32),
        row_N,
        np.full(num, 100) if sizes is None else np.asarray(sizes, dtype=np.int64),
        np.zeros(num, dtype=np.float32),
    )


def subset(whole: Candidates, index) -> Candidates:
    return Candidates(*(column[index] for column in whole.__dict__.values()))


@pytest.mark.parametrize("config", POLICIES, ids=lambda config: config.kind)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(0, 600), st.integers(0, 5))
def test_the_budget_is_never_exceeded_and_all_stay_that_fit(config, sizes, budget, seed):
    given_N = candidates(len(sizes), sizes=sizes, items=np.arange(len(sizes)) % 3)
    kept = build_policy(config, seed).keep(given_N, budget, math.inf, cut=0)
    assert given_N.size_N[kept.keep_N].sum() <= budget
    if sum(sizes) <= budget:
        assert kept.keep_N.all()
    else:
        assert given_N.size_N[kept.keep_N].sum() > budget - 50, "the first that does not fit ends it"


@pytest.mark.parametrize("config", POLICIES, ids=lambda config: config.kind)
def test_the_same_examples_stay_whatever_their_order(config):
    given_N = candidates(200, cut=np.arange(200) // 50, items=np.arange(200) % 7)
    order = generator("order").permutation(200)
    policy = build_policy(config, 1)
    kept_N = policy.keep(given_N, 5000, math.inf, 4).keep_N
    assert (policy.keep(subset(given_N, order), 5000, math.inf, 4).keep_N == kept_N[order]).all()
    assert (policy.keep(given_N, 5000, math.inf, 4).keep_N == kept_N).all()
    assert (build_policy(config, 2).keep(given_N, 5000, math.inf, 4).keep_N != kept_N).any(), (
        "another seed, others stay"
    )


@pytest.mark.parametrize("config", POLICIES[:2], ids=lambda config: config.kind)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 9))
def test_piece_by_piece_ends_with_the_same_examples_as_all_at_once(config, pieces, fit):
    cut_N = np.repeat(np.arange(len(pieces)), pieces)
    whole = candidates(len(cut_N), cut=cut_N)
    policy, threshold, held = build_policy(config, 7), math.inf, np.zeros(0, dtype=np.int64)
    for cut in range(len(pieces)):
        held = np.concatenate([held, np.flatnonzero(cut_N == cut)])
        kept = policy.keep(subset(whole, held), 100 * fit, threshold, cut)
        held, threshold = held[kept.keep_N], kept.threshold
    at_once = policy.keep(whole, 100 * fit, math.inf, len(pieces))
    assert sorted(held) == np.flatnonzero(at_once.keep_N).tolist()
    assert threshold == at_once.threshold


def test_a_reservoir_is_uniform_over_all_it_has_seen():
    kept_N = build_policy(ReservoirConfig(), 1).keep(candidates(100_000), 100 * 10_000, math.inf, 0).keep_N
    observed = np.add.reduceat(kept_N, np.arange(0, 100_000, 1000))
    chi_square = ((observed - 100) ** 2 / (100 * 0.9)).sum()  # 99 degrees of freedom, without replacement
    assert kept_N.sum() == 10_000
    assert 61.1 < chi_square < 148.2, "between the 0.1 % and the 99.9 % quantile"


def test_reservoirs_of_two_seeds_are_independent():
    first, second = (
        build_policy(ReservoirConfig(), seed).keep(candidates(100_000), 100 * 10_000, math.inf, 0).keep_N
        for seed in (1, 2)
    )
    assert abs((first & second).sum() - 1000) < 4 * math.sqrt(1000)


@pytest.mark.parametrize("config", [RecencyConfig(half_life_increments=2), RecencyConfig(half_life_s=20_000)])
def test_chances_to_stay_halve_with_each_half_life(config):
    given_N = candidates(100_000, cut=np.arange(100_000) // 10_000)  # an increment is 10,000 s of event time
    kept_N = build_policy(config, 1).keep(given_N, 100 * 2000, math.inf, 9).keep_N
    by_cut = np.add.reduceat(kept_N, np.arange(0, 100_000, 10_000))
    newest, two_older = by_cut[9] + by_cut[8] + by_cut[7], by_cut[7] + by_cut[6] + by_cut[5]
    assert 1.75 < newest / two_older < 2.25
    assert by_cut[0] < by_cut[9] / 8


@pytest.mark.parametrize("budget", [100 * 2000, 100 * 60_000, 10**9])
def test_draws_by_recency_follow_the_half_life_whatever_the_budget(budget):
    cut_N = np.arange(100_000) // 10_000
    given_N, policy = candidates(100_000, cut=cut_N), build_policy(RecencyConfig(half_life_increments=1), 3)
    kept = policy.keep(given_N, budget, math.inf, 9)
    weight_A = policy.weights(subset(given_N, kept.keep_N), kept.threshold)
    share = np.bincount(cut_N[kept.keep_N], weights=weight_A, minlength=10)[4:] / weight_A.sum()
    expected = 2.0 ** np.arange(-6, 0)
    assert np.allclose(share, expected, rtol=0.35 if budget < 10**6 else 0.05)


def test_weights_stay_finite_over_many_half_lives():
    given_N, policy = candidates(1000, cut=np.arange(1000) * 50), build_policy(RecencyConfig(half_life_increments=1), 3)
    for threshold in (math.inf, 0.0, -50_000.0, 50_000.0):
        weight_N = policy.weights(given_N, threshold)
        assert np.isfinite(weight_N).all()
        assert (weight_N >= 0).all()
        assert (np.diff(weight_N) >= 0).all()
        assert weight_N[-1] > 0


def test_quotas_are_shares_rounded_up_or_down():
    items = np.repeat(np.arange(6), [1000, 500, 250, 100, 40, 10])
    kept_N = build_policy(FrequencyConfig(), 1).keep(candidates(1900, items=items), 100 * 475, math.inf, 0).keep_N
    quota = np.bincount(items[kept_N])
    assert kept_N.sum() == 475
    assert (np.abs(quota - np.array([250, 125, 62.5, 25, 10, 2.5])) <= 1).all()


def test_rare_items_get_their_share_all_together():
    items = np.concatenate([np.zeros(5000), np.arange(1, 5001)])
    policy = build_policy(FrequencyConfig(), 1)
    for cut in range(3):
        kept_N = policy.keep(candidates(10_000, items=items), 100 * 1000, math.inf, cut).keep_N
        assert abs((items[kept_N] > 0).sum() - 500) < 70


def test_within_an_item_old_and_new_have_the_same_chance():
    policy, rows = build_policy(FrequencyConfig(), 5), np.zeros(0, dtype=np.int64)
    whole = candidates(20_000)
    for cut in range(20):
        rows = np.concatenate([rows, np.arange(cut * 1000, cut * 1000 + 1000)])
        rows = rows[policy.keep(subset(whole, rows), 100 * 1000, math.inf, cut).keep_N]
    by_cut = np.bincount(rows // 1000, minlength=20)
    assert ((by_cut - 50) ** 2 / 50).sum() < 43.8, "chi-square, 19 degrees of freedom, 99.9 % quantile"


def test_draws_are_in_proportion_to_weight():
    weight_N = np.array([1.0, 2.0, 3.0, 0.0, 4.0])
    counts = np.zeros(5)
    for step in range(2000):
        counts += np.bincount(draw(np.cumsum(weight_N), 5, 7, generator("draw", step)), minlength=5)
    assert np.allclose(counts / counts.sum(), weight_N / 10, atol=0.01)
    assert counts[3] == 0


@pytest.mark.parametrize("end_N", [None, np.arange(1.0, 1001.0)], ids=["even", "equal weights"])
def test_even_draws_are_uniform_and_hardly_ever_repeat_within_a_batch(end_N):
    counts, repeats = np.zeros(1000), 0
    for step in range(2000):
        drawn = draw(end_N, 1000, 30, generator("draw", step))
        counts += np.bincount(drawn, minlength=1000)
        repeats += 30 - len(np.unique(drawn))
    assert 861 < ((counts - 60) ** 2 / 60).sum() < 1143, "chi-square, 999 degrees of freedom"
    assert repeats < 2000 * 30 * 0.002


def test_more_draws_than_examples_take_each_in_turn():
    counts = np.bincount(draw(None, 10, 1000, generator("draw")), minlength=10)
    assert (counts == 100).all()
    assert len(draw(None, 0, 5, generator("draw"))) == 0
