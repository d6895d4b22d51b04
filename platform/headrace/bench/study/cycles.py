"""The ADER protocol (Mi et al., RecSys 2020), cycle by cycle, through production's own increment.

Cycle t tests on period t what was updated on period t - 1. Its queries are those with a context item and a target that
were met before the period, ranked over all items met so far; the protocol splits sessions at the ends of periods. What
is tested at the last cycle is not trained, so that more cycles may follow another day. Whatever is done is kept in
the study's folder at once, and passed over when the same is asked again.
"""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.bench.study import forgetting
from headrace.bench.study.answers import (
    NEURAL,
    RUNNING,
    Answers,
    Blend,
    answered,
    born,
    in_order,
    known,
    running,
)
from headrace.bench.study.results import Cells, Row, spent
from headrace.bench.study.shelf import Shelf
from headrace.bench.study.variants import FROZEN, WINDOW_PERIODS, Variant, as_asked
from headrace.commit.manifest import Manifest
from headrace.config.methods import PassesConfig, ReservoirConfig
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError
from headrace.evaluation.prequential import Queries, Scored, score
from headrace.inputs.examples import Examples
from headrace.recommend.recommender import BLEND, Recommender
from headrace.records import CutRows, hash64_array
from headrace.replay.client import LocalReplay, ReplaySpec
from headrace.store.store import Store
from headrace.train.group import Solo
from headrace.train.intake import Fate
from headrace.train.offline import Learner, peak_mb, queries_of
from headrace.train.state import LearnerState
from headrace.train.step import TrainStep

_BOUNDLESS_BYTES = 2**50
_VERSIONS = ("live", "learner", "frozen")


class Cycles:
    """One method with one seed, over the periods of a log; ``tell`` hears of every row that is finished.

    ``sample``: queries of each past period that forgetting is measured on; 0: it is not measured.
    """

    def __init__(
        self,
        variant: Variant,
        shelf: Shelf,
        cells: Cells,
        device: torch.device,
        sample: int,
        tell: Callable[[Row], None],
    ) -> None:
        self._variant, self._shelf, self._cells = variant, shelf, cells
        self._device, self._sample, self._tell = device, sample, tell
        self._recipe = as_asked(variant)
        if self._recipe.feed.window is not None:
            raise ConfigError(f"method {variant.name!r}: the protocol trains whole periods; bench stream has windows")
        self._samples: dict[int, Queries] = {}

    def run(self, cycles: Collection[int]) -> None:
        """Test these cycles; a learner that follows the log tests all cycles up to the last of them."""
        self._cells.begin(self._recipe, self._shelf.digest)
        last = max(cycles)
        if self._variant.reference == "joint":
            for cycle in sorted(cycles):
                if not self._cells.has(cycle):
                    self._from_scratch(cycle)
        elif not all(self._cells.has(cycle) for cycle in range(1, last + 1)):
            self._follow(last)
            if last == len(self._shelf) - 1:  # nothing can follow
                shutil.rmtree(self._cells.run / "store")
        self._cells.end()

    def _follow(self, last: int) -> None:
        store = self._cells.store()
        learner = Learner(self._recipe, self._device, store, _looking_back(self._variant, store))
        for cycle in range(learner.newest_cut + 1, last + 1):
            part, state = self._by_period(self._shelf.part(cycle)), learner.state
            self._keep_samples([cycle], part, state)
            put = None
            if cycle and not self._cells.has(cycle):
                version, blend = self._answering(state)
                self._measure(cycle, version, state)
                asked = in_order(queries_of(part, state))
                put = self._putting(cycle, asked, state, running(asked, version, blend, self._recipe.blend))
                if cycle == last or self._variant.reference == FROZEN:  # else the increment scores the same
                    put(score(asked, version, version, None, Solo().gather))
                    put = None
            if cycle and self._variant.fresh_optimizer:
                state.step = _without_moments(state)
            if cycle < last:
                checkpoint = self._cells.checkpoint(cycle)
                learner.train(part, put, checkpoint=checkpoint)
                checkpoint.done()

    def _from_scratch(self, cycle: int) -> None:
        """Train on all periods before this cycle's as one warm-up, then test; the blend goes on from cycle to cycle."""
        with tempfile.TemporaryDirectory(prefix="headrace-joint-") as folder:
            learner = Learner(self._recipe, self._device, Store(folder))
            state, whole = learner.state, self._by_period(self._shelf.first(cycle))
            self._keep_samples(range(cycle), whole, state)
            checkpoint = self._cells.checkpoint(cycle)
            learner.train(whole, checkpoint=checkpoint)
        assert state.learner is not None
        blend = self._cells.blend(cycle) or Blend(state.weights, state.calibration, state.split)
        version = blend.of(state.learner)
        self._measure(cycle, version, state)
        asked = in_order(queries_of(self._by_period(self._shelf.part(cycle)), state))
        moving_T = running(asked, version, blend, self._recipe.blend)
        scored = score(asked, version, version, None, Solo().gather)
        blend = blend.moved(scored.probability, scored.slope, scored.repeated, self._recipe.blend)
        self._cells.put_blend(cycle, blend)
        self._putting(cycle, asked, state, moving_T)(scored)
        checkpoint.done()

    def _answering(self, state: LearnerState) -> tuple[Recommender, Blend]:
        """The version that is tested, and its blend before the test."""
        if self._variant.reference == FROZEN:
            assert state.frozen is not None
            counters = [expert.name for expert in state.frozen.experts]
            return state.frozen, Blend.even(counters, self._recipe.blend)
        assert state.learner is not None
        return state.learner, Blend(state.weights, state.calibration, state.split)

    def _putting(
        self, cycle: int, asked: Queries, state: LearnerState, moving_T: NDArray[np.int64]
    ) -> Callable[[Scored], None]:
        """What is to be done with the scores of these queries once they are there."""
        assert state.commit is not None
        trained = state.commit

        def put(scored: Scored) -> None:
            ranks = {name: rank_T for name, rank_T in scored.ranks.items() if name not in _VERSIONS}
            ranks |= {BLEND: scored.ranks["learner"], RUNNING: moving_T}
            born_I = born(self._shelf, state.catalogue)
            is_new_T = (born_I[asked.target_T] == cycle - 1) & (cycle > 1)
            answers = answered(asked, ranks, self._shelf, is_new_T).take(known(asked, born_I, cycle))
            row = _row(self._cells.seed, cycle, answers, trained)
            self._cells.put(row, answers)
            self._tell(row)

        return put

    def _keep_samples(self, periods: Collection[int], part: CutRows, state: LearnerState) -> None:
        """Of each of these periods, whose rows are in ``part``, before it is trained."""
        if not self._sample or all(self._cells.sample(period).is_file() for period in periods):
            return
        fate = Fate.HELD_OUT if self._recipe.evaluation.eval_share else Fate.TRAINED
        asked = queries_of(part, state, fate)
        period_Q = self._shelf.period_of(asked.shard_Q)
        for period in periods:
            kept = forgetting.sample(asked.take(np.flatnonzero(period_Q == period)), self._sample)
            forgetting.save_sample(self._cells.sample(period), kept)

    def _measure(self, cycle: int, version: Recommender, state: LearnerState) -> None:
        """What the learner of this test knows of past periods; left out where one of these has no sample."""
        paths = [self._cells.sample(period) for period in range(cycle)]
        if not self._sample or not all(path.is_file() for path in paths):
            return
        for period, path in enumerate(paths):
            if period not in self._samples:
                self._samples[period] = forgetting.load_sample(path)
        samples = [self._samples[period] for period in range(cycle)]
        scores = forgetting.measure(version, samples)
        columns = forgetting.measure_columns(version, state.catalogue.slot_I, samples)
        row = {"seed": self._cells.seed, "cycle": cycle, "held_out": self._recipe.evaluation.eval_share > 0, **scores}
        self._cells.put_measured(cycle, {**row, "columns": columns} if columns else row)

    def _by_period(self, part: CutRows) -> CutRows:
        """The protocol splits sessions at the ends of periods."""
        period_N = self._shelf.period_of(part.rows.shard_N)
        session_N = part.rows.session_N.copy()
        for period in np.unique(period_N).tolist():
            mine_N = (period_N == period) & (session_N != 0)  # 0: derived from a gap of inactivity
            session_N[mine_N] = hash64_array(part.rows.session_N[mine_N], "period", period)
        return replace(part, rows=replace(part.rows, session_N=session_N))


def weight(variant: Variant, cycle: int) -> float:
    """About how long a cycle takes, in tests: a test takes as long as the training of one period, more or less."""
    train = variant.recipe.train
    warmup = train.warmup_epochs / max(train.epochs, 1) if isinstance(train.budget, PassesConfig) else 1.0
    if variant.reference == "joint":
        return 1.0 + warmup * cycle
    if cycle == 1:
        return 1.0 + warmup
    return 1.0 + {None: 1, "joint_warm": cycle, "window": min(cycle, WINDOW_PERIODS), FROZEN: 0}[variant.reference]


class _LookingBack(LocalReplay):
    """A retrainer's past: every increment trains on all examples of the last ``periods``, its own among them.

    None: of all periods.
    """

    def __init__(self, recipe: Recipe, store_uri: str, periods: int | None) -> None:
        config = recipe.replay.model_copy(update={"policy": ReservoirConfig(), "max_bytes": _BOUNDLESS_BYTES})
        super().__init__(ReplaySpec(config, recipe.seed, 1, store_uri), 0)
        self._periods = periods

    def batches(self, increment: int, sizes: Collection[int], first_step: int = 0) -> Iterator[Examples]:
        """All of them, whatever was asked for."""
        past = self._buffer.since(0 if self._periods is None else increment - self._periods + 1)
        if len(past):
            yield past


def _looking_back(variant: Variant, store: Store) -> LocalReplay | None:
    match variant.reference:
        case "window":
            return _LookingBack(variant.recipe, store.uri, WINDOW_PERIODS)
        case "joint_warm":
            return _LookingBack(variant.recipe, store.uri, None)
        case _:
            return None


def _without_moments(state: LearnerState) -> TrainStep:
    """The learner's step with an optimizer that has done nothing yet."""
    step, recipe = state.step, state.recipe
    return TrainStep(step.model, step.objective, state.methods, recipe.train, step.group, recipe.seed)


def _row(seed: int, cycle: int, answers: Answers, trained: Manifest) -> Row:
    """A cycle's figures, shares and seconds; its own are the neural expert's."""
    review = trained.facts["review"]
    counters = [name for name in answers.ranks if name not in (BLEND, RUNNING)]
    return {
        "seed": seed,
        "cycle": cycle,
        **answers.figures(NEURAL),
        **spent(trained.envelope),
        "peak_mb": peak_mb(),
        "queries": len(answers),
        BLEND: answers.figures(BLEND),
        RUNNING: answers.figures(RUNNING),
        "experts": {name: answers.figures(name) for name in counters},
        "verdict": trained.verdict,
        "rolled_back_to": review["rolled_back_to"],
    }
