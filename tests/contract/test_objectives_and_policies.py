"""What every objective, optimizer, replay policy and mix of methods promises: it comes back from JSON, and a run that
stops after every increment ends with the bytes of one that never stopped, lawfully, with a loss that falls."""

from pathlib import Path

import pytest
from loop_kit import Stream, events, lawful, recipe

from headrace.commit.chain import Chain
from headrace.config.load import dump_recipe, read_resolved

REPLAY = ('methods=[{kind="online"},{kind="replay"}]', "replay.max_bytes=65536", "replay.segment_bytes=8192")
METHODS = 'methods=[{kind="online"},{kind="replay"},{kind="distill",own_targets=0.5},{kind="ewc",examples=50}]'
PARTS = {
    "softmax": (),
    "softmax, sessions": ("objective.examples=sessions",),
    "sampled": ('objective={kind="sampled_softmax",negatives=16}',),
    "sampled, uniform": ('objective={kind="sampled_softmax",negatives=16,draw="uniform"}',),
    "adagrad": ('train.optimizer={kind="row_adagrad"}',),
    "adagrad, sampled": ('objective={kind="sampled_softmax",negatives=16}', 'train.optimizer={kind="row_adagrad"}'),
    "reservoir": (*REPLAY, 'replay.policy={kind="reservoir"}'),
    "recency": (*REPLAY, 'replay.policy={kind="recency",half_life_s=7200}'),
    "frequency": (*REPLAY, 'replay.policy={kind="frequency"}'),
    "prior": (METHODS, 'experts=[{kind="popular"},{kind="covisit"}]', 'model.prior={experts=["popular","covisit"]}'),
    "herding": (*REPLAY, 'replay.policy={kind="frequency",within="herding"}', "replay.max_bytes=16384"),
    "average": ("train.average=last_pass", "train.epochs=2"),
    "average, sampled": ("train.average=last_pass", 'objective={kind="sampled_softmax",negatives=16}'),
    "all methods": (METHODS, "catalogue.forget_s=5000"),
    "all methods, sampled": (METHODS, 'objective={kind="sampled_softmax",negatives=16}'),
}


def stream_of(folder: Path, words: tuple[str, ...]) -> Stream:
    stream = Stream(folder, recipe(*words, "model.dropout=0.0", "train.warmup_epochs=4", "train.learning_rate=0.01"))
    for index in range(4):
        stream.land(events(300 if index == 0 else 80, seed=index, start_ms=index * 3_600_000))
    return stream


@pytest.mark.parametrize("words", PARTS.values(), ids=PARTS)
def test_it_comes_back_from_json(words: tuple[str, ...]) -> None:
    made = recipe(*words)
    assert read_resolved(dump_recipe(made)) == made


@pytest.mark.parametrize("words", PARTS.values(), ids=PARTS)
def test_stopped_or_not_the_bytes_are_the_same_and_the_loss_falls(words: tuple[str, ...], tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a", words).advance()
    disturbed = stream_of(tmp_path / "b", words)
    for cut in range(4):
        disturbed.advance(until=cut)
    latest = Chain(disturbed.store).latest()
    assert latest is not None
    assert latest.state_digest == undisturbed[-1].state_digest
    assert all(lawful(m) for m in undisturbed)
    losses = undisturbed[0].facts["training"]["loss_per_epoch"]
    assert losses[-1] < losses[0]
