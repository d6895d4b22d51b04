"""What every recipe promises: it is read, comes back from JSON, and learns a small log in its own shape, lawfully."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from loop_kit import lawful

from headrace.config.load import dump_recipe, load_recipe, read_resolved
from headrace.config.recipe import Recipe
from headrace.feed.landing import Landing, shard_name
from headrace.train.offline import replay

RECIPES = sorted((Path(__file__).resolve().parents[2] / "jobs" / "recipes").glob("*.toml"))
SMALL = ("model.width=8", "model.blocks=1", "model.heads=1", "catalogue.initial_capacity=64", "train.batch=64")
HOUR_MS = 3_600_000


def log_in_the_shape_of(recipe: Recipe, folder: Path) -> None:
    """Three files of sessions (or baskets), with every column that the recipe names."""
    columns, landing = recipe.columns, Landing(str(folder))
    is_set = recipe.inputs.sessions == "set"
    kinds = [name for name in recipe.objective.levels if name not in columns.context] or list(columns.target_kinds)
    for index in range(3):
        draw = np.random.default_rng(index)
        session = np.repeat(np.arange(60), 5)
        begin_ms = 24 * HOUR_MS + index * 2 * HOUR_MS + 60_000 * (session % 60)
        named = {
            columns.item_id: draw.zipf(1.4, 300) % 40,
            columns.ts: begin_ms if is_set else begin_ms + 1000 * (np.arange(300) % 5),
            columns.session_id: session + 1000 * index,
            columns.user_id: session % 20,
            columns.event: np.array(kinds or ["view"], dtype=object)[draw.integers(max(1, len(kinds)), size=300)],
        }
        named |= {name: draw.integers(4, size=300) for name in columns.context}
        order = np.argsort(named[columns.ts], kind="stable")
        table = pa.table({name: column[order] for name, column in named.items() if name is not None})
        landing.land(shard_name(index), table)


def side_feed_of(recipe: Recipe, folder: Path) -> None:
    """A file that names the same items, with every attribute that the recipe reads."""
    attributes = {name: [f"{name} {item % 3}" for item in range(40)] for name in recipe.catalogue.attributes}
    named = {"item_id": list(range(40)), "ts": [0] * 40, "name": [f"item {item}" for item in range(40)], **attributes}
    Landing(str(folder)).land("items.parquet", pa.table(named))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_comes_back_from_json(path: Path) -> None:
    recipe = load_recipe([str(path)])
    assert read_resolved(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_learns_a_small_log_twice_alike(path: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    log, items = tmp_path / "log", tmp_path / "items"
    words = [*SMALL, f"feed.path={log}", 'feed.replay={slice_s="file"}', "feed.cut=shard", "feed.synthetic=none"]
    if load_recipe([str(path)]).feed.items_path is not None:
        words.append(f"feed.items_path={items}")
    recipe = load_recipe([str(path)], words)
    log_in_the_shape_of(recipe, log)
    side_feed_of(recipe, items)
    once, again = (list(replay(recipe, torch.device("cpu"), 2)) for _ in range(2))
    assert [m.verdict for m in once] == ["publish"] * 3
    assert all(lawful(m) for m in once)
    assert [m.state_digest for m in once] == [m.state_digest for m in again]
    metrics = once[-1].facts["metrics"]
    assert metrics["queries"] > 0
    assert set(metrics["experts"]) == {"neural", *(expert.name for expert in recipe.experts)}
    assert metrics["faults"] == {}
