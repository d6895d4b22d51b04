"""Versions with every kind of vote, made without training: a model, a shared counter, and two sparse ones."""

import numpy as np
import torch
from serving_kit import WATERMARK_MS, counted

from headrace.blend.weights import Weights
from headrace.catalogue.eligible import Eligible
from headrace.config.answers import OwnItemsConfig, SimilarSessionsConfig
from headrace.config.models import SasRecConfig
from headrace.experts.build import build_experts
from headrace.experts.popular import Popular
from headrace.models.build import build_model
from headrace.recommend.recommender import Recommender

ITEMS = 60
NEIGHBOURS = SimilarSessionsConfig(name="near")


def versions(seed: int, eligible: Eligible) -> tuple[Recommender, Recommender]:
    """The same model, experts and weights, once keeping seen items and once putting them last."""
    draw = np.random.default_rng(seed)
    model = build_model(SasRecConfig(width=16, blocks=1), 10, 64, seed)
    with torch.no_grad():
        model.table.weight *= 30.0
    popular = Popular("popular", None)
    popular.apply([popular.reduce(counted(draw.integers(0, ITEMS, 200)))], WATERMARK_MS)
    near, own = build_experts([NEIGHBOURS, OwnItemsConfig()])
    rows = counted(draw.integers(0, ITEMS, 90))
    rows.session_N[:] = np.repeat(np.arange(1, 31), 3)
    near.apply([near.reduce(rows)], WATERMARK_MS)
    experts = [popular, near, own]
    weights = Weights.from_mapping(
        dict(zip(("neural", "popular", "near", "own_items", "uniform"), draw.dirichlet(np.ones(5)), strict=True))
    )
    keep, last = (
        Recommender(model, np.arange(ITEMS), eligible, experts, weights, WATERMARK_MS, 10, seen_last)
        for seen_last in (False, True)
    )
    return keep, last
