"""Versions to answer with, made without training: a store with commits and bundles."""

from collections.abc import Sequence

import numpy as np
import torch

from headrace.blend.calibration import Calibration
from headrace.blend.weights import Weights
from headrace.bundles.bundle import Bundle, bundle_of
from headrace.bundles.publish import publish
from headrace.catalogue.ids import Catalogue
from headrace.commit.manifest import Envelope, Manifest
from headrace.config.answers import PopularConfig
from headrace.config.feed import CatalogueConfig
from headrace.config.models import SasRecConfig
from headrace.config.recipe import Recipe
from headrace.experts.base import Counted
from headrace.experts.popular import Popular
from headrace.inputs.contexts import contexts_of
from headrace.models.build import build_model, model_parts
from headrace.store.arrays import dump_arrays
from headrace.store.fence import Epoch
from headrace.store.store import Store

WATERMARK_MS = 1_700_000_000_000


def counted(numbers: Sequence[int], ts: Sequence[int] | None = None, weight: Sequence[float] | None = None) -> Counted:
    size = len(numbers)
    zero_N = np.zeros(size, dtype=np.uint64)
    return Counted(
        np.array(numbers, dtype=np.int64),
        np.full(size, WATERMARK_MS) if ts is None else np.array(ts, dtype=np.int64),
        zero_N,
        zero_N,
        np.ones(size, dtype=np.float32) if weight is None else np.array(weight, dtype=np.float32),
        contexts_of([[]] * size, WATERMARK_MS, 10),
    )


def catalogue_of(raw_ids: Sequence[int | str]) -> Catalogue:
    catalogue = Catalogue()
    catalogue.admit(np.array(raw_ids, dtype=object if isinstance(raw_ids[0], str) else np.int64))
    catalogue.observe(np.arange(len(raw_ids)), np.full(len(raw_ids), WATERMARK_MS))
    catalogue.settle(WATERMARK_MS, CatalogueConfig())
    return catalogue


def commit_version(
    store: Store, version: int, raw_ids: Sequence[int | str], epoch: Epoch, width: int = 16, sharp: float = 30.0
) -> Manifest:
    """A commit of a random model, another one for each version; ``sharp`` scales the table."""
    recipe = Recipe(model=SasRecConfig(width=width, blocks=2))
    catalogue = catalogue_of(raw_ids)
    model = build_model(recipe.model, recipe.inputs.max_events, 2 ** int(np.ceil(np.log2(len(raw_ids) + 1))), version)
    with torch.no_grad():
        model.table.weight *= sharp
    popular = Popular("popular", None)
    popular.apply([popular.reduce(counted(np.arange(len(raw_ids)) % (7 + version)))], WATERMARK_MS)
    parts = {f"model/{name}": part for name, part in model_parts(model).items()}
    parts |= {f"catalogue/{name}": part for name, part in catalogue.state().items()}
    parts |= {"experts/popular": popular.state(), "optimizer/step": {"step": np.array([version])}}
    sections = recipe.model_dump(mode="json")
    return Manifest(
        version - 1,
        None,
        "publish",
        "passed every rule",
        version,
        {name: store.put_part(dump_arrays(part)) for name, part in parts.items()},
        {
            "recipe": {name: sections[name] for name in ("model", "inputs", "catalogue", "experts", "columns")},
            "watermark_ms": WATERMARK_MS + version,
            "weights": Weights.even([PopularConfig().name]).as_mapping(),
            "seen_last": False,
            "calibration": Calibration.plain([PopularConfig().name]).state(),
            "num_items": len(raw_ids),
        },
        Envelope(epoch.number, epoch.token, 1_750_000_000_000, 1.0, {}),
    )


def publish_version(
    store: Store, version: int, raw_ids: Sequence[int | str], epoch: Epoch, width: int = 16, sharp: float = 30.0
) -> Bundle:
    bundle = bundle_of(commit_version(store, version, raw_ids, epoch, width, sharp))
    publish(store, bundle, epoch)
    return bundle
