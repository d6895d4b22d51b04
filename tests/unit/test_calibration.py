"""Exponents: what they do to votes, that their slopes are derivatives, and that the stream finds the right ones."""

import json
import math

import numpy as np
import pytest
from serving_kit import WATERMARK_MS
from voting_kit import ITEMS, versions

from headrace.blend.calibration import Calibration, recalibrate
from headrace.blend.weights import Weights, per_query
from headrace.catalogue.eligible import Eligible
from headrace.inputs.contexts import contexts_of

CONTEXTS = [[1, 2, 3, 9], [7], [20, 21, 20], [5, 50]]
COUNTERS = ("popular", "near", "own_items")
EXPERTS = ("neural", *COUNTERS)


def judged(version, item):
    asked = contexts_of(CONTEXTS, WATERMARK_MS, 10)
    return version.judge(asked, np.full(len(CONTEXTS), item), np.arange(len(CONTEXTS) + 1))


def with_exponents(version, **exponents):
    weights = Weights.from_mapping(dict(zip(version._names, version._weight_K, strict=True)))
    return version.remixed(weights, exponents)


@pytest.mark.parametrize("seen_last", [False, True])
@pytest.mark.parametrize("name", EXPERTS)
def test_probabilities_are_raised_and_normalised_and_keep_their_order(seen_last, name):
    plain = versions(3, Eligible(np.arange(ITEMS)))[seen_last]
    sharp = with_exponents(plain, **{name: 0.4})
    steep = with_exponents(plain, **{name: 5.0})
    before, after = (np.array([judged(v, i).probability[name] for i in range(ITEMS)]) for v in (plain, sharp))
    ranks = [np.array([judged(v, i).rank[name] for i in range(ITEMS)]) for v in (plain, sharp, steep)]
    np.testing.assert_array_equal(ranks[0], ranks[1])
    np.testing.assert_array_equal(ranks[0], ranks[2])
    raised = np.where(before > 0, before, 0.0) ** 0.4 * (before > 0)
    with np.errstate(invalid="ignore"):
        expected = raised / raised.sum(axis=0)
    told = np.isfinite(after) & (raised.sum(axis=0) > 0)
    np.testing.assert_allclose(after[told], expected[told], rtol=2e-4, atol=1e-9)
    assert (np.isnan(before) == np.isnan(after)).all()


@pytest.mark.parametrize("seen_last", [False, True])
@pytest.mark.parametrize("exponent", [1.0, 0.6])
def test_slopes_are_derivatives(seen_last, exponent):
    plain = versions(4, Eligible(np.arange(0, ITEMS, 2)))[seen_last]
    h = 1e-2
    for name in EXPERTS:
        at, below, above = (with_exponents(plain, **{name: exponent * math.exp(step)}) for step in (0.0, -h, h))
        for item in (0, 4, 20, 40):
            p = [judged(version, item).probability[name] for version in (below, above)]
            numeric = (p[1] - p[0]) / (2 * h)
            slope = judged(at, item).slope[name]
            assert (np.isnan(slope) == np.isnan(p[0])).all()
            np.testing.assert_allclose(slope, numeric, rtol=2e-2, atol=2e-5)


def test_the_blend_uses_the_exponents_when_answering_too():
    plain = versions(5, Eligible(np.arange(ITEMS)))[0]
    sharp = with_exponents(plain, neural=0.5, popular=2.0, near=0.7, own_items=0.2)
    top = sharp.top(contexts_of(CONTEXTS, WATERMARK_MS, 10), 5, explain=True)
    for query in range(len(CONTEXTS)):
        for place, item in enumerate(top.number_QK[query].tolist()):
            told = judged(sharp, item)
            assert told.rank["blend"][query] == place + 1
            for name in EXPERTS:
                p = told.probability[name][query]
                share = top.shares[name][query, place]
                assert share == 0.0 if np.isnan(p) else share <= p + 1e-6


def softmax(logits):
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def test_the_stream_finds_the_exponent_and_the_loss_falls():
    draw = np.random.default_rng(0)
    truth, items = 0.4, 30
    calibration = Calibration.plain(["popular"])
    weights = Weights(("neural", "popular", "uniform"), (0.9, 0.05, 0.05))
    losses = []
    for _ in range(12):
        logits = draw.normal(0, 3, (400, items))  # the expert says softmax(logits): it is far too sure
        target = np.array([draw.choice(items, p=row) for row in softmax(truth * logits)])
        p_QI = softmax(calibration.exponents["neural"] * logits)
        p_Q = p_QI[np.arange(400), target]
        entropy_Q = -(p_QI * np.log(p_QI)).sum(axis=1)
        quiet = np.full(400, np.nan)
        uniform = np.full(400, 1 / items)
        losses.append(-np.log(0.9 / 0.95 * p_Q + 0.05 / 0.95 / items).mean())
        slope = {"neural": p_Q * (np.log(p_Q) + entropy_Q), "popular": quiet}
        calibration = recalibrate(calibration, weights, {"neural": p_Q, "popular": quiet, "uniform": uniform}, slope)
    assert calibration.exponents["neural"] == pytest.approx(0.45, abs=0.08), "a little above: uniform flattens, too"
    assert calibration.exponents["popular"] == 1.0
    assert np.mean(losses[-3:]) < losses[0] - 0.1


def test_nothing_that_is_not_a_number_gets_in():
    bad = np.array([np.nan, np.inf, -1.0, 0.0])
    p = {"neural": bad, "popular": bad[::-1], "uniform": np.full(4, 0.1)}
    moved = recalibrate(Calibration.plain(["popular"]), Weights.even(["popular"]), p, {"neural": bad, "popular": bad})
    assert all(0.05 <= exponent <= 5.0 for exponent in moved.exponents.values())
    assert all(math.isfinite(value) for value in moved.information.values())
    assert Calibration.from_state(json.loads(json.dumps(moved.state()))) == moved
    empty = {name: np.zeros(0) for name in p}
    assert recalibrate(moved, Weights.even(["popular"]), empty, empty) == moved


def test_targets_of_a_basket_are_averaged():
    slopes = per_query({"a": np.array([0.1, 0.3, np.nan])}, np.array([0, 3]))
    assert slopes["a"].tolist() == [0.2]
