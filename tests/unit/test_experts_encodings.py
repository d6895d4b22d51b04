"""Nearest encodings by hand, the bounded memory and its rotation, and the loop that encodes it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loop_kit import Stream, events, lawful, poisoned_stream, recipe

from headrace.bundles.bundle import bundle_of, load_bundle
from headrace.catalogue.eligible import Eligible
from headrace.commit.chain import Chain
from headrace.config.answers import EncodingsConfig
from headrace.experts.base import Counted
from headrace.experts.encodings import BLOCK, Encodings, _nearest
from headrace.inputs.contexts import Contexts, contexts_of
from headrace.recommend.encode import answering, encode
from headrace.train.state import LearnerState

ALL = Eligible(np.arange(100))


def rows(sequences: list[list[int]], targets: list[int], ts: int = 0, session: int = 0) -> Counted:
    """A row for each: its context and what came next; sessions of their own unless one is given."""
    contexts = contexts_of(sequences, ts, 10)
    session_N = np.arange(1, len(targets) + 1).astype(np.uint64) * np.uint64(1000) + np.uint64(ts)
    session_N = np.full(len(targets), session, dtype=np.uint64) if session else session_N
    as_of_N = ts + np.arange(len(targets))
    contexts = replace(contexts, as_of_Q=as_of_N, session_Q=session_N)
    ones = np.ones(len(targets), dtype=np.float32)
    return Counted(np.array(targets), as_of_N, session_N, session_N, ones, contexts)


def directions(contexts: Contexts) -> np.ndarray:
    """The angle of the newest item in degrees."""
    angle_Q = np.deg2rad(contexts.item_T[contexts.offset_R[1:] - 1].astype(np.float64))
    return np.stack([np.cos(angle_Q), np.sin(angle_Q)], axis=1).astype(np.float32) * 3.0


def count(expert: Encodings, *parts: Counted) -> None:
    expert.apply([expert.reduce(part) for part in parts], 0)
    expert.encoded(directions(expert.to_encode()))


def ask(expert: Encodings, degrees: list[float], session: int = 0) -> list[dict[int, float]]:
    angle_Q = np.deg2rad(np.array(degrees))
    query_QD = np.stack([np.cos(angle_Q), np.sin(angle_Q)], axis=1).astype(np.float32)
    said = expert.probabilities(contexts_of([[1]] * len(degrees), 0, 10, session), query_QD, ALL)
    assert said is not None
    spans = zip(said.offset_R[:-1].tolist(), said.offset_R[1:].tolist(), strict=True)
    return [dict(zip(said.column_T[a:b].tolist(), said.p_T[a:b].tolist(), strict=True)) for a, b in spans]


def test_the_nearest_vote_by_cosine_over_temperature():
    expert = Encodings(EncodingsConfig(neighbours=3, temperature=0.5))
    count(expert, rows([[0], [30], [60], [90]], [7, 8, 7, 9]))
    (told,) = ask(expert, [20.0])
    weight = [np.exp(np.cos(np.deg2rad(away)) / 0.5) for away in (20, 10, 40)]  # 90 is too far away
    assert told.keys() == {7, 8}
    assert told[7] == pytest.approx((weight[0] + weight[2]) / sum(weight), abs=2e-3)  # directions are float16


def test_who_asks_is_no_neighbour_and_who_has_no_direction_abstains():
    expert = Encodings(EncodingsConfig())
    count(expert, rows([[0]], [7], session=5), rows([[10]], [8], session=6))
    assert [set(told) for told in ask(expert, [0.0], session=5)] == [{8}]
    assert [set(told) for told in ask(expert, [0.0], session=4)] == [{7, 8}]
    said = expert.probabilities(contexts_of([[1], [1]], 0, 10), np.zeros((2, 2), dtype=np.float32), ALL)
    assert said is not None
    assert said.offset_R.tolist() == [0, 0, 0]
    assert expert.probabilities(contexts_of([[1]], 0, 10), None, ALL) is None


def test_the_newest_rows_stay_and_the_stalest_are_encoded_again():
    expert = Encodings(EncodingsConfig(max_rows=6, reencode=2))
    asked = []
    for cut in range(4):
        expert.apply([expert.reduce(rows([[10 * cut], [10 * cut + 1]], [cut, cut], ts=100 * cut))], 0)
        asked.append(expert.to_encode().item_T.tolist())
        expert.encoded(directions(expert.to_encode()))
    assert asked == [[0, 1], [0, 1, 10, 11], [0, 1, 20, 21], [10, 11, 30, 31]]  # cut 0 has left in the last
    assert expert.state()["next"].tolist() == [1, 1, 2, 2, 3, 3]
    expert.apply([expert.reduce(rows([], []))], 0)
    assert not len(expert.to_encode())
    expert.outdate()
    expert.apply([expert.reduce(rows([], []))], 0)
    assert len(expert.to_encode()) == 6


def test_many_rows_of_one_rank_stay_within_bounds():
    expert = Encodings(EncodingsConfig(max_rows=5))
    count(expert, rows([[n] for n in range(9)], list(range(9))))
    assert expert.state()["next"].tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("most", [1, 7, 40])
def test_the_quick_way_to_the_nearest_is_exact(most):
    draw = np.random.default_rng(most)
    cosine_M = np.round(draw.random(64 * 50 + 13), 2).astype(np.float32)  # with many ties
    order = np.lexsort((-np.arange(len(cosine_M)), -cosine_M))  # of equal ones the later first
    assert _nearest(cosine_M, most).tolist() == sorted(order[:most].tolist())


def test_a_query_is_told_the_same_whatever_asks_beside_it():
    draw = np.random.default_rng(1)
    expert = Encodings(EncodingsConfig(max_rows=5000))
    expert.apply([expert.reduce(rows([[1]] * 3000, draw.integers(100, size=3000).tolist()))], 0)
    expert.encoded(draw.normal(size=(3000, 150)).astype(np.float32))
    query_QD = draw.normal(size=(2 * BLOCK + 5, 150)).astype(np.float32)
    contexts = contexts_of([[1]] * len(query_QD), 0, 10)
    together = expert.probabilities(contexts, query_QD, ALL)
    assert together is not None
    for query in (0, 7, BLOCK, 2 * BLOCK + 4):
        alone = expert.probabilities(contexts.take(np.array([query])), query_QD[query : query + 1], ALL)
        assert alone is not None
        span = slice(together.offset_R[query], together.offset_R[query + 1])
        assert np.array_equal(alone.p_T, together.p_T[span])
        assert np.array_equal(alone.column_T, together.column_T[span])


EXPERTS = 'experts=[{kind="encodings",max_rows=150,neighbours=20,reencode=30},{kind="popular"}]'


def stream_of(folder: Path, shards: int = 4) -> Stream:
    stream = Stream(folder, recipe(EXPERTS, "model.dropout=0.0"))
    for index in range(shards):
        stream.land(events(300 if index == 0 else 80, seed=index, start_ms=index * 3_600_000))
    return stream


def test_the_loop_encodes_what_is_kept_and_bundles_hold_it(tmp_path: Path) -> None:
    stream = stream_of(tmp_path)
    kept = SimpleNamespace(state=None)

    def keep(state: LearnerState) -> None:
        kept.state = state

    manifest = stream.advance(change=keep)[-1]
    expert, state = kept.state.experts[0], kept.state
    newest = expert._encoded_M == expert._encoded_M.max()
    is_new = expert._rows.contexts.as_of_Q >= 3 * 3_600_000
    assert newest[is_new].all()
    assert newest[~is_new].sum() == 30  # those whose turn it was
    with answering(state.model):
        vector = encode(state.model, expert._rows.contexts.take(np.flatnonzero(newest)), state.catalogue.slot_I, 10)
    vector_ND = vector.numpy() / np.linalg.norm(vector.numpy(), axis=1, keepdims=True)
    np.testing.assert_allclose(expert._direction_MD[newest], vector_ND, atol=1e-3)
    assert manifest.facts["metrics"]["experts"]["encodings"]["recall@20"] > 0.0
    assert manifest.facts["metrics"]["faults"] == {}
    served = load_bundle(stream.store, bundle_of(manifest)).recommender
    asked = contexts_of([[1, 2], [3]], 10**9, 10)
    ours, theirs = state.recommender().top(asked, 10, explain=True), served.top(asked, 10, explain=True)
    assert np.array_equal(ours.number_QK, theirs.number_QK)
    assert np.array_equal(ours.score_QK, theirs.score_QK)
    assert theirs.shares["encodings"].any()


def test_stopped_or_not_on_one_rank_or_two_the_state_is_the_same(tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a").advance_pair()
    disturbed = stream_of(tmp_path / "b")
    disturbed.advance_pair(until=1)
    assert disturbed.advance_pair()[-1].state_digest == undisturbed[-1].state_digest
    assert lawful(undisturbed[-1])


def test_after_a_roll_back_all_is_encoded_by_the_model_that_answers(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    stream = poisoned_stream(tmp_path, EXPERTS.replace("150", "1200"))
    seen: list[int] = []

    def listen(state: LearnerState) -> None:
        expert = state.experts[0]
        real = expert.encoded
        expert.encoded = lambda vector_ND: (seen.append(len(vector_ND)), real(vector_ND))[1]

    manifests = []
    while not manifests or manifests[-1].facts["review"]["rolled_back_to"] is None:
        latest = Chain(stream.store).latest()
        manifests += stream.advance(until=0 if latest is None else latest.cut + 1, change=listen)
    assert seen[-1] == 1200
    assert seen[-2] < 300
