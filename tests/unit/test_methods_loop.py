"""All methods together in the loop: several ranks, rows that pass to other items, and increments that are undone."""

from pathlib import Path

from loop_kit import Stream, changing_stream, lawful, poisoned_stream

from headrace.commit.chain import Chain
from headrace.train.state import LearnerState

METHODS = 'methods=[{kind="online"},{kind="replay",ratio=0.5},{kind="distill"},{kind="ewc",examples=60}]'
LIGHT = METHODS.replace("0.5", "0.2").replace('"distill"', '"distill",weight=0.01').replace("=60", "=60,strength=0.01")
"""Too light to save the model from a poisoned cut."""


def stream_of(folder: Path, *overrides: str) -> Stream:
    return changing_stream(folder, METHODS, *overrides, shards=4)


def test_two_ranks_stopped_halfway_end_with_the_same_state(tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a").advance_pair()
    disturbed = stream_of(tmp_path / "b")
    disturbed.advance_pair(until=1)
    assert disturbed.advance_pair()[-1].state_digest == undisturbed[-1].state_digest
    assert lawful(undisturbed[-1])
    assert "methods/ewc" in undisturbed[-1].parts
    facts = undisturbed[-1].facts
    assert facts["num_slots"] < facts["num_items"]  # rows were given on


def test_a_rejected_increment_leaves_the_methods_as_they_were(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, "gate.window=0")
    before = stream.advance(until=1)[-1]

    def poison(state: LearnerState) -> None:
        next(state.model.encoder.parameters()).data.fill_(float("nan"))

    (rejected,) = stream.advance(until=2, change=poison)
    assert rejected.verdict == "reject"
    assert rejected.parts == before.parts
    assert stream.advance(until=3)[-1].verdict == "publish"


def test_a_roll_back_takes_the_methods_back_and_restarts_to_the_same_bytes(tmp_path: Path) -> None:
    words = (LIGHT, "replay.max_bytes=1000000")
    undisturbed = poisoned_stream(tmp_path / "a", *words).advance()
    assert any(m.facts["review"]["rolled_back_to"] for m in undisturbed)
    disturbed = poisoned_stream(tmp_path / "b", *words)
    for cut in range(len(undisturbed)):
        disturbed.advance(until=cut)
    latest = Chain(disturbed.store).latest()
    assert latest is not None
    assert latest.state_digest == undisturbed[-1].state_digest
