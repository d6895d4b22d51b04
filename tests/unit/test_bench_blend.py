"""The study of the blend: mixtures of kept probabilities are what the recommender itself would have answered."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loop_kit import SMALL, events, recipe

from headrace.bench import blend
from headrace.blend.weights import Weights, update
from headrace.feed.landing import Landing, shard_name
from headrace.train.offline import queries_of, replay

EXPERTS = ("neural", "popular", "own_items", "uniform")


def log_of(folder: Path) -> Path:
    landing = Landing(str(folder))
    for index in range(4):
        landing.land(
            shard_name(index), events(300 if index == 0 else 120, seed=index, start_ms=index * 3_600_000, num_items=200)
        )
    return folder


OVERRIDES = (
    'experts=[{kind="popular"},{kind="own_items"}]',
    'feed.replay={slice_s="file"}',
    "evaluation.eval_share=0.0",
    "recommend.seen=last",
)


def test_ranks_of_candidates_are_the_recommenders_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(*OVERRIDES, f"feed.path={log_of(tmp_path)}")
    monkeypatch.setattr(blend, "_BEST", 25)  # fewer than there are items
    kept, ranks = blend._Kept(500), []

    def change(part, state):
        if state.learner is not None:
            asked = blend._single(queries_of(part, state))
            judged = state.learner.judge(asked.contexts, asked.target_T, asked.offset_R)
            rank_P = judged.rank["blend"][np.isfinite(judged.probability["uniform"])]
            ranks.extend((rank, state.weights.w_K) for rank in rank_P.tolist())
        return kept.add(part, state)

    assert len(list(replay(made, torch.device("cpu"), 3, change))) == 4
    assert kept.names == EXPERTS
    assert len(ranks) == len(kept.ranked) > 100
    got = blend._ranks(kept.p_CK, np.array([w_K for _, w_K in ranks]))
    active = [np.isfinite(p).all() for p in np.concatenate(kept.p_QK)]
    pairs = [(mine, truth) for mine, (truth, _), on in zip(got.tolist(), ranks, active, strict=True) if on]
    assert all(mine == truth for mine, truth in pairs if truth <= 20)


def test_a_study_of_a_small_log(tmp_path: Path) -> None:
    recipe_file = tmp_path / "recipe.toml"
    recipe_file.write_text("seed = 1")
    made = blend.run(data=log_of(tmp_path / "log"), recipe=recipe_file, overrides=[*SMALL, *OVERRIDES])
    assert made["queries"] > 100
    losses = {label: row["loss"] for label, row in made["mixtures"].items() if row["loss"] is not None}
    assert losses["best fixed, by log loss"] <= min(loss for label, loss in losses.items() if "alone" in label)
    rank = {label: row["mrr@20"] for label, row in made["mixtures"].items()}
    assert rank["best fixed, by MRR@20"] >= rank["best fixed, by log loss"]
    assert made["loss_above_best_fixed"] == losses["Soft-Bayes, query by query"] - losses["best fixed, by log loss"]


def test_the_best_fixed_weights_cannot_be_bettered() -> None:
    draw = np.random.default_rng(4)
    p_QK = np.exp(-3 * draw.random((400, 3)) * draw.random(3))
    p_QK[draw.random(400) < 0.2, 1] = np.nan
    best_K = blend._best_by_loss(p_QK)
    assert best_K.sum() == pytest.approx(1.0)
    least = blend._loss(np.broadcast_to(best_K, p_QK.shape), p_QK)
    for _ in range(200):
        other_K = 0.95 * best_K + 0.05 * draw.dirichlet(np.ones(3))
        assert blend._loss(np.broadcast_to(other_K, p_QK.shape), p_QK) >= least - 1e-6


def test_weights_move_by_query_by_stride_and_by_cut() -> None:
    draw = np.random.default_rng(5)
    p_QK, cut_Q = draw.random((1300, 3)), np.repeat([1, 2], [700, 600])
    start = Weights(("neural", "popular", "uniform"), (0.5, 0.3, 0.2))
    settings = recipe().blend
    moving_QK, fixed_QK, strided_QK = blend._moved(p_QK, cut_Q, start, settings)
    named = dict(zip(start.names, p_QK[:700].T, strict=True))
    after = update(start, named, settings.eta, settings.share).weights
    np.testing.assert_allclose(moving_QK[700], after.w_K, rtol=1e-9)
    assert (fixed_QK[:700] == moving_QK[0]).all()
    assert (fixed_QK[700:] == moving_QK[700]).all()
    assert (strided_QK[500:700] == moving_QK[500]).all()
    assert (strided_QK[1200:] == moving_QK[1200]).all()
