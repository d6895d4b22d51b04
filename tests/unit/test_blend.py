import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.blend.weights import Weights, per_query, update

ETA, SHARE = 0.01, 0.0001
chances = st.floats(min_value=0.0, max_value=1.0)


def voices(p_QK):
    return dict(zip(("neural", "popular", "uniform"), np.asarray(p_QK, dtype=float).reshape(-1, 3).T, strict=True))


def test_one_query_by_hand():
    start = Weights(("neural", "popular", "uniform"), (0.5, 0.3, 0.2))
    moved = update(start, voices([[0.4, 0.1, 0.01]]), 0.1, 0.01)
    p_mix = 0.5 * 0.4 + 0.3 * 0.1 + 0.2 * 0.01
    by_hand = [w * (0.9 + 0.1 * p / p_mix) * 0.99 + 0.01 / 3 for w, p in ((0.5, 0.4), (0.3, 0.1), (0.2, 0.01))]
    assert moved.weights.w_K == pytest.approx(by_hand, rel=1e-12)
    assert moved.num_updates == 1


def test_an_abstainer_keeps_its_weight_and_is_counted():
    start = Weights(("neural", "popular", "uniform"), (0.5, 0.3, 0.2))
    moved = update(start, voices([[math.nan, 0.5, 0.001]] * 40 + [[math.inf, 0.5, 0.001]]), 0.1, 0.01)
    w = moved.weights.as_mapping()
    assert w["neural"] == pytest.approx(0.5, rel=1e-12)
    assert w["popular"] > 0.45
    assert moved.left_out == {"neural": 41, "popular": 0, "uniform": 0}


def test_a_target_outside_the_eligible_set_moves_nothing():
    start = Weights.even(["popular"])
    moved = update(start, voices([[math.nan] * 3] * 5), ETA, SHARE)
    assert moved.weights == start
    assert moved.num_updates == 0
    assert moved.left_out == {"neural": 0, "popular": 0, "uniform": 0}
    assert update(start, voices([]), ETA, SHARE).weights == start


def test_several_targets_are_averaged_over_the_eligible_ones():
    p = {"a": np.array([0.1, 0.3, math.nan, 0.5, math.nan]), "b": np.array([math.nan] * 3 + [0.2, math.nan])}
    means = per_query(p, np.array([0, 3, 4, 5, 5]))
    np.testing.assert_allclose(means["a"], [0.2, 0.5, math.nan, math.nan])
    np.testing.assert_allclose(means["b"], [math.nan, 0.2, math.nan, math.nan])


def test_weights_come_back_from_json_to_the_last_bit():
    import json

    weights = update(Weights.even(["popular"]), voices([[0.3, 0.2, 0.01]] * 7), ETA, SHARE).weights
    assert Weights.from_mapping(json.loads(json.dumps(weights.as_mapping()))) == weights


@given(st.lists(st.tuples(*[chances | st.just(math.nan)] * 2, st.floats(1e-6, 1e-2)), max_size=60))
def test_weights_stay_a_distribution_and_none_dies(p_QK):
    weights = update(Weights.even(["popular"]), voices(p_QK), 0.3, SHARE).weights
    assert math.fsum(weights.w_K) == pytest.approx(1.0, abs=1e-12)
    assert all(w >= SHARE / 3 * 0.5 for w in weights.w_K)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.01, 0.05, 0.2]), st.floats(0.05, 3.0))
def test_regret_against_the_best_expert_is_bounded(seed, eta, spread):
    draw = np.random.default_rng(seed)
    p_QK = np.exp(-spread * draw.gamma(1.0, 2.0, (500, 3)) * draw.random(3))
    weights, loss = Weights.even(["popular"]), 0.0
    for p_K in p_QK:
        loss -= math.log(float(np.dot(weights.w_K, p_K)))
        weights = update(weights, voices(p_K), eta, SHARE).weights
    best = -np.log(p_QK).sum(axis=0).min()
    bound = (math.log(3) - len(p_QK) * math.log(1 - SHARE)) / eta
    assert loss - best <= bound + 1e-9


def test_the_weights_follow_the_better_expert():
    draw = np.random.default_rng(0)
    good, bad = draw.uniform(0.1, 0.5, 2000), draw.uniform(0.0, 0.1, 2000)
    weights = update(
        Weights.even(["popular"]), voices(np.stack([bad, good, np.full(2000, 1e-4)], 1)), ETA, SHARE
    ).weights
    assert weights.as_mapping()["popular"] > 0.9


def test_blocks_of_queries_move_the_weights_as_one_run_does():
    p_QK = np.random.default_rng(3).random((100, 3))
    whole = update(Weights.even(["popular"]), voices(p_QK), ETA, SHARE).weights
    parts = Weights.even(["popular"])
    for start in range(0, 100, 10):
        parts = update(parts, voices(p_QK[start : start + 10]), ETA, SHARE).weights
    assert parts.w_K == pytest.approx(whole.w_K, rel=1e-12)


def best_mixture(p_TK):
    """Weights and loss of the fixed mixture that is best in hindsight, by expectation-maximisation."""
    weight_K = np.full(p_TK.shape[1], 1 / p_TK.shape[1])
    for _ in range(3000):
        weight_K = (weight_K * p_TK / (p_TK @ weight_K)[:, None]).mean(axis=0)
    return -np.log(p_TK @ weight_K).sum()


def streams(kind, draw, rounds, experts):
    """Probabilities of what came, (T, K): by chance, one expert right at a time, or whoever was trusted least."""
    match kind:
        case "random":
            return np.exp(-3.0 * draw.gamma(1.0, 1.5, (rounds, experts)))
        case "drifting":
            right_T = np.arange(rounds) * experts // rounds
            return np.where(np.arange(experts) == right_T[:, None], 0.9, 0.01)
        case "one right":
            return np.eye(experts)[draw.choice(experts, rounds, p=draw.dirichlet(np.ones(experts)))]
        case _:
            raise ValueError(kind)


def play(p_of, rounds, eta, experts):
    """Loss of Soft-Bayes without share on probabilities that may depend on its weights, and those probabilities."""
    names = ("neural", *(f"e{k}" for k in range(experts - 2)), "uniform")
    weights, loss, history = Weights(names, (1 / experts,) * experts), 0.0, []
    for t in range(rounds):
        p_K = p_of(t, weights.w_K)
        loss -= math.log(float(np.dot(weights.w_K, p_K)))
        weights = update(weights, dict(zip(names, np.asarray(p_K)[:, None], strict=True)), eta, 0.0).weights
        history.append(p_K)
    return loss, np.array(history)


def regret_bound(experts, rounds, eta):
    """Against any fixed mixture, at a constant rate (arXiv 1901.02230): ln K / eta + K T eta / (1 - eta).

    At eta = a / (1 + a) with a = sqrt(ln K / (K T)) this is the paper's 2 sqrt(K T ln K) + ln K (theorem 3).
    """
    return math.log(experts) / eta + experts * rounds * eta / (1 - eta)


@settings(max_examples=24, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.01, 0.05, 0.3]),
    st.sampled_from(["random", "drifting", "one right"]),
    st.sampled_from([3, 6]),
)
def test_regret_against_the_best_fixed_mixture_is_bounded(seed, eta, kind, experts):
    p_TK = streams(kind, np.random.default_rng(seed), 600, experts)
    loss, _ = play(lambda t, _: p_TK[t], 600, eta, experts)
    assert loss - best_mixture(p_TK) <= regret_bound(experts, 600, eta) + 1e-6


@pytest.mark.parametrize("eta", [0.01, 0.1])
@pytest.mark.parametrize("chosen", [np.argmin, np.argmax])
def test_regret_is_bounded_against_an_adversary(eta, chosen):
    def p_of(t, w_K):
        return np.eye(len(w_K))[int(chosen(w_K))]

    loss, p_TK = play(p_of, 800, eta, 4)
    assert loss - best_mixture(p_TK) <= regret_bound(4, 800, eta) + 1e-6


@pytest.mark.parametrize("rounds", [200, 800])
def test_the_tuned_rate_gives_the_papers_regret(rounds):
    rate = math.sqrt(math.log(4) / (4 * rounds))
    p_TK = streams("one right", np.random.default_rng(rounds), rounds, 4)
    loss, _ = play(lambda t, _: p_TK[t], rounds, rate / (1 + rate), 4)
    assert loss - best_mixture(p_TK) <= 2 * math.sqrt(4 * rounds * math.log(4)) + math.log(4)
