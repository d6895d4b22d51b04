"""A small log of periods for studies of continual learning: walks around a ring, which drifts from period to period."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from loop_kit import SMALL

from headrace.feed.landing import Landing, shard_name

WORDS = (
    *SMALL,
    'feed.replay={slice_s="file"}',
    "evaluation.eval_share=0.0",
    "inputs.max_events=4",
    "train.learning_rate=0.01",
    "train.warmup_epochs=3",
    "train.epochs=2",
    "model.dropout=0.1",
    'experts=[{kind="popular"},{kind="own_items"}]',
)
"""Overrides under which a period trains in a fraction of a second."""


def walks(period: int, num_events: int = 300, num_items: int = 40) -> pa.Table:
    """Sessions of five clicks, item after item; each period has items of its own beside those of the one before."""
    draw = np.random.default_rng(period)
    session = np.arange(num_events) // 5
    start = 20 * period + draw.integers(num_items, size=session[-1] + 1)
    return pa.table(
        {
            "item_id": start[session] + np.arange(num_events) % 5,
            "ts": 10_000_000 * period + 1000 * np.arange(num_events),
            "session_id": session + 7 * (period > 0),  # the same names again: the protocol tells them apart
            "user_id": session,
            "event": ["click"] * num_events,
        }
    )


def log_of(folder: Path, periods: int) -> Path:
    landing = Landing(str(folder))
    for period in range(periods):
        landing.land(shard_name(period), walks(period))
    return folder


def recipe_file(folder: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text("seed = 1")
    return path
