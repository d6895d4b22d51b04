"""Passes that were stopped go on after the last whole one, to the same bytes, whatever a step moves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from step_kit import NUM_ITEMS, fingerprint, make_examples, make_step, passes

from headrace.config.methods import DistillConfig, EarlyStopConfig, EwcConfig, OnlineConfig, RowAdagradConfig
from headrace.config.models import SampledSoftmaxConfig, SasRecConfig
from headrace.methods.build import build_methods
from headrace.store.store import Store
from headrace.train.checkpoint import Checkpoint
from headrace.train.passes import PassStats
from headrace.train.step import TrainStep

SAMPLED = SampledSoftmaxConfig(negatives=16, draw="frequency")
STOP = EarlyStopConfig(share=0.3, split="prefix", patience=2, max_epochs=6)
MODES: dict[str, dict[str, Any]] = {
    "dense": {},
    "sampled": {"objective": SAMPLED},
    "row_adagrad": {"optimizer": RowAdagradConfig()},
    "sampled row_adagrad": {"objective": SAMPLED, "optimizer": RowAdagradConfig()},
}


class StoppedError(Exception):
    """Somebody killed the run."""


class Killed(Checkpoint):
    """Dies after so many passes."""

    def __init__(self, store: Store, after: int) -> None:
        super().__init__(store, "passes")
        self._left = after

    def keep(self, *progress: Any) -> None:
        super().keep(*progress)
        self._left -= 1
        if not self._left:
            raise StoppedError


def begun(mode: dict[str, Any]) -> TrainStep:
    """A learner that has one increment behind it, of fewer items."""
    methods = build_methods([OnlineConfig(warmup_steps=5), EwcConfig(examples=20), DistillConfig()])
    step = make_step(methods=methods, model=SasRecConfig(width=8, dropout=0.3), learning_rate=2e-2, **mode)
    passes(step, made(1, 30), 0, 30)
    return step


def made(seed: int, num_items: int) -> Any:
    examples = make_examples(seed, 60, num_items)
    return replace(examples, row_T=examples.sequence_T)


def trained(step: TrainStep, stop: EarlyStopConfig | None, checkpoint: Checkpoint | None) -> PassStats:
    past = made(1, 30)
    return passes(step, made(2, NUM_ITEMS), 1, epochs=4, replayed=past, early_stop=stop, checkpoint=checkpoint)


@pytest.mark.parametrize("stop", [None, STOP], ids=["passes", "early_stop"])
@pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
def test_whoever_was_stopped_ends_with_the_same_bytes(mode, stop, tmp_path: Path) -> None:
    store, whole = Store(str(tmp_path)), begun(mode)
    expected = trained(whole, stop, None)
    assert len(expected.loss_per_epoch) >= 3
    with pytest.raises(StoppedError):
        trained(begun(mode), stop, Killed(store, 2))
    checkpoint, again = Checkpoint(store, "passes"), begun(mode)
    stats = trained(again, stop, checkpoint)
    assert fingerprint(again) == fingerprint(whole)
    assert again.update_ratio() == pytest.approx(whole.update_ratio(), rel=1e-9)
    assert again.extremes() == whole.extremes()
    assert stats.earlier_s > 0.0
    assert timeless(stats) == timeless(expected)
    for step in (again, whole):
        passes(step, made(3, NUM_ITEMS), 2)
    assert fingerprint(again) == fingerprint(whole)


def test_one_that_was_stopped_at_the_very_end_trains_nothing_more(tmp_path: Path) -> None:
    store, whole = Store(str(tmp_path)), begun({})
    with pytest.raises(StoppedError):
        trained(whole, None, Killed(store, 4))
    again, checkpoint = begun({}), Checkpoint(store, "passes")
    assert trained(again, None, checkpoint).steps == whole.step_in_increment
    assert fingerprint(again) == fingerprint(whole)
    checkpoint.done()
    assert not store.exists("passes")
    assert trained(begun({}), None, Checkpoint(store, "passes")).earlier_s == 0.0


def timeless(stats: PassStats) -> PassStats:
    return replace(stats, seconds=0.0, earlier_s=0.0)
