"""The past by key: found again, bounded, and the same whatever the sizes in which it came."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.history.segments import SegmentLog


def rows(keys: list[int], start_ts: int = 0) -> dict[str, np.ndarray]:
    return {
        "key": np.array(keys, dtype=np.uint64),
        "ts": start_ts + np.arange(len(keys), dtype=np.int64),
        "item": np.arange(len(keys), dtype=np.int32) + start_ts,
    }


def log(max_per_key: int = 100, max_bytes: int = 10**6) -> SegmentLog:
    return SegmentLog({"item": np.int32}, max_per_key, max_bytes)


def items_of(history: SegmentLog, key: int) -> list[int]:
    found = history.find(np.array([key], dtype=np.uint64))
    return found["item"][np.argsort(found["ts"], kind="stable")].tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=12), min_size=1, max_size=12))
def test_every_row_is_found_again_in_order(parts: list[list[int]]) -> None:
    history, expected, ts = log(), {key: [] for key in range(7)}, 0
    for part in parts:
        history.append(rows(part, ts))
        for place, key in enumerate(part):
            expected[key].append(ts + place)
        ts += len(part)
    assert {key: items_of(history, key) for key in range(7)} == expected
    assert len(history.state()) <= 8, "segments are merged as a binary counter is"


def test_only_the_newest_of_a_key_stay_once_merged() -> None:
    history = log(max_per_key=3)
    for ts in range(0, 50, 5):
        history.append(rows([1] * 5, ts))
    assert items_of(history, 1)[-3:] == [47, 48, 49]
    assert len(history) < 15


def test_bytes_are_bounded_and_the_oldest_rows_go_first() -> None:
    history = log(max_bytes=20 * 100)
    for part in range(40):
        history.append(rows(list(range(part * 10, part * 10 + 10)), part * 10))
        assert history.size_bytes <= 20 * 100
    assert items_of(history, 399) == [399]
    assert items_of(history, 0) == []


def test_old_rows_leave_when_their_segment_is_merged() -> None:
    history = log()
    history.append(rows([1, 2], 0))
    history.append(rows([3, 4], 1000), oldest_ms=500)
    assert items_of(history, 1) == []
    assert items_of(history, 3) == [1000]


def test_state_goes_round_and_segments_are_never_changed() -> None:
    history = log()
    history.append(rows([5, 5, 6], 0))
    before = history.state()
    kept = {name: column.copy() for name, column in before[0].items()}
    other = log()
    other.load(before)
    other.append(rows([5], 100))
    assert items_of(other, 5) == [0, 1, 100]
    assert all((before[0][name] == column).all() for name, column in kept.items())
    assert items_of(history, 5) == [0, 1]
