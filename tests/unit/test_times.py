"""Late rows and rows from the future: a stated policy, held alike on every rank, with every row accounted for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from loop_kit import Stream, events, lawful, recipe

from headrace.commit.manifest import Manifest
from headrace.config.feed import FeedConfig
from headrace.feed.quarantine import ask_release, set_aside
from headrace.records import Cut, CutRows, RowRange, Rows
from headrace.train.group import Solo
from headrace.train.times import believed_times

HOUR_MS = 3_600_000
NOON_MS = 12 * HOUR_MS


def part(ts: Sequence[int], ranges: tuple[RowRange, ...] = ()) -> CutRows:
    """A cut whose rows, all of shard 5, have these times."""
    zeros = np.zeros(len(ts), dtype=np.uint64)
    rows = Rows(
        shard_N=np.full(len(ts), 5),
        row_N=np.arange(len(ts)),
        group_N=zeros.astype(np.uint8),
        user_N=zeros,
        session_N=zeros,
        item_N=zeros.astype(np.int64),
        ts_N=np.array(ts, dtype=np.int64),
        kind_N=zeros.astype(np.int16),
        target_N=zeros.astype(bool),
        weight_N=zeros.astype(np.float32),
        event_N=zeros,
    )
    cut = Cut(1, ranges, len(ts), events_in=len(ts), duplicate=0, quarantined=0, pending=0, record=9)
    return CutRows(cut, rows, np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize(
    ("feed", "hours", "late", "ahead"),
    [
        ({}, [-999, 0, 999], [False, False, False], [False, False, False]),
        ({"allowed_lateness_s": 3600}, [-2, -1, 0], [True, False, False], [False, False, False]),
        ({"allowed_lateness_s": 0}, [-1, 0, 1], [True, False, False], [False, False, False]),
        ({"max_ahead_s": 3600}, [0, 1, 2], [False, False, False], [False, False, False]),  # their median lies ahead
        ({"max_ahead_s": 3600}, [-1, 0, 2], [False, False, False], [False, False, True]),
        ({"max_ahead_s": 3600}, [0, 48, 49, 51], [False] * 4, [False, False, False, True]),  # after a pause
        ({"max_ahead_s": 3600}, [], [], []),
    ],
)
def test_what_is_late_and_what_lies_ahead(
    feed: dict[str, int], hours: list[int], late: list[bool], ahead: list[bool]
) -> None:
    cut = part([NOON_MS + hour * HOUR_MS for hour in hours])
    times = believed_times(cut, NOON_MS, FeedConfig.model_validate(feed), Solo())
    assert times.late_N(cut.rows).tolist() == late
    assert times.ahead_N(cut.rows).tolist() == ahead


def test_the_warm_up_is_taken_as_it_comes() -> None:
    cut = part([0, NOON_MS, 99 * NOON_MS])
    times = believed_times(cut, 0, FeedConfig(allowed_lateness_s=0, max_ahead_s=1), Solo())
    assert not (times.late_N(cut.rows) | times.ahead_N(cut.rows)).any()


def test_rows_that_a_person_put_back_are_never_late() -> None:
    cut = part([0, 0, 0, NOON_MS], (RowRange(4, 0, 2), RowRange(5, 1, 2, released=True), RowRange(5, 2, 4)))
    times = believed_times(cut, NOON_MS, FeedConfig(allowed_lateness_s=60), Solo())
    assert times.late_N(cut.rows).tolist() == [True, False, True, False]


def with_times(table: pa.Table, changed: dict[int, int]) -> pa.Table:
    ts = table["ts"].to_pylist()
    for row, ts_ms in changed.items():
        ts[row] = ts_ms
    return table.set_column(1, "ts", pa.array(ts))


def stream_with(folder: Path, *overrides: str, changed: dict[int, int]) -> Stream:
    """Hours 1, 2 and 3 follow the warm-up; in hour 2 some rows' times are changed."""
    stream = Stream(folder, recipe("evaluation.eval_share=0", "model.dropout=0.0", *overrides))
    for hour in range(4):
        table = events(200 if hour == 0 else 80, hour, (100 + hour) * HOUR_MS)
        stream.land(with_times(table, changed) if hour == 2 else table)
    return stream


def counters(manifest: Manifest) -> dict[str, int]:
    assert lawful(manifest)
    return dict(manifest.facts["counters"])


def test_late_rows_are_set_aside_and_counted_alike_on_two_ranks(tmp_path: Path) -> None:
    late = {row: HOUR_MS * row for row in range(5)}
    for ranks in (1, 2):
        stream = stream_with(tmp_path / str(ranks), "feed.allowed_lateness_s=3600", changed=late)
        manifests = stream.advance() if ranks == 1 else stream.advance_pair()
        assert [m.facts["fates"]["late_set_aside"] for m in manifests] == [0, 0, 5, 0]
        after = counters(manifests[-1])
        assert (after["late_set_aside"], after["trained_once"], after["events_in"]) == (5, 435, 440)
        (aside,) = set_aside(stream.store)
        assert (aside.where, aside.kind, aside.num_rows) == ("cut 2", "policy", 5)
        with pytest.raises(ValueError, match="policy on time set aside: change the recipe"):
            ask_release(stream.store, aside.number)


def test_without_a_policy_everything_is_taken_as_it_comes(tmp_path: Path) -> None:
    manifests = stream_with(tmp_path, changed={0: 5, 1: 500 * HOUR_MS}).advance()
    assert counters(manifests[-1])["trained_once"] == 440
    assert manifests[-1].facts["watermark_ms"] == 500 * HOUR_MS


@pytest.mark.parametrize("ahead", ["clamp", "set_aside"])
def test_a_row_from_the_future_does_not_move_the_watermark(tmp_path: Path, ahead: str) -> None:
    far = {7: 900_000 * HOUR_MS, 8: 900_000 * HOUR_MS}
    stream = stream_with(tmp_path, "feed.max_ahead_s=7200", f"feed.ahead={ahead}", changed=far)
    manifests = stream.advance()
    honest_ms = 103 * HOUR_MS + 79_000
    assert [m.facts["watermark_ms"] for m in manifests][-1] == honest_ms
    assert [m.facts["clamped"] for m in manifests] == ([0, 0, 2, 0] if ahead == "clamp" else [0] * 4)
    after = counters(manifests[-1])
    assert (after["quarantined"], after["trained_once"]) == ((0, 440) if ahead == "clamp" else (2, 438))


def test_a_stream_that_pauses_for_long_goes_on_afterwards(tmp_path: Path) -> None:
    stream = stream_with(tmp_path, "feed.max_ahead_s=3600", "feed.ahead=set_aside", changed={})
    stream.land(events(80, 9, 5000 * HOUR_MS))
    manifests = stream.advance()
    assert counters(manifests[-1])["quarantined"] == 0
    assert manifests[-1].facts["watermark_ms"] == 5000 * HOUR_MS + 79_000


def test_a_cut_of_late_rows_alone_stalls_nothing(tmp_path: Path) -> None:
    stream = stream_with(tmp_path, "feed.allowed_lateness_s=60", changed={row: row for row in range(80)})
    manifests = stream.advance()
    assert [m.facts["fates"]["late_set_aside"] for m in manifests] == [0, 0, 80, 0]
    assert counters(manifests[-1])["late_set_aside"] == 80


def test_a_late_row_does_not_make_its_repaired_copy_a_duplicate(tmp_path: Path) -> None:
    stream = Stream(
        tmp_path, recipe("evaluation.eval_share=0", "columns.event_id=event_id", "feed.allowed_lateness_s=3600")
    )
    for hour in range(3):
        table = events(200 if hour == 0 else 80, hour, (100 + hour) * HOUR_MS)
        ids = [f"{hour}-{row}" for row in range(table.num_rows)]
        if hour == 1:
            table = with_times(table, {0: 5, 1: 5})
        if hour == 2:
            ids[:3] = ["1-0", "1-1", "1-2"]
        stream.land(table.append_column("event_id", pa.array(ids)))
    after = counters(stream.advance()[-1])
    assert (after["late_set_aside"], after["duplicate"], after["trained_once"]) == (2, 1, 357)


def test_rows_of_a_rejected_cut_are_trained_however_late_they_come_back(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe("evaluation.eval_share=0", "feed.allowed_lateness_s=600"))
    for hour in range(4):
        table = events(200 if hour == 0 else 120, hour, (100 + hour) * HOUR_MS)
        if hour == 1:
            table = table.set_column(0, "item_id", pa.array(np.full(120, 7)))
        stream.land(table)
    assert [m.verdict for m in stream.advance()] == ["publish", "reject", "publish", "publish"]
    (aside,) = set_aside(stream.store)
    ask_release(stream.store, aside.number)
    stream.recipe = recipe("evaluation.eval_share=0", "feed.allowed_lateness_s=600", "gate.max_item_share=1")
    after = counters(stream.advance()[-1])
    assert (after["late_set_aside"], after["quarantined"], after["trained_once"]) == (0, 0, 560)
