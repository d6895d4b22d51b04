"""A bundle: everything that answers under one version, named by digest, and the way from it to a recommender.

A bundle stores nothing of its own: its parts are the commit's, so publishing writes kilobytes. It is a pure function of
the commit, so that publishing again after a crash writes the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from headrace.blend.split import Split
from headrace.blend.weights import Weights
from headrace.catalogue.eligible import Eligible
from headrace.catalogue.ids import Catalogue
from headrace.catalogue.slots import NONE
from headrace.commit.manifest import Manifest
from headrace.config.feed import CatalogueConfig, ColumnsConfig, InputsConfig
from headrace.config.models import ModelConfig
from headrace.errors import StoreError
from headrace.experts.build import load_experts, read_configs
from headrace.history.past import Past
from headrace.models.build import load_model
from headrace.recommend.recommender import Recommender
from headrace.store.arrays import load_arrays
from headrace.store.store import PartRef, Store

SERVED = ("model", "catalogue", "experts", "history")
"""Folders of a commit's parts that a bundle names."""
_ANSWERS = ("model", "catalogue", "experts")
"""What every answer needs; history is for those that look up users."""


@dataclass(frozen=True)
class Bundle:
    """One version. Made by ``bundle_of`` from a commit, stored by bundles/publish.py, read by every replica."""

    version: int
    kind: Literal["full"]
    """"full" names every part; deltas come later."""
    parent: int | None
    """The version before; of one that is served again, the version that it was; None for the first."""
    sequence: int
    """Place in a chain of deltas; 0 for a full bundle."""
    tombstones: tuple[int, ...]
    """Numbers of items that must no longer be answered, whatever the parts say."""
    cut: int
    """The commit whose parts these are."""
    state_digest: str
    epoch: int
    token: str
    """Number and token of the writer that made the commit."""
    wall_ms: int
    """When the commit was made: what is asked later is asked as of the watermark plus the time since."""
    watermark_ms: int
    weights: Mapping[str, float]
    """Of the blend, by expert."""
    exponents: Mapping[str, float]
    """Of each expert's probabilities, before they are mixed."""
    seen_last: bool
    """Whether items of a query's own context come last."""
    recipe: Mapping[str, Any]
    """The sections that parts cannot be read without: model, inputs, catalogue, experts, columns."""
    parts: Mapping[str, PartRef]
    split: Mapping[str, Any] | None = None
    """Of the blend, its side of repeats; None, and not stored, where it has none."""

    @property
    def sha256(self) -> str:
        """Of the stored manifest; what the pointer names."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """What is stored; equal bundles give equal bytes."""
        content = asdict(self) | {"parts": {name: [ref.sha256, ref.size_bytes] for name, ref in self.parts.items()}}
        if self.split is None:
            del content["split"]
        return json.dumps(content, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Bundle":
        """The bundle stored as ``content``; StoreError where it is none."""
        try:
            raw = json.loads(content)
            parts = {name: PartRef(sha256, size) for name, (sha256, size) in raw.pop("parts").items()}
            return cls(**raw | {"parts": parts, "tombstones": tuple(raw["tombstones"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"not a bundle's manifest: {error!r}") from error


def bundle_of(manifest: Manifest, parent: int | None = None) -> Bundle:
    """The bundle that a published commit stands for; ``parent`` is the version before, by default the number before."""
    if manifest.version is None:
        raise ValueError(f"commit {manifest.cut} ({manifest.verdict}) publishes nothing")
    return Bundle(
        version=manifest.version,
        kind="full",
        parent=manifest.version - 1 if parent is None and manifest.version > 1 else parent,
        sequence=0,
        tombstones=(),
        cut=manifest.cut,
        state_digest=manifest.state_digest,
        epoch=manifest.envelope.epoch,
        token=manifest.envelope.token,
        wall_ms=manifest.envelope.wall_ms,
        watermark_ms=manifest.facts["watermark_ms"],
        weights=dict(manifest.facts["weights"]),
        exponents={name: pair[0] for name, pair in manifest.facts["calibration"].items()},
        seen_last=manifest.facts["seen_last"],
        recipe=dict(manifest.facts["recipe"]),
        parts={name: ref for name, ref in sorted(manifest.parts.items()) if name.split("/")[0] in SERVED},
        split=manifest.facts.get("split"),
    )


@dataclass(frozen=True)
class Loaded:
    """A version in memory: one reference to everything that an answer needs. Made by ``Loader``."""

    bundle: Bundle
    recommender: Recommender
    catalogue: Catalogue
    columns: ColumnsConfig
    inputs: InputsConfig
    features: tuple[str, ...]
    """Columns that its model is told of each event and request."""
    attributes: tuple[str, ...]
    """Attributes of items that its model is told of each event."""
    past: Past | None
    """What users did, so that a question may name one; None where it was left out."""

    @property
    def version(self) -> int:
        """The bundle's number."""
        return self.bundle.version


class Loader:
    """Loads bundles one after the other; parts that the one before had too are not read again.

    So of history only new segments are read: about as many rows as the commits since then took, and now and then one
    that older ones were merged into. In memory it is bounded as the trainer's is, by ``history.max_bytes``.
    """

    def __init__(self, store: Store, device: str = "cpu") -> None:
        self._store = store
        self._device = device
        self._kept: dict[str, dict[str, NDArray[Any]]] = {}
        self.num_fetched = 0
        """Parts read from the store so far."""

    def load(self, bundle: Bundle, with_past: bool = True) -> Loaded:
        """The version in memory, every digest verified; ``with_past`` where users are to be looked up.

        StoreError where a part is missing or damaged, or does not fit; then nothing has changed.
        """
        folders = (*_ANSWERS, "history") if with_past else _ANSWERS
        refs = {name: ref for name, ref in bundle.parts.items() if name.split("/")[0] in folders}
        arrays = {name: self._arrays(ref) for name, ref in refs.items()}
        try:
            loaded = _assemble(bundle, arrays, self._device, with_past)
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(f"bundle {bundle.version} cannot be loaded: {error!r}") from error
        self._kept = {ref.sha256: arrays[name] for name, ref in refs.items()}
        return loaded

    def load_ids(self, bundle: Bundle) -> list[Any]:
        """The raw ids of its items that hold a row of the table, by number; reads the catalogue alone."""
        refs = {name: ref for name, ref in bundle.parts.items() if name.startswith("catalogue/")}
        arrays = {name: self._arrays(ref) for name, ref in refs.items()}
        self._kept = {ref.sha256: arrays[name] for name, ref in refs.items()}
        chunks = [arrays[name]["id"].tolist() for name in sorted(arrays) if name.startswith("catalogue/ids/")]
        raw_ids = [raw for chunk in chunks for raw in chunk]
        number_V = arrays["catalogue/slots"]["number"]
        return [raw_ids[number] for number in np.sort(number_V[number_V != NONE]).tolist()]

    def _arrays(self, ref: PartRef) -> dict[str, NDArray[Any]]:
        if ref.sha256 not in self._kept:
            self.num_fetched += 1
            return load_arrays(self._store.get_part(ref))
        return self._kept[ref.sha256]


def load_bundle(store: Store, bundle: Bundle, device: str = "cpu", with_past: bool = True) -> Loaded:
    """A version by itself; see ``Loader`` for many in a row."""
    return Loader(store, device).load(bundle, with_past)


def _assemble(bundle: Bundle, arrays: Mapping[str, dict[str, NDArray[Any]]], device: str, with_past: bool) -> Loaded:
    def folder(prefix: str) -> dict[str, dict[str, NDArray[Any]]]:
        return {name[len(prefix) + 1 :]: part for name, part in arrays.items() if name.startswith(prefix + "/")}

    inputs = InputsConfig.model_validate(bundle.recipe["inputs"])
    listed = CatalogueConfig.model_validate(bundle.recipe["catalogue"])
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(bundle.recipe["model"])
    model = load_model(config, inputs.max_events, folder("model"))
    model = model.requires_grad_(False).to(device)
    catalogue = Catalogue.from_state(folder("catalogue"))
    catalogue.listing = catalogue.listing.of(listed.attributes)
    if catalogue.num_slots > model.table.capacity or not bool(torch.isfinite(model.table.weight).all()):
        raise ValueError(f"{catalogue.num_slots} items for a table of {model.table.capacity} rows, or rows not finite")
    eligible = catalogue.eligible(bundle.watermark_ms, listed.alive_s)
    if bundle.tombstones:
        eligible = Eligible(np.setdiff1d(eligible.number_E, np.array(bundle.tombstones, dtype=np.int64)))
    recommender = Recommender(
        model,
        catalogue.slot_I,
        eligible,
        load_experts(read_configs(bundle.recipe["experts"]), folder("experts")),
        Weights.from_mapping(bundle.weights),
        bundle.watermark_ms,
        inputs.max_events,
        bundle.seen_last,
        bundle.exponents,
        config.prior,
        None if bundle.split is None else Split.from_state(bundle.split),
    )
    columns = ColumnsConfig.model_validate(bundle.recipe["columns"])
    past = Past(folder("history")) if with_past else None
    return Loaded(bundle, recommender.freeze(), catalogue, columns, inputs, config.features, config.attributes, past)
