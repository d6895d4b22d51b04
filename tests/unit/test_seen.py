"""``recommend.seen``: whose share decides, and what "last" does to every expert, to the blend and to its weights."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_kit import Stream, events, recipe
from serving_kit import WATERMARK_MS
from voting_kit import ITEMS, versions

from headrace.blend.weights import Weights, update
from headrace.catalogue.eligible import Eligible
from headrace.config.answers import RecommendConfig
from headrace.inputs.contexts import contexts_of
from headrace.recommend.recommender import Recommender
from headrace.recommend.seen import Repeats, Seen


def probabilities(version: Recommender, contexts: list[list[int]], item: int) -> dict[str, np.ndarray]:
    asked = contexts_of(contexts, WATERMARK_MS, 10)
    return dict(version.judge(asked, np.full(len(contexts), item), np.arange(len(contexts) + 1)).probability)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**16),
    st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=8), min_size=1, max_size=5),
    st.sampled_from([1, 2]),
)
def test_every_expert_is_renormalised_over_the_unseen_items(seed, contexts, step):
    eligible = Eligible(np.arange(0, ITEMS, step))
    keep, last = versions(seed, eligible)
    asked = contexts_of(contexts, WATERMARK_MS, 10)
    before = {i: probabilities(keep, contexts, i) for i in eligible.number_E.tolist()}
    after = {i: probabilities(last, contexts, i) for i in eligible.number_E.tolist()}
    ranks = {i: last.judge(asked, np.full(len(asked), i), np.arange(len(asked) + 1)).rank for i in after}
    for query, context in enumerate(contexts):
        unseen = [i for i in after if i not in context]
        for name in before[0]:
            p = np.array([before[i][name][query] for i in unseen])
            if np.isnan(p).all() or p.sum() < 1e-6:
                assert all(np.isnan(after[i][name][query]) for i in unseen)
                continue
            np.testing.assert_allclose([after[i][name][query] for i in unseen], p / p.sum(), rtol=2e-5, atol=1e-9)
        for item in set(context) & set(after):
            assert all(np.isnan(p_Q[query]) for p_Q in after[item].values())
            assert ranks[item]["blend"][query] == len(eligible)
            assert {rank_Q[query] for rank_Q in ranks[item].values()} <= {len(eligible), np.iinfo(np.int64).max}
    top = last.top(asked, len(eligible))
    for query, context in enumerate(contexts):
        held = set(context) & set(after)
        assert set(top.number_QK[query, len(eligible) - len(held) :].tolist()) == held
        assert (top.score_QK[query, len(eligible) - len(held) :] == 0.0).all()
        mixed = [
            sum(w * after[i][n][query] for n, w in weights_of(last, after, i, query))
            for i in top.number_QK[query]
            if i not in held
        ]
        np.testing.assert_allclose(top.score_QK[query, : len(mixed)], mixed, rtol=2e-5)


def weights_of(version, after, item, query):
    """Names and weights, renormalised over those that vote on this query."""
    voting = [n for n, p in after[item].items() if not np.isnan(p[query])]
    weight_of = dict(zip(version._names, version._weight_K, strict=True))
    total = sum(weight_of[n] for n in voting)
    return [(n, weight_of[n] / total) for n in voting]


def test_ranks_of_the_unseen_are_those_among_the_unseen():
    keep, last = versions(3, Eligible(np.arange(ITEMS)))
    contexts = [[1, 2, 3, 9], [7], [20, 21, 20]]
    asked = contexts_of(contexts, WATERMARK_MS, 10)
    for item in (0, 5, 30):
        ranks = [v.judge(asked, np.full(3, item), np.arange(4)).rank for v in (keep, last)]
        for query, context in enumerate(contexts):
            for name in ("popular", "near", "neural"):
                p_I = np.array([probabilities(keep, contexts, i)[name][query] for i in range(ITEMS)])
                if p_I[item] > 0:
                    above = [i for i in range(ITEMS) if i not in context and p_I[i] >= p_I[item]]
                    assert ranks[1][name][query] == len(above)


def test_a_seen_target_moves_no_weight():
    _, last = versions(1, Eligible(np.arange(ITEMS)))
    p = probabilities(last, [[4, 5], [4]], 4)
    start = Weights.from_mapping(dict(zip(last._names, last._weight_K, strict=True)))
    moved = update(start, p, 0.1, 0.001)
    assert moved.num_updates == 0
    assert moved.weights == start


def test_a_context_that_holds_everything_is_answered_as_if_nothing_were_seen():
    keep, last = versions(2, Eligible(np.array([3, 4])))
    contexts = contexts_of([[3, 4], [3]], WATERMARK_MS, 10)
    np.testing.assert_array_equal(last.top(contexts, 2).score_QK[0], keep.top(contexts, 2).score_QK[0])
    assert last.top(contexts, 2).number_QK[1].tolist() == [4, 3]
    assert Seen(contexts, last.eligible).count_Q.tolist() == [0, 1]


@pytest.mark.parametrize("seen_last", [False, True])
def test_shares_sum_to_the_scores_and_are_the_experts_own(seen_last):
    version = versions(5, Eligible(np.arange(ITEMS)))[seen_last]
    contexts = [[1, 2, 3], [], [9, 9, 12, 40]]
    top = version.top(contexts_of(contexts, WATERMARK_MS, 10), 12, explain=True)
    assert list(top.shares) == list(version._names)
    np.testing.assert_allclose(np.sum(list(top.shares.values()), axis=0), top.score_QK, rtol=1e-5, atol=1e-9)
    for query in range(3):
        for place, item in enumerate(top.number_QK[query].tolist()):
            p = probabilities(version, contexts, item)
            told = dict(weights_of(version, {item: p}, item, query))
            for name, share_QK in top.shares.items():
                expected = 0.0 if np.isnan(p[name][query]) else told[name] * p[name][query]
                assert share_QK[query, place] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert not version.top(contexts_of(contexts, WATERMARK_MS, 10), 12).shares


def test_auto_follows_the_stream():
    auto = RecommendConfig()
    assert not Repeats().seen_last(auto)
    news = Repeats().add(1000, 5)
    assert news.seen_last(auto)
    assert not news.seen_last(RecommendConfig(seen="keep"))
    assert not news.add(1000, 300).seen_last(auto)
    assert Repeats().add(10, 10).seen_last(RecommendConfig(seen="last"))
    turned = Repeats().add(10**6, 300_000)
    for _ in range(40):
        turned = turned.add(20_000, 0)
    assert turned.seen_last(auto)


@pytest.mark.parametrize(("again", "expected"), [(0.0, True), (0.5, False)])
def test_the_loop_counts_repeats_and_commits_what_follows(tmp_path: Path, again: float, expected: bool) -> None:
    stream = Stream(tmp_path, recipe())
    for index in range(3):
        stream.land(without_repeats(events(200, seed=index, start_ms=index * 3_600_000), again, index))
    manifests = stream.advance()
    asked, repeated = manifests[-1].facts["repeats"]
    assert asked > 100
    assert (repeated / asked == 0.0) if again == 0.0 else (repeated / asked > 0.2)
    assert [m.facts["seen_last"] for m in manifests] == [expected] * 3


def without_repeats(table, again, seed):
    """The same events, where an item comes again in its session only with this chance, as the newest one."""
    draw = np.random.default_rng(seed)
    rows, seen, fresh = table.to_pylist(), {}, 10_000 * (seed + 1)
    for row in sorted(rows, key=lambda row: row["ts"]):
        held = seen.setdefault(row["session_id"], [])
        if held and draw.random() < again:
            row["item_id"] = held[-1]
        elif row["item_id"] in held:
            fresh += 1
            row["item_id"] = type(row["item_id"])(fresh)
        held.append(row["item_id"])
    return type(table).from_pylist(rows, schema=table.schema)
