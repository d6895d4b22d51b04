"""Everything that an increment changes and a commit binds: made fresh, taken from a commit, and put into parts.

Model, optimizer, methods, catalogue, experts and weights are the same on every rank; history and seen event ids are
each rank's own, by key group. A rank count other than the commit's is fine: rows are dealt out again by group.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.blend.calibration import Calibration
from headrace.blend.split import Split, split_of
from headrace.blend.weights import Weights
from headrace.bundles.bundle import bundle_of, load_bundle
from headrace.catalogue.eligible import Eligible
from headrace.catalogue.ids import Catalogue
from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.config.models import told_attribute
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError
from headrace.evaluation.forgetting import Anchors
from headrace.evaluation.sequential import Trial
from headrace.evaluation.usual import Usual
from headrace.experts.base import Encoding, Expert
from headrace.experts.build import build_experts, load_experts
from headrace.history.past import history_columns
from headrace.history.segments import SegmentLog
from headrace.inputs.contexts import Contexts
from headrace.methods.base import Method
from headrace.methods.build import build_methods
from headrace.models.base import RecallModel
from headrace.models.build import build_model, load_model, model_parts
from headrace.objectives.softmax import build_objective
from headrace.recommend.recommender import Recommender
from headrace.recommend.seen import Repeats
from headrace.records import Rollback
from headrace.replay.client import Replay
from headrace.store.arrays import load_arrays
from headrace.store.store import Store
from headrace.train.deferrals import Deferrals, Noted
from headrace.train.group import Group
from headrace.train.intake import Fate
from headrace.train.step import TrainStep

_LAYOUT = 2
"""Of commits. Raised by every change after which what an older one holds could not be gone on from."""
_AFRESH = "give the run a folder and a store of its own"

Parts = dict[str, dict[str, NDArray[Any]]]

PROBE_TOP = 20
"""Answers to a probe that are compared between versions."""


@dataclass
class LearnerState:
    """The learner on one rank. Mutable; owned by the training loop."""

    recipe: Recipe
    replay: Replay | None
    """Examples of earlier increments; None where no method asks for them."""
    step: TrainStep
    """The model, its optimizer and the methods."""
    methods: list[Method]
    catalogue: Catalogue
    experts: list[Expert]
    weights: Weights
    calibration: Calibration
    split: Split | None
    """The blend's side of repeats; ``weights`` are then those of other items. None where the recipe does not split."""
    history: SegmentLog
    repeats: Repeats
    """How often the stream's targets were in their own contexts: what ``recommend.seen = "auto"`` follows."""
    seen: SegmentLog | None
    """Event ids that have arrived; None where the log has no such column."""
    held_V: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The item that each row of the model's table is about (-1: none); the catalogue may have given the row to another
    since, until the next increment's training begins."""
    probes: Contexts | None = None
    """A fixed set of contexts, drawn in the warm-up, on which versions are compared."""
    watermark_ms: int = 0
    version: int = 0
    """Of the newest bundle; 0 before the first."""
    num_holds: int = 0
    """Holds in a row."""
    rows: dict[str, int] = field(default_factory=lambda: {**{fate.name.lower(): 0 for fate in Fate}, "reverted": 0})
    """Rows of all cuts so far, by fate."""
    deferrals: Deferrals = field(default_factory=Deferrals)
    """Of the cuts that the window reaches: which rows wait, and which are not as they stand in their files."""
    trial: Trial = field(default_factory=Trial)
    """Which commit is trusted, and the sequential test of those after it."""
    anchors: Anchors = field(default_factory=Anchors)
    """Held-out queries of past increments, which show what is forgotten."""
    num_unlooked: int = 0
    """Queries that were scored since it was last looked at what is recommended (train/vitals.py)."""
    usual: Usual = field(default_factory=Usual)
    """What increments of this stream look like."""
    rollback: Rollback | None = None
    """The newest roll back that a person has asked for."""
    commit: Manifest | None = None
    """The newest commit; None before the warm-up."""
    published: Manifest | None = None
    """The commit that is served: the newest that was published, or what a person has rolled back to since."""
    live_top_PK: NDArray[np.int64] | None = None
    """What live answers to the probes."""
    learner: Recommender | None = None
    """The learner as of its newest commit; it reads the model's weights in place."""
    live: Recommender | None = None
    """What is served; the very ``learner`` where its newest commit was published."""
    frozen: Recommender | None = None
    """The warm-up's commit; None before it, and where it is never asked."""
    versions: dict[int, Manifest] = field(default_factory=dict)
    """By cut: the published commits that the trial may yet go back to, and live."""
    loaded_trusted: tuple[int, Recommender] | None = None
    """The trusted version, by cut, once it has been asked."""

    @property
    def model(self) -> RecallModel:
        """The learner's model."""
        return self.step.model

    @property
    def must_go_back(self) -> bool:
        """Whether the learner has yet to go back to what a person has rolled back to."""
        return self.rollback is not None and self.version < self.rollback.version

    @property
    def eligible(self) -> Eligible:
        """The items that may be answered as of the watermark."""
        return self.catalogue.eligible(self.watermark_ms, self.recipe.catalogue.alive_s)

    @property
    def seen_last(self) -> bool:
        """Whether items of a query's own context come last."""
        return self.repeats.seen_last(self.recipe.recommend)

    def recommender(self) -> Recommender:
        """The learner as it would be served now; it reads the model's weights in place."""
        return Recommender(
            self.model,
            self.catalogue.slot_I,
            self.eligible,
            self.experts,
            self.weights,
            self.watermark_ms,
            self.recipe.inputs.max_events,
            self.seen_last,
            self.calibration.exponents,
            self.recipe.model.prior,
            self.split,
        )

    def probed(self, version: Recommender) -> NDArray[np.int64] | None:
        """What a version answers to the probes, ``(P, K)`` item numbers; None where there are no probes."""
        if self.probes is None or not len(self.probes):
            return None
        return version.top(self.probes, PROBE_TOP).number_QK

    def shared_parts(self) -> Parts:
        """The parts that are the same on every rank, by name."""
        parts: Parts = {f"model/{name}": dict(part) for name, part in model_parts(self.model).items()}
        parts |= {name: dict(part) for name, part in self.step.state().items()}
        parts |= {f"catalogue/{name}": part for name, part in self.catalogue.state().items()}
        parts |= {f"experts/{expert.name}": dict(expert.state()) for expert in self.experts}
        for config, method in zip(self.recipe.methods, self.methods, strict=True):
            if state := method.state_dict():
                parts[f"methods/{config.kind}"] = dict(state)
        if self.probes is not None:
            parts["probes"] = dict(self.probes.__dict__)
        if len(self.anchors.held):
            parts["anchors"] = self.anchors.arrays()
        if len(self.deferrals.noted):
            parts["noted"] = dict(self.deferrals.noted.arrays)
        return parts

    def own_parts(self, rank: int) -> Parts:
        """The parts that only this rank has."""
        parts: Parts = {f"history/{rank:04d}/{i:04d}": part for i, part in enumerate(self.history.state())}
        if self.seen is not None:
            parts |= {f"seen/{rank:04d}/{i:04d}": part for i, part in enumerate(self.seen.state())}
        return parts

    def facts(self) -> dict[str, Any]:
        """Plain JSON: what parts do not say."""
        recipe = self.recipe.model_dump(mode="json")
        return {
            "layout": _LAYOUT,
            "levels": list(self.recipe.objective.levels),
            "recipe": {name: recipe[name] for name in ("model", "inputs", "catalogue", "experts", "columns")},
            "watermark_ms": self.watermark_ms,
            "weights": self.weights.as_mapping(),
            "calibration": self.calibration.state(),
            **({} if self.split is None else {"split": self.split.state()}),
            "repeats": [self.repeats.asked, self.repeats.repeated],
            "seen_last": self.seen_last,
            "num_items": len(self.catalogue),
            "num_slots": self.catalogue.num_slots,
            "num_eligible": len(self.eligible),
            "last_version": self.version,
            "num_holds": self.num_holds,
            "rows": dict(self.rows),
            "deferrals": self.deferrals.state(),
            "trial": self.trial.state(),
            "anchors": self.anchors.state(),
            "num_unlooked": self.num_unlooked,
            "usual": self.usual.state(),
            "rollback": None if self.rollback is None else asdict(self.rollback),
        }


def fresh(recipe: Recipe, group: Group, device: torch.device, replay: Replay | None = None) -> LearnerState:
    """A learner that has seen nothing. ``replay`` must be there if a method of the recipe asks for it."""
    model = build_model(recipe.model, recipe.inputs.max_events, recipe.catalogue.initial_capacity, recipe.seed)
    methods = build_methods(recipe.methods)
    return LearnerState(
        recipe,
        replay,
        TrainStep(model.to(device), build_objective(recipe.objective), methods, recipe.train, group, recipe.seed),
        methods,
        Catalogue(recipe.catalogue.attributes),
        build_experts(recipe.experts),
        Weights.even([expert.name for expert in recipe.experts]),
        Calibration.plain([expert.name for expert in recipe.experts]),
        split_of(recipe.blend, [expert.name for expert in recipe.experts]),
        _history(recipe, group),
        Repeats(),
        _seen(recipe, group),
    )


def resume(
    store: Store, recipe: Recipe, group: Group, device: torch.device, replay: Replay | None = None
) -> LearnerState:
    """The learner as of the store's newest commit, with the versions it is compared to; fresh where there is none.

    ``replay`` becomes what that commit says, and then belongs to the learner.
    """
    manifests = Chain(store).manifests()
    if not manifests:
        if replay is not None:
            replay.restore({}, group.world)
        return fresh(recipe, group, device, replay)
    state = restore(store, manifests[-1], recipe, group, device)
    state.replay = replay
    if replay is not None:
        replay.restore(manifests[-1].folder("replay"), manifests[-1].facts["world"])
    state.learner = state.recommender()
    published = {manifest.cut: manifest for manifest in manifests if manifest.verdict == "publish"}
    if published:
        state.published = published[_served_cut(state, max(published))]
        state.live = load_version(store, state.published, device)  # as it was published, whatever the recipe says now
        state.frozen = load_version(store, published[min(published)], device)
        state.versions = {cut: published[cut] for cut in state.trial.needed | {state.published.cut}}
        state.live_top_PK = state.probed(state.live)  # before the learner's weights move on
    return state


def _served_cut(state: LearnerState, newest_published: int) -> int:
    """What a person has rolled back to is served until a version is published under a higher number."""
    rollback = state.rollback
    return newest_published if rollback is None or state.version > rollback.version else rollback.cut


def load_version(store: Store, manifest: Manifest, device: torch.device) -> Recommender:
    """What a published commit answers with, apart from the learner's own memory."""
    return load_bundle(store, bundle_of(manifest), str(device), with_past=False).recommender


def restore(store: Store, manifest: Manifest, recipe: Recipe, group: Group, device: torch.device) -> LearnerState:
    """The learner exactly as this commit left it, but for replay.

    ConfigError where it is told of other features or levels, or where the commit has another layout.
    """
    facts = manifest.facts
    if facts.get("layout") != _LAYOUT:
        raise ConfigError(
            f"commit {manifest.cut} was made by another version of Headrace (layout {facts.get('layout')}, here "
            f"{_LAYOUT}): go on with that version, or {_AFRESH}"
        )
    if list(recipe.objective.levels) != facts["levels"]:  # replay keeps them by their place
        raise ConfigError(
            f"objective.levels are {list(recipe.objective.levels)}, and this state was made with {facts['levels']}: "
            f"use these, or {_AFRESH}"
        )
    before = facts["recipe"]["model"]
    told = [*before["features"], *map(told_attribute, before["attributes"])]
    if list(recipe.model.told) != told:  # history, replay and the model's vectors know them by their place
        raise ConfigError(
            f"model.features and model.attributes are {list(recipe.model.told)}, and this state was made with {told}: "
            f"use these, or {_AFRESH}"
        )
    state = fresh(recipe, group, device)
    load_learner(state, store, manifest)
    state.catalogue = Catalogue.from_state(_read(store, manifest, "catalogue"))
    state.catalogue.listing = state.catalogue.listing.of(recipe.catalogue.attributes)
    state.experts = load_experts(recipe.experts, _read(store, manifest, "experts"))
    _deal(state.history, _read(store, manifest, "history"), facts["world"], group)
    if state.seen is not None:
        _deal(state.seen, _read(store, manifest, "seen"), facts["world"], group)
    if "probes" in manifest.parts:
        state.probes = Contexts(**load_arrays(store.get_part(manifest.parts["probes"])))
    state.watermark_ms = facts["watermark_ms"]
    state.version = facts["last_version"]
    state.num_holds = facts["num_holds"]
    state.repeats = Repeats(*facts["repeats"])
    if state.split is not None and "split" in facts:
        state.split = Split.from_state(facts["split"])
    state.rows |= facts["rows"]
    noted = Noted(load_arrays(store.get_part(manifest.parts["noted"]))) if "noted" in manifest.parts else Noted()
    state.deferrals = Deferrals.from_state(kept, noted) if (kept := facts.get("deferrals")) else Deferrals()
    state.trial = Trial.from_state(facts["trial"])
    state.num_unlooked = facts.get("num_unlooked", 0)
    if "anchors" in manifest.parts:
        state.anchors = Anchors.from_state(facts["anchors"], load_arrays(store.get_part(manifest.parts["anchors"])))
    state.usual = Usual.from_state(usual) if (usual := facts.get("usual")) else Usual()
    state.rollback = Rollback(**back) if (back := facts.get("rollback")) else None
    state.commit = manifest
    return state


def load_learner(state: LearnerState, store: Store, manifest: Manifest) -> None:
    """Model, optimizer, methods and blend weights as this commit left them; everything else in ``state`` stays.

    The table has the commit's capacity until ``TrainStep.begin_increment`` grows it again, and its rows are about the
    items that held them then: rows that other items hold by now start afresh (train/rows.py).
    """
    recipe = state.recipe
    state.methods = build_methods(recipe.methods)
    for name, arrays in _read(store, manifest, "methods").items():
        next(m for c, m in zip(recipe.methods, state.methods, strict=True) if c.kind == name).load_state_dict(arrays)
    model = load_model(recipe.model, recipe.inputs.max_events, _read(store, manifest, "model")).to(state.step.device)
    state.step = TrainStep(model, state.step.objective, state.methods, recipe.train, state.step.group, recipe.seed)
    optimizer = _read(store, manifest, "optimizer")
    state.step.load({f"optimizer/{name}": part for name, part in optimizer.items()})
    state.held_V = load_arrays(store.get_part(manifest.parts["catalogue/slots"]))["number"]
    state.weights = Weights.from_mapping(manifest.facts["weights"])
    state.calibration = Calibration.from_state(manifest.facts["calibration"])
    if state.split is not None and "split" in manifest.facts:  # how often targets came again is the stream's to say
        state.split = replace(state.split, weights=Split.from_state(manifest.facts["split"]).weights)
    for expert in state.experts:
        if isinstance(expert, Encoding):
            expert.outdate()


def _read(store: Store, manifest: Manifest, prefix: str) -> Parts:
    return {name: load_arrays(store.get_part(ref)) for name, ref in sorted(manifest.folder(prefix).items())}


def _deal(log: SegmentLog, parts: Parts, world: int, group: Group) -> None:
    """Give a rank its rows: its own segments as they were, or, with another rank count, all rows of its groups."""
    if world == group.world:
        log.load([part for name, part in sorted(parts.items()) if int(name.split("/")[0]) == group.rank])
        return
    for _, part in sorted(parts.items(), key=lambda item: item[0].split("/")[::-1]):
        mine_N = part["group"] % group.world == group.rank
        log.append({name: column[mine_N] for name, column in part.items()})


def _history(recipe: Recipe, group: Group) -> SegmentLog:
    columns = history_columns(len(recipe.model.told))
    return SegmentLog(columns, recipe.inputs.max_events, recipe.history.max_bytes // group.world)


def _seen(recipe: Recipe, group: Group) -> SegmentLog | None:
    if recipe.columns.event_id is None:
        return None
    return SegmentLog({"group": np.uint8}, 1, recipe.history.max_bytes // group.world)
