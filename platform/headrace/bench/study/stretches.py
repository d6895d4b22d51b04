"""A log in event time, slice by slice: every query is answered by the version that is live when it is asked.

A learner is updated after every slice. A retrainer is updated after every hour or every day: a warm one goes on with
the rows since, a cold one begins from scratch on what may still be answered (``catalogue.alive_s``; else on everything
so far), and both with their counters, since a retrained system is retrained whole. All answer the same queries. Rows of
a study are stretches of a day, or slices where these are longer.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.bench.study.answers import NEURAL, Answers, Blend, answered, born, concatenate, in_order
from headrace.bench.study.results import Cells, Row, spent
from headrace.bench.study.shelf import Shelf
from headrace.bench.study.variants import FROZEN, STREAM_REFERENCES, Variant, as_asked
from headrace.clock import Stopwatch
from headrace.commit.manifest import Manifest
from headrace.evaluation.prequential import Queries, Scored, score
from headrace.recommend.recommender import BLEND, Recommender
from headrace.store.store import Store
from headrace.train.group import Solo
from headrace.train.offline import Learner, peak_mb, queries_of
from headrace.train.state import LearnerState

DAY_S = 86400
_VERSIONS = ("live", "learner", "frozen")


class Stretches:
    """One method with one seed, over the slices of a log; ``tell`` hears of every stretch's row."""

    def __init__(
        self, variant: Variant, shelf: Shelf, cells: Cells, device: torch.device, tell: Callable[[Row], None]
    ) -> None:
        self._variant, self._slices, self._cells = variant, shelf, cells
        self._device, self._tell = device, tell
        span_s, self._from_scratch = STREAM_REFERENCES.get(variant.reference or "", (None, False))
        self._shelf = shelf if span_s is None else shelf.grouped(span_s)
        self._stretch_P = self._shelf.stretches(DAY_S)
        self._recipe = as_asked(variant)
        self._shelf = self._shelf.windowed(self._recipe.feed.window)
        self._waiting = _Waiting(cells.run / "waiting")

    def run(self, is_whole: bool) -> None:
        """All stretches of the shelf; ``is_whole``: nothing can follow, so that no store is kept for that."""
        self._cells.begin(self._recipe, self._slices.digest)
        if all(self._cells.has(number) for number in range(2, int(self._stretch_P[-1]) + 1)):
            return
        if self._from_scratch:
            self._retrain()
        else:
            self._follow()
        if is_whole:
            shutil.rmtree(self._cells.run / "store", ignore_errors=True)

    def _follow(self) -> None:
        learner = Learner(self._recipe, self._device, self._cells.store())
        for period in range(learner.newest_cut + 1, len(self._shelf)):
            watch = Stopwatch()
            part, state, put = self._shelf.part(period), learner.state, None
            watch.lap("feed")
            if period and not self._is_tested(period):
                asked = in_order(queries_of(part, state))
                put = self._putting(period, asked, state)
                if self._variant.reference == FROZEN:
                    assert state.frozen is not None
                    put(_score(asked, state.frozen))
                    put = None
            watch.skip()
            learner.train(part, put, watch)
            self._settle(period)

    def _retrain(self) -> None:
        config = self._recipe.blend
        for period in range(1, len(self._shelf)):
            if not self._is_tested(period):
                with tempfile.TemporaryDirectory(prefix="headrace-retrain-") as folder:
                    learner = Learner(self._recipe, self._device, Store(folder))
                    since = self._shelf.since(period, self._recipe.catalogue.alive_s)
                    watch = Stopwatch()
                    part = self._shelf.first(period, min(since, period - 1))
                    watch.lap("feed")
                    learner.train(part, watch=watch)
                state = learner.state
                assert state.learner is not None
                blend = self._cells.blend(period) or Blend(state.weights, state.calibration, state.split)
                asked = in_order(queries_of(self._shelf.part(period), state))
                scored = _score(asked, blend.of(state.learner))
                if scored.num_queries:
                    blend = blend.moved(scored.probability, scored.slope, scored.repeated, config)
                self._cells.put_blend(period, blend)
                self._putting(period, asked, state)(scored)
            self._settle(period)

    def _putting(self, period: int, asked: Queries, state: LearnerState) -> Callable[[Scored], None]:
        """What is to be done with the scores of a period's queries once they are there."""
        assert state.commit is not None
        trained = state.commit

        def put(scored: Scored) -> None:
            ranks = {name: rank_T for name, rank_T in scored.ranks.items() if name not in _VERSIONS}
            if len(asked):
                ranks[BLEND] = scored.ranks["live"]
                first_ms = np.append(self._slices.first_ms, np.iinfo(np.int64).max)[born(self._slices, state.catalogue)]
                asked_T = np.repeat(asked.contexts.as_of_Q, np.diff(asked.offset_R))
                is_new_T = first_ms[asked.target_T] > asked_T - 1000 * DAY_S  # or not met at all
                self._waiting.put(period, answered(asked, ranks, self._slices, is_new_T), trained)

        return put

    def _settle(self, period: int) -> None:
        """After a period: where its stretch ends here, the stretch's row is made."""
        number = int(self._stretch_P[period])
        periods = np.flatnonzero(self._stretch_P == number).tolist()
        if number == 1 or period != periods[-1] or self._cells.has(number):
            return
        found = [kept for kept in map(self._waiting.get, periods) if kept is not None]
        if found:
            answers = concatenate([answers for answers, _ in found])
            row = _row(self._cells.seed, number, answers, [facts for _, facts in found])
            self._cells.put(row, answers)
            self._tell(row)
        self._waiting.clear()

    def _is_tested(self, period: int) -> bool:
        return self._waiting.has(period) or self._cells.has(int(self._stretch_P[period]))


class _Waiting:
    """What was answered in a stretch that has not ended, period by period."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, period: int) -> bool:
        return self._path(period).is_file()

    def put(self, period: int, answers: Answers, trained: Manifest) -> None:
        """The answers come last; ``trained``: the commit that answered."""
        facts = {
            **spent(trained.envelope),
            "increment_s": sum(trained.envelope.seconds.values()),
            "is_warmup": trained.cut == 0,
            "useful_tokens": trained.facts["training"]["useful_tokens"],
            "rejected": trained.reason if trained.verdict == "reject" else None,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(period).with_suffix(".json").write_text(json.dumps(facts))
        answers.save(self._path(period))

    def get(self, period: int) -> tuple[Answers, dict[str, Any]] | None:
        """None where nothing was asked in it."""
        if not self.has(period):
            return None
        return Answers.load(self._path(period)), json.loads(self._path(period).with_suffix(".json").read_text())

    def clear(self) -> None:
        """The stretch has its row."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, period: int) -> Path:
        return self._folder / f"period-{period:05d}.npz"


def _score(asked: Queries, version: Recommender) -> Scored:
    return score(asked, version, version, None, Solo().gather)


def _row(seed: int, number: int, answers: Answers, facts: list[dict[str, Any]]) -> Row:
    """A stretch's figures, shares and seconds; its own are the neural expert's."""
    counters = [name for name in answers.ranks if name != BLEND]
    later = [one["increment_s"] for one in facts if not one["is_warmup"]]
    useful = [one["useful_tokens"] for one in facts if one["useful_tokens"] is not None]
    return {
        "seed": seed,
        "cycle": number,
        **answers.figures(NEURAL),
        "train_s": sum(one["train_s"] for one in facts),
        "cpu_s": sum(one["cpu_s"] for one in facts),
        "peak_mb": peak_mb(),
        "queries": len(answers),
        "increment_s": {"p50": float(np.median(later)), "max": max(later)} if later else None,
        "useful_tokens": float(np.mean(useful)) if useful else None,
        "rejected": [one["rejected"] for one in facts if one["rejected"] is not None],
        BLEND: answers.figures(BLEND),
        "experts": {name: answers.figures(name) for name in counters},
    }
