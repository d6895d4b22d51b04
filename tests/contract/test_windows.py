"""What every window promises: same seed same bytes, a stop at any cut, two ranks, and a law that no row escapes."""

import itertools
from pathlib import Path

import pytest
from loop_kit import Stream, events, lawful, recipe

from headrace.commit.manifest import Manifest

HOUR_MS = 3_600_000
CASES = [
    pytest.param('feed.window={kind="pit",buckets=3,window_s=10800}', id="pit"),
    pytest.param('feed.window={kind="pit",buckets=4,window_s=60}', id="pit-beyond-its-window"),
    pytest.param('feed.window={kind="all",window_s=10800}', id="all"),
    pytest.param('feed.window={kind="sample",share=0.4,window_s=10800}', id="sample"),
]
windows = pytest.mark.parametrize("window", CASES)


def stream_of(folder: Path, *overrides: str, shards: int = 8) -> Stream:
    stream = Stream(folder, recipe("model.dropout=0.0", *overrides))
    for index in range(shards):
        stream.land(events(200 if index == 0 else 60, seed=index, start_ms=index * HOUR_MS))
    return stream


def digests(manifests: list[Manifest]) -> list[str]:
    return [m.state_digest for m in manifests]


@windows
def test_the_same_stream_gives_the_same_bytes_wherever_it_stops(tmp_path: Path, window: str) -> None:
    undisturbed = stream_of(tmp_path / "a", window).advance()
    assert all(lawful(m) for m in undisturbed)
    disturbed = stream_of(tmp_path / "b", window)
    made = list(itertools.chain.from_iterable(disturbed.advance(until=cut) for cut in (2, 3, 7)))
    assert digests(made) == digests(undisturbed)


@windows
def test_two_ranks_stopped_in_mid_rotation_end_alike_and_count_as_one_does(tmp_path: Path, window: str) -> None:
    undisturbed = stream_of(tmp_path / "a", window, shards=6).advance_pair()
    disturbed = stream_of(tmp_path / "b", window, shards=6)
    disturbed.advance_pair(until=3)
    assert disturbed.advance_pair()[-1].state_digest == undisturbed[-1].state_digest
    solo = stream_of(tmp_path / "c", window, shards=6).advance()
    for name in ("rows", "deferrals", "window"):
        assert [m.facts[name] for m in undisturbed] == [m.facts[name] for m in solo]
