import numpy as np
import pytest
import torch
from serving_kit import WATERMARK_MS, catalogue_of, counted

from headrace.blend.weights import Weights
from headrace.catalogue.eligible import Eligible
from headrace.config.models import SasRecConfig
from headrace.experts.base import Shared, Sparse
from headrace.experts.popular import Popular
from headrace.inputs.contexts import Contexts, contexts_of, offsets, pad
from headrace.models.build import build_model
from headrace.recommend.recommender import MISS, Recommender

K = 20


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Told:
    """An expert that says what it was told to."""

    def __init__(self, name, vote):
        self.name, self._vote = name, vote

    def probabilities(self, contexts, query_QD, eligible):
        return self._vote(contexts, query_QD, eligible)


def popular_over(num_items):
    popular = Popular("popular", None)
    draw = np.random.default_rng(5)
    popular.apply([popular.reduce(counted((num_items * draw.random(5 * num_items) ** 2).astype(int)))], WATERMARK_MS)
    return popular


def recommender(num_items, experts=None, eligible=None, width=64, scores="dot", sharp=40.0, max_events=50):
    model = build_model(SasRecConfig(width=width, scores=scores), max_events, 2 ** int(np.ceil(np.log2(num_items))), 3)
    with torch.no_grad():
        model.table.weight *= sharp
    experts = [popular_over(num_items)] if experts is None else experts
    eligible = Eligible(np.arange(num_items)) if eligible is None else eligible
    weights = Weights.even([expert.name for expert in experts])
    return Recommender(model, np.arange(num_items), eligible, experts, weights, WATERMARK_MS, max_events)


def questions(number, num_items, seed=0, longest=60):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest, number)
    return contexts_of([draw.integers(0, num_items, n).tolist() for n in lengths], WATERMARK_MS, 50)


def reference(version, contexts, model_weight=1 / 3):
    """The blend by the definition, one query at a time, in float64."""
    model, eligible = version.model.double().eval(), version.eligible
    rows = []
    for query in range(len(contexts)):
        inputs = pad(contexts.take(np.array([query])), np.arange(version.num_items))
        zero_P = torch.zeros(1, dtype=torch.int64)
        with torch.no_grad():
            q = model.encoder(inputs, model.table.rows(torch.from_numpy(inputs.slot_BL)), zero_P, zero_P)
            neural = model.logits(q, model.table.weight[torch.from_numpy(eligible.number_E)]).softmax(-1)[0].numpy()
        popular = version.experts[0].probabilities(contexts, None, eligible).p_E
        rows.append((neural + popular + 1 / len(eligible)) / 3)
    model.float()
    return np.array(rows)


@pytest.mark.parametrize("scores", ["dot", "cosine"])
def test_scores_are_the_weighted_sum_of_probabilities(scores):
    eligible = Eligible(np.arange(0, 300, 3))
    version = recommender(300, eligible=eligible, scores=scores)
    contexts = questions(7, 300)
    top = version.top(contexts, K)
    truth = reference(version, contexts)
    best = np.argsort(-truth, axis=1)[:, :K]
    np.testing.assert_allclose(top.score_QK, np.take_along_axis(truth, best, 1), rtol=1e-5)
    column = eligible.column_of(top.number_QK.ravel()).reshape(top.number_QK.shape)
    np.testing.assert_allclose(np.take_along_axis(truth, column, 1), top.score_QK, rtol=1e-5)
    assert not top.fallback_Q.any()


def test_ranks_and_probabilities_by_the_definition():
    version = recommender(200, eligible=Eligible(np.arange(10, 200)))
    contexts = questions(70, 200)
    draw = np.random.default_rng(2)
    offset_R = offsets(draw.integers(1, 5, 70))
    target_T = draw.integers(0, 200, offset_R[-1])
    judged = version.judge(contexts, target_T, offset_R)
    truth = reference(version, contexts)
    popular = version.experts[0].probabilities(contexts, None, version.eligible).p_E
    for query in range(70):
        for at in range(offset_R[query], offset_R[query + 1]):
            column = target_T[at] - 10
            if column < 0:
                assert judged.rank["blend"][at] == judged.rank["neural"][at] == judged.rank["popular"][at] == MISS
                assert all(np.isnan(p_T[at]) for p_T in judged.probability.values())
                continue
            near = np.isclose(truth[query], truth[query, column], rtol=1e-6).sum()
            assert abs(judged.rank["blend"][at] - (truth[query] >= truth[query, column]).sum()) < near
            assert judged.rank["popular"][at] == (popular >= popular[column]).sum()
            voices = [judged.probability[name][at] for name in ("neural", "popular", "uniform")]
            assert np.mean(voices) == pytest.approx(truth[query, column], rel=1e-5)
            assert voices[1] == popular[column]


def test_ties_count_against_us():
    version = recommender(64, experts=[], sharp=0.0)
    judged = version.judge(questions(3, 64), np.array([0, 5, 63]), np.arange(4))
    assert judged.rank["blend"].tolist() == judged.rank["neural"].tolist() == [64, 64, 64]


def test_top_and_judge_agree():
    version = recommender(1000)
    contexts = questions(50, 1000)
    top = version.top(contexts, K)
    for place in (0, 7, K - 1):
        rank_T = version.judge(contexts, top.number_QK[:, place], np.arange(51)).rank["blend"]
        assert rank_T.tolist() == [place + 1] * 50


@pytest.mark.parametrize(("threads", "number"), [(1, 200), (2, 20)])
def test_a_query_gets_the_same_answer_in_every_batch(threads, number):
    torch.set_num_threads(threads)
    version = recommender(10_000)
    contexts = questions(number, 10_000)
    whole = version.top(contexts, K)
    again = version.freeze().top(contexts, K)
    assert whole.score_QK.tobytes() == again.score_QK.tobytes()
    assert whole.number_QK.tobytes() == again.number_QK.tobytes()
    for size in (1, 3, 16):
        pieces = [version.top(contexts.take(np.arange(i, min(i + size, number))), K) for i in range(0, number, size)]
        score_QK = np.concatenate([piece.score_QK for piece in pieces])
        np.testing.assert_allclose(score_QK, whole.score_QK, rtol=1e-6)
        number_QK = np.concatenate([piece.number_QK for piece in pieces])
        other_QK = number_QK != whole.number_QK  # only where scores tie
        np.testing.assert_allclose(score_QK[other_QK], whole.score_QK[other_QK], rtol=1e-6)
    order = np.random.default_rng(0).permutation(number)
    np.testing.assert_allclose(version.top(contexts.take(order), K).score_QK, whole.score_QK[order], rtol=1e-6)


def test_excluded_items_are_not_answered_and_scores_stay():
    version = recommender(100)
    contexts = questions(40, 100)
    free = version.top(contexts, K)
    without = version.top(contexts, K, [free.number_QK[query, :3] for query in range(40)])
    np.testing.assert_array_equal(without.number_QK[:, : K - 3], free.number_QK[:, 3:])
    np.testing.assert_array_equal(without.score_QK[:, : K - 3], free.score_QK[:, 3:])


def test_fewer_items_than_asked_for():
    version = recommender(8, eligible=Eligible(np.array([1, 4, 6])))
    top = version.top(questions(2, 8), 5, [np.array([4, 7]), np.array([-1])])
    assert (top.number_QK[0] >= 0).sum() == 2
    assert (top.number_QK[1] >= 0).sum() == 3
    assert top.number_QK[0, 2:].tolist() == [-1, -1, -1]
    assert top.score_QK[0, 2:].tolist() == [0, 0, 0]
    nothing = recommender(8, eligible=Eligible(np.zeros(0, dtype=np.int64)))
    assert (nothing.top(questions(2, 8), 5).number_QK == -1).all()
    assert (nothing.judge(questions(2, 8), np.array([1, 2]), np.arange(3)).rank["blend"] == MISS).all()


def test_an_unknown_context_gets_what_is_popular():
    version = recommender(50)
    contexts = contexts_of([[], [50, 7000], [3, 60]], WATERMARK_MS, 10)
    top = version.top(contexts, 50)
    assert top.fallback_Q.tolist() == [True, True, False]
    popular = version.experts[0].probabilities(contexts, None, version.eligible).p_E
    expected = np.sort((popular + 1 / 50) / 2)[::-1]
    np.testing.assert_allclose(top.score_QK[:2], [expected, expected], rtol=1e-6)
    known = version.top(contexts_of([[3]], WATERMARK_MS, 10), 50)
    np.testing.assert_array_equal(top.score_QK[2], known.score_QK[0])
    judged = version.judge(contexts, np.array([1, 1, 1]), np.arange(4))
    assert np.isnan(judged.probability["neural"]).tolist() == [True, True, False]
    assert (judged.rank["neural"] == MISS).tolist() == [True, True, False]
    assert judged.rank["blend"][0] <= 50


def test_sparse_votes_abstentions_and_faults():
    def sparse(contexts, query_QD, eligible):
        assert query_QD.shape == (len(contexts), 64)
        rows = [([0, 5], [0.25, 0.75]), ([], []), ([3], [np.nan])]
        return Sparse(
            offsets(np.array([len(row[0]) for row in rows])),
            np.concatenate([row[0] for row in rows]).astype(np.int64),
            np.concatenate([row[1] for row in rows]).astype(np.float32),
        )

    def broken(contexts, query_QD, eligible):
        return Shared(np.full(len(eligible), np.nan, dtype=np.float32))

    experts = [Told("near", sparse), Told("broken", broken), Told("silent", lambda *_: None)]
    version = recommender(40, experts=experts)
    contexts = questions(3, 40)
    judged = version.judge(contexts, np.array([5, 5, 5]), np.arange(4))
    np.testing.assert_array_equal(judged.probability["near"], [0.75, np.nan, np.nan])
    assert judged.rank["near"].tolist() == [1, MISS, MISS]
    assert np.isnan(judged.probability["broken"]).all()
    assert np.isnan(judged.probability["silent"]).all()
    assert version.faults["broken"] == 3
    assert version.faults["near"] == 1
    top = version.top(contexts, 40)
    np.testing.assert_allclose(top.score_QK.sum(axis=1), 1.0, rtol=1e-5)
    score = dict(zip(top.number_QK[0].tolist(), top.score_QK[0].tolist(), strict=True))
    assert score[5] == pytest.approx((judged.probability["neural"][0] + 0.75 + 1 / 40) / 3, rel=1e-5)
    target = version.judge(contexts, np.array([9, 0, 0]), np.arange(4))
    assert target.rank["near"].tolist() == [40, MISS, MISS]


def test_an_expert_that_dies_is_left_out_counted_and_no_error(caplog, monkeypatch):
    monkeypatch.setattr("headrace.recommend.votes._TOLD", set())

    def dies(contexts, query_QD, eligible):
        raise ZeroDivisionError("by hand")

    version, alone = recommender(40, [Told("dying", dies), popular_over(40)]), recommender(40)
    contexts = questions(3, 40)
    judged = version.judge(contexts, np.array([5, 6, 7]), np.arange(4))
    assert np.isnan(judged.probability["dying"]).all()
    assert version.faults["dying"] == 3
    np.testing.assert_allclose(version.top(contexts, 9).score_QK, alone.top(contexts, 9).score_QK, rtol=1e-6)
    assert [record.message for record in caplog.records] == [
        "expert dying failed; it is left out, and this is said once"
    ]


def test_a_model_that_is_not_finite_loses_its_vote():
    version = recommender(30)
    with torch.no_grad():
        version.model.table.weight[3] = float("nan")
    judged = version.judge(questions(4, 30), np.array([1, 2, 4, 5]), np.arange(5))
    assert np.isnan(judged.probability["neural"]).all()
    assert version.faults["neural"] == 4
    assert np.isfinite(version.top(questions(4, 30), 5).score_QK).all()


def test_the_newest_events_count_and_the_mode_of_the_model_stays():
    version = recommender(100, max_events=6)
    long = contexts_of([list(range(30))], WATERMARK_MS, 50)
    version.model.train()
    answers = [
        version.top(contexts, K).score_QK for contexts in (long, contexts_of([list(range(24, 30))], WATERMARK_MS, 50))
    ]
    np.testing.assert_array_equal(*answers)
    assert version.model.training


def test_no_queries():
    version = recommender(10)
    empty = Contexts(
        *(np.zeros(0, dtype=np.int64),) * 3, np.zeros(1, dtype=np.int64), *(np.zeros(0, dtype=np.int64),) * 3
    )
    assert version.top(empty, 5).number_QK.shape == (0, 5)
    assert len(version.judge(empty, np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)).rank["blend"]) == 0


def test_weights_and_experts_must_belong_together():
    with pytest.raises(ValueError, match="weights for"):
        Recommender(
            build_model(SasRecConfig(width=8), 5, 8, 0),
            np.arange(3),
            Eligible(np.arange(3)),
            [],
            Weights.even(["popular"]),
            0,
            5,
        )
    assert len(catalogue_of(["a", "b"])) == 2


def test_a_version_beside_another_has_its_own_model_and_the_others_counters():
    old, new = recommender(100), recommender(120, experts=[popular_over(120)], sharp=10.0)
    beside = old.beside(new)
    contexts = questions(40, 120)
    target_T, offset_R = np.arange(40) * 3, np.arange(41)
    alone, own, theirs = (version.judge(contexts, target_T, offset_R) for version in (beside, old, new))
    np.testing.assert_array_equal(alone.probability["popular"], theirs.probability["popular"])
    np.testing.assert_array_equal(alone.probability["uniform"], np.full(40, 1 / 120))
    known_T = target_T < 100
    np.testing.assert_allclose(alone.probability["neural"][known_T], own.probability["neural"][known_T], rtol=1e-6)
    assert (alone.probability["neural"][~known_T] < 1e-30).all()
    assert (alone.rank["neural"][~known_T] == 120).all()


def test_counters_that_versions_share_are_asked_once():
    asked = []

    def said(contexts, query_QD, eligible):
        asked.append(len(contexts))
        return Shared(np.full(len(eligible), 1 / len(eligible), dtype=np.float32))

    old, new = (recommender(60, experts=[Told("told", said)]) for _ in range(2))
    contexts, target_T, offset_R = questions(40, 60), np.arange(40), np.arange(41)
    heard = {}
    first = new.judge(contexts, target_T, offset_R, heard)
    assert asked == [32, 8]
    beside = old.beside(new)
    brief = beside.judge(contexts, target_T, offset_R, heard, ranks_only=True)
    assert asked == [32, 8]
    assert set(brief.rank) == {"blend", "neural"}
    whole = beside.judge(contexts, target_T, offset_R)
    for name, rank_T in brief.rank.items():
        np.testing.assert_array_equal(rank_T, whole.rank[name])
    assert first.rank["blend"].shape == (40,)
