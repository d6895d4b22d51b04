"""Replay inside the loop, with everything else on: the bit test, the law, and what a verdict means for the buffer."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from loop_kit import Stream, events, lawful, poisoned_stream, recipe

from headrace.commit.chain import Chain
from headrace.train.state import LearnerState

REPLAY = 'methods=[{kind="online"},{kind="replay",ratio=1.0}]'
EVERYTHING = (
    REPLAY,
    'experts=[{kind="popular",half_life_s=3600},{kind="covisit"},{kind="similar_sessions"},{kind="own_items"}]',
    "replay.max_bytes=65536",
    "replay.segment_bytes=8192",
    "columns.event_id=event_id",
    "model.dropout=0.0",
)


def stream_of(folder: Path, *overrides: str, shards: int = 5) -> Stream:
    stream = Stream(folder, recipe(*EVERYTHING, *overrides))
    for index in range(shards):
        table = events(300 if index == 0 else 80, seed=index, start_ms=index * 3_600_000)
        stream.land(table.append_column("event_id", pa.array(np.arange(len(table)) + 1000 * index)))
    return stream


@pytest.mark.parametrize("policy", ["reservoir", "recency", "frequency"])
def test_a_run_that_stops_after_every_increment_ends_with_the_same_state(tmp_path: Path, policy: str) -> None:
    extra = ",half_life_increments=2" if policy == "recency" else ""
    words = f'replay.policy={{kind="{policy}"{extra}}}'
    undisturbed = stream_of(tmp_path / "a", words).advance()
    disturbed = stream_of(tmp_path / "b", words)
    for cut in range(5):
        disturbed.advance(until=cut)
    latest = Chain(disturbed.store).latest()
    assert latest is not None
    assert latest.state_digest == undisturbed[-1].state_digest
    assert all(lawful(m) for m in undisturbed)
    replayed = [m.facts["training"]["replayed"] for m in undisturbed]
    assert replayed[0] == 0
    assert all(number > 20 for number in replayed[1:])
    assert {name.split("/")[0] for name in undisturbed[-1].parts} >= {"replay", "experts", "seen"}


def test_two_ranks_stopped_halfway_end_with_the_same_state(tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a").advance_pair()
    disturbed = stream_of(tmp_path / "b")
    disturbed.advance_pair(until=2)
    assert disturbed.advance_pair()[-1].state_digest == undisturbed[-1].state_digest
    assert lawful(undisturbed[-1])


def test_another_rank_count_deals_the_past_out_again(tmp_path: Path) -> None:
    stream = stream_of(tmp_path)
    stream.advance(until=2)
    pair = stream.advance_pair()
    assert all(m.facts["training"]["replayed"] > 20 for m in pair)
    assert {name.split("/")[1] for name in pair[-1].parts if name.startswith("replay/")} == {"0000", "0001"}


def test_a_rejected_increment_leaves_nothing_to_replay(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, "gate.window=0", shards=4)
    before = stream.advance(until=1)[-1]

    def poison(state: LearnerState) -> None:
        next(state.model.encoder.parameters()).data.fill_(float("nan"))

    (rejected,) = stream.advance(until=2, change=poison)
    assert rejected.verdict == "reject"
    assert rejected.parts == before.parts
    (after,) = stream.advance(until=3)
    assert after.facts["training"]["replayed"] > 20
    assert lawful(after)


def test_a_roll_back_drops_the_reverted_cuts_and_restarts_to_the_same_bytes(tmp_path: Path) -> None:
    words = (REPLAY.replace("1.0", "0.2"), "replay.max_bytes=1000000", "replay.segment_bytes=8192")
    undisturbed = poisoned_stream(tmp_path / "a", *words).advance()
    back = next(m for m in undisturbed if m.facts["review"]["rolled_back_to"])
    dropped: list[tuple[int, ...]] = []

    disturbed = poisoned_stream(tmp_path / "b", *words)

    def listen(state: LearnerState) -> None:
        assert state.replay is not None
        real = state.replay.drop
        state.replay.drop = lambda cuts: (dropped.append(tuple(cuts)), real(cuts))[1]  # type: ignore[method-assign]

    for cut in range(len(undisturbed)):
        disturbed.advance(until=cut, change=listen)
    latest = Chain(disturbed.store).latest()
    assert latest is not None
    assert latest.state_digest == undisturbed[-1].state_digest
    assert dropped[0] == tuple(range(back.facts["review"]["trusted"] + 1, back.cut))
