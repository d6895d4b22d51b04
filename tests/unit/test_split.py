"""Repeat or explore: what a split blend scores, who moves which weights, and that it travels with the commit."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_kit import Stream, events, recipe
from serving_kit import WATERMARK_MS
from voting_kit import ITEMS, versions

from headrace.blend.calibration import Calibration
from headrace.blend.split import OnRepeats, Split, bucket
from headrace.blend.weights import Weights
from headrace.bundles.bundle import Bundle, bundle_of, load_bundle
from headrace.catalogue.eligible import Eligible
from headrace.commit.chain import Chain
from headrace.config.answers import BlendConfig
from headrace.inputs.contexts import Contexts, contexts_of
from headrace.recommend.recommender import Recommender
from headrace.recommend.seen import Seen

NAMES = ("neural", "popular", "near", "own_items", "uniform")
CONTEXTS = [[1, 2, 3], [], [9, 9, 12, 40], [7], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29], [58]]


def asked(contexts: list[list[int]]) -> Contexts:
    return contexts_of(contexts, WATERMARK_MS, 10)


def split_with(share: float, weights: Weights) -> Split:
    """One whose share of repeats is this, whatever the context's length."""
    return Split(weights, (980.0,) * 5, (1000.0 * share - 2.0,) * 5)


def drawn(seed: int) -> Weights:
    return Weights(NAMES, tuple(np.random.default_rng(seed).dirichlet(np.ones(5)).tolist()))


def halves(seed: int, share: float = 0.3, eligible: Eligible | None = None) -> tuple[Recommender, Recommender]:
    """A version that mixes once, and the same with a split blend."""
    keep, _ = versions(seed, eligible or Eligible(np.arange(ITEMS)))
    exponents = {"neural": 0.7, "popular": 1.3, "own_items": 0.5}
    return keep.remixed(drawn(1), exponents), keep.remixed(drawn(2), exponents, split_with(share, drawn(3)))


def scores(version: Recommender, contexts: Contexts) -> np.ndarray:
    """Of every eligible item, by column, ``(Q, E)``."""
    top = version.top(contexts, len(version.eligible))
    by_column_QE = np.zeros(top.score_QK.shape)
    column_QK = version.eligible.column_of(top.number_QK.ravel()).reshape(top.number_QK.shape)
    np.put_along_axis(by_column_QE, column_QK, top.score_QK, axis=1)
    return by_column_QE


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**16),
    st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=8), min_size=1, max_size=5),
    st.sampled_from([1, 2, 30]),
    st.floats(0.01, 0.9),
)
def test_probabilities_sum_to_one_and_repeats_have_their_share(seed, contexts, step, share):
    eligible = Eligible(np.arange(0, ITEMS, step))
    _, split = halves(seed, share, eligible)
    score_QE, seen = scores(split, asked(contexts)), Seen(asked(contexts), eligible)
    np.testing.assert_allclose(score_QE.sum(axis=1), 1.0, rtol=1e-5)
    mass_Q = np.bincount(seen.row_S, score_QE[seen.row_S, seen.column_S], len(contexts))
    np.testing.assert_allclose(mass_Q, np.where(seen.count_Q > 0, share, 0.0), rtol=1e-4)


@pytest.mark.parametrize("query", [0, 2, 3, 4])
def test_with_the_single_mixtures_own_masses_it_is_the_single_mixture(query):
    single, _ = halves(4)
    one = asked([CONTEXTS[query]])
    ((_, dense),) = single.probabilities(one)
    held = sorted(set(CONTEXTS[query]))
    mass = {name: float(p_QE[0, held].sum()) for name, p_QE in dense.items()}
    votes = {name: float(p_QE.sum()) > 0.5 for name, p_QE in dense.items()}
    total = sum(weight for name, weight in drawn(1).as_mapping().items() if votes[name])
    weight_of = {name: votes[name] * weight / total for name, weight in drawn(1).as_mapping().items()}
    repeats = sum(weight_of[name] * mass[name] for name in NAMES)
    again = Weights(NAMES, tuple(weight_of[name] * mass[name] / repeats for name in NAMES))
    others = Weights(NAMES, tuple(weight_of[name] * (1.0 - mass[name]) / (1.0 - repeats) for name in NAMES))
    split = single.remixed(others, single._exponents, split_with(repeats, again))
    assert 0.02 < repeats < 0.98
    np.testing.assert_allclose(scores(split, one), scores(single, one), rtol=2e-5, atol=1e-9)


def test_probabilities_are_those_of_each_side_and_ranks_of_experts_are_their_own():
    single, split = halves(5)
    contexts = asked(CONTEXTS)
    for item in (1, 9, 12, 25, 33, 58):
        target_T, offset_R = np.full(len(CONTEXTS), item), np.arange(len(CONTEXTS) + 1)
        judged, alone = (version.judge(contexts, target_T, offset_R) for version in (split, single))
        for name in ("neural", "popular", "near", "own_items"):
            np.testing.assert_array_equal(judged.rank[name], alone.rank[name])
        dense = {name: [] for name in NAMES}
        for _, block in single.probabilities(contexts):
            for name, p_QE in block.items():
                dense[name] += p_QE.double().numpy().tolist()
        for query, context in enumerate(CONTEXTS):
            side = sorted(set(context)) if item in context else [i for i in range(ITEMS) if i not in context]
            told = judged.repeated if item in context else judged
            other = judged if item in context else judged.repeated
            for name in NAMES:
                p = np.array(dense[name][query])
                if p[side].sum() > 1e-5:
                    assert told.probability[name][query] == pytest.approx(p[item] / p[side].sum(), rel=1e-4, abs=1e-12)
                assert np.isnan(other.probability[name][query])


def test_slopes_are_derivatives_by_the_logarithm_of_the_exponent():
    _, split = halves(6)
    contexts, target_T, offset_R = asked([[1, 2, 3], [9, 9, 12, 40]]), np.array([2, 9]), np.arange(3)
    told = split.judge(contexts, target_T, offset_R).repeated
    step = 1e-2
    for name in ("neural", "popular", "own_items"):
        moved = []
        for sign in (-1.0, 1.0):
            exponents = {**split._exponents, name: split._exponents[name] * np.exp(sign * step)}
            other = split.remixed(drawn(2), exponents, split._split)
            moved.append(other.judge(contexts, target_T, offset_R).repeated.probability[name])
        np.testing.assert_allclose(told.slope[name], (moved[1] - moved[0]) / (2 * step), rtol=5e-3, atol=2e-5)


def test_answers_judgements_and_explanations_agree_whatever_shares_a_block():
    _, split = halves(7)
    contexts = asked(CONTEXTS * 9)
    top = split.top(contexts, 20, explain=True)
    np.testing.assert_allclose(np.sum(list(top.shares.values()), axis=0), top.score_QK, rtol=1e-5, atol=1e-9)
    every = split.top(contexts, ITEMS).score_QK
    for place in (0, 4, 19):
        judged = split.judge(contexts, top.number_QK[:, place].copy(), np.arange(len(contexts) + 1))
        np.testing.assert_array_equal(judged.rank["blend"], (every >= top.score_QK[:, place : place + 1]).sum(axis=1))
    for query in range(len(CONTEXTS)):
        alone = split.top(asked([CONTEXTS[query]]), 20)
        np.testing.assert_array_equal(alone.number_QK[0], top.number_QK[query])
        np.testing.assert_array_equal(alone.score_QK[0], top.score_QK[query])


def test_where_seen_items_come_last_they_have_no_part():
    keep, last = versions(8, Eligible(np.arange(ITEMS)))
    weights = Weights(keep._names, tuple(keep._weight_K.tolist()))
    split = last.remixed(weights, {}, split_with(0.4, drawn(3)))
    contexts = asked(CONTEXTS)
    for name in ("number_QK", "score_QK"):
        np.testing.assert_array_equal(getattr(split.top(contexts, 9), name), getattr(last.top(contexts, 9), name))


def test_a_target_moves_the_weights_of_its_own_side_alone():
    _, version = halves(9)
    start = split_with(0.3, drawn(3))

    def moved(context: list[int], target: int) -> tuple[Split, OnRepeats]:
        judged = version.judge(asked([context]), np.array([target]), np.arange(2))
        told = judged.repeated.per_query(np.arange(2))
        assert np.isnan(list(judged.probability.values())).all() == (target in context)
        calibration = Calibration.plain(["popular", "near", "own_items"])
        split, after = start.moved(calibration, told, BlendConfig())
        assert (after.exponents == calibration.exponents) == (target not in context)
        return split, told

    repeated, _ = moved([1, 2, 3], 2)
    assert repeated.weights != start.weights
    explored, _ = moved([1, 2, 3], 30)
    np.testing.assert_allclose(explored.weights.w_K, start.weights.w_K, rtol=1e-12)


def test_the_share_of_repeats_is_counted_by_length_of_context():
    assert bucket(np.array([1, 2, 3, 4, 5, 9, 10, 300])).tolist() == [0, 1, 2, 2, 3, 3, 4, 4]
    _, version = halves(10, eligible=Eligible(np.arange(2, ITEMS)))
    # of a basket that repeats once; of an item that cannot be answered; of contexts with nothing that can be
    contexts = asked([[5], [5, 6], [5, 6, 7], [0, 1], [], [0, 3, 4, 5]])
    target_T, offset_R = np.array([5, 6, 30, 1, 8, 9, 5]), np.array([0, 1, 3, 4, 5, 6, 7])
    told = version.judge(contexts, target_T, offset_R).repeated
    assert told.asked_B.tolist() == [1, 2, 1, 0, 0]
    assert told.repeated_B.tolist() == [1, 1, 1, 0, 0]
    split, _ = Split.even(["popular"]).moved(Calibration.plain(["popular"]), _of_popular(told), BlendConfig())
    assert split.share(np.array([0, 1, 2, 3, 5, 50])).tolist() == [0.0, 3 / 21, 3 / 22, 3 / 21, 0.1, 0.1]
    for _ in range(20):
        split = Split(split.weights, *_after_more(split))
    assert split.asked_B[0] <= 22_000.0
    assert split.share(np.array([1]))[0] == pytest.approx(0.5, abs=0.01), "what is counted follows the stream"


def _of_popular(told: OnRepeats) -> OnRepeats:
    names = ("neural", "popular", "uniform")
    p = {name: told.probability[name][:0] for name in names}
    return OnRepeats(p, {name: told.slope[name][:0] for name in names[:-1]}, told.asked_B, told.repeated_B)


def _after_more(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    told = OnRepeats.nothing(("neural", "popular", "uniform"), 0)
    told.asked_B[0], told.repeated_B[0] = 2000, 1000
    after, _ = split.moved(Calibration.plain(["popular"]), told, BlendConfig(calibrate=False))
    return after.asked_B, after.repeated_B


WORDS = (
    "blend.split=repeat",
    "recommend.seen=keep",
    "model.dropout=0.0",
    'experts=[{kind="popular"},{kind="own_items"}]',
)


def stream_of(folder: Path, *words: str) -> Stream:
    stream = Stream(folder, recipe(*WORDS, *words))
    for index in range(4):
        stream.land(events(300 if index == 0 else 80, seed=index, start_ms=index * 3_600_000))
    return stream


def test_commits_hold_both_sides_and_a_restart_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a").advance()
    disturbed = stream_of(tmp_path / "b")
    for cut in range(4):
        disturbed.advance(until=cut)
    newest = Chain(disturbed.store).latest()
    assert newest.state_digest == undisturbed[-1].state_digest
    split = Split.from_state(newest.facts["split"])
    assert split.state() == newest.facts["split"]
    assert split.weights != Weights.even(["popular", "own_items"]) != Weights.from_mapping(newest.facts["weights"])
    assert sum(split.asked_B) > sum(split.repeated_B) > 0
    plain = Stream(tmp_path / "c", recipe(*WORDS[1:]))
    plain.land(events(300, seed=0))
    (manifest,) = plain.advance()
    assert "split" not in manifest.facts
    assert b'"split"' not in bundle_of(manifest).to_json()


def test_two_ranks_agree(tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a").advance_pair()
    disturbed = stream_of(tmp_path / "b")
    disturbed.advance_pair(until=1)
    assert disturbed.advance_pair()[-1].state_digest == undisturbed[-1].state_digest


def test_what_is_served_is_what_was_evaluated(tmp_path: Path) -> None:
    stream, kept = stream_of(tmp_path), []
    stream.advance(change=kept.append)
    learner, manifest = kept[0].learner, Chain(stream.store).latest()
    bundle = Bundle.from_json(bundle_of(manifest).to_json())
    served = load_bundle(stream.store, bundle).recommender
    contexts = asked([[1, 2, 3], [], [4, 4, 5, 6, 7, 1, 2], [9]])
    for name in ("number_QK", "score_QK"):
        np.testing.assert_array_equal(getattr(served.top(contexts, 20), name), getattr(learner.top(contexts, 20), name))
    assert served._split == learner._split is not None
    mixed_once = learner.remixed(kept[0].weights, kept[0].calibration.exponents)
    assert (mixed_once.top(contexts, 20).score_QK != learner.top(contexts, 20).score_QK).any()


def test_beside_live_a_version_keeps_its_weights_and_takes_the_counts_of_today():
    (_, before), (_, live) = halves(1, 0.1), halves(1, 0.5)
    contexts = asked(CONTEXTS)
    np.testing.assert_array_equal(scores(before.beside(live), contexts), scores(live, contexts))
    assert not np.allclose(scores(before, contexts), scores(live, contexts))
