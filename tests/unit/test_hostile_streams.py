"""What goes wrong in a stream: each case gives a clear error or a row of the quarantine, and the law still holds."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from loop_kit import Stream, events, lawful, recipe
from pyarrow import fs

from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.errors import StoreError
from headrace.feed.landing import shard_name
from headrace.feed.quarantine import Aside, set_aside
from headrace.store import store as store_module
from headrace.store.store import Store, part_name

HOUR_MS = 3_600_000


def around(folder: Path, table: pa.Table, *overrides: str) -> Stream:
    """A warm-up, then this shard, then one more."""
    stream = Stream(folder, recipe("evaluation.eval_share=0", "model.dropout=0.0", *overrides))
    stream.land(events(200, 0, 100 * HOUR_MS))
    stream.land(table)
    stream.land(events(80, 2, 102 * HOUR_MS))
    return stream


def shard(num_events: int = 80) -> pa.Table:
    return events(num_events, 1, 101 * HOUR_MS)


def with_value(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def trained_around(stream: Stream) -> tuple[dict[str, int], Aside]:
    """What the law says after the stream went on past the bad shard, and what was set aside."""
    manifests = stream.advance()
    assert all(lawful(m) for m in manifests)
    assert manifests[-1].verdict == "publish"
    (aside,) = set_aside(stream.store)
    return manifests[-1].facts["counters"], aside


def test_a_truncated_file_is_set_aside(tmp_path: Path) -> None:
    stream = around(tmp_path, shard())
    path = Path(stream.landing.uri_of(shard_name(1)))
    path.write_bytes(path.read_bytes()[:-30])
    counters, aside = trained_around(stream)
    assert "cannot be read as Parquet" in aside.reason
    assert (counters["events_in"], counters["trained_once"]) == (280, 280), "its rows were never known"


def test_a_missing_column_sets_the_file_aside(tmp_path: Path) -> None:
    counters, aside = trained_around(
        around(tmp_path, shard().rename_columns(["item_id", "ts", "visit", "user_id", "event"]))
    )
    assert "no column 'session_id' (columns.session_id)" in aside.reason
    assert (counters["events_in"], counters["quarantined"], counters["trained_once"]) == (360, 80, 280)


def test_a_wrong_type_sets_the_file_aside(tmp_path: Path) -> None:
    table = shard()
    counters, aside = trained_around(around(tmp_path, table.set_column(1, "ts", pa.array(["noon"] * 80))))
    assert "column 'ts' (columns.ts) is string: it must be a timestamp" in aside.reason
    assert (counters["quarantined"], counters["trained_once"]) == (80, 280)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("ts", -1, "lies before 1970"),
        ("ts", 2**62, "lies after 2200"),
        ("item_id", None, "every row needs an item"),
    ],
)
def test_a_bad_row_is_dropped_and_counted(tmp_path: Path, column: str, value: int | None, reason: str) -> None:
    stream = around(tmp_path, with_value(shard(), column, 40, value))
    counters, aside = trained_around(stream)
    assert reason in aside.reason
    assert aside.kind == "rows"
    assert (counters["quarantined"], counters["trained_once"]) == (1, 359)


def test_a_bad_row_ends_with_the_same_state_on_resume_and_over_two_ranks(tmp_path: Path) -> None:
    table = with_value(shard(), "ts", 40, -1)
    undisturbed = around(tmp_path / "a", table).advance_pair()
    disturbed = around(tmp_path / "b", table)
    disturbed.advance_pair(until=1)
    assert disturbed.advance_pair()[-1].state_digest == undisturbed[-1].state_digest
    assert undisturbed[-1].facts["counters"]["quarantined"] == 1


def test_a_time_far_ahead_that_is_possible_is_the_gates_or_the_policys(tmp_path: Path) -> None:
    table = with_value(shard(), "ts", 40, 300_000 * HOUR_MS)
    counters, aside = trained_around(around(tmp_path / "gate", table, "catalogue.alive_s=86400"))
    assert (aside.kind, counters["quarantined"]) == ("cut", 80)
    policy = ("feed.max_ahead_s=7200", "feed.ahead=set_aside")
    counters, aside = trained_around(around(tmp_path / "policy", table, "catalogue.alive_s=86400", *policy))
    assert (aside.kind, counters["quarantined"], counters["trained_once"]) == ("policy", 1, 359)


def test_a_shard_of_unknown_items_alone_is_learned(tmp_path: Path) -> None:
    table = shard()
    unknown = table.set_column(0, "item_id", pa.array(10**12 + np.arange(80) % 9))
    manifests = around(tmp_path, unknown).advance()
    assert [m.verdict for m in manifests] == ["publish"] * 3
    assert manifests[1].facts["num_items"] == manifests[0].facts["num_items"] + 9
    assert all(lawful(m) for m in manifests)


def test_a_hundred_thousand_new_items_at_once(tmp_path: Path) -> None:
    many = shard(100_000)
    new = many.set_column(0, "item_id", pa.array(1000 + np.arange(100_000)))
    quick = ("objective.kind=sampled_softmax", "objective.negatives=64", "train.batch=4096", "model.width=8")
    few = ("evaluation.max_queries=20", "feed.max_events_per_user=20", "gate.max_user_share=1")
    manifests = around(tmp_path, new, *quick, *few).advance()
    assert [m.verdict for m in manifests] == ["publish"] * 3
    assert manifests[1].facts["num_items"] >= 100_000
    assert all(lawful(m) for m in manifests)


class Shaky:
    """A file system that can be made to fail; everything else is the folder's."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._inner = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self.num_writes = 0
        self.full_at: int | None = None
        """The write of this number finds no space; so do those after it."""
        self.away_at: int | None = None
        """From this write on nothing is reached, until ``away_s`` seconds have been waited."""
        self.away_s = float("inf")
        self.waited_s = 0.0

    def wait(self, seconds: float) -> None:
        self.waited_s += seconds

    def open_output_stream(self, path: str) -> Any:
        self.num_writes += 1
        self._reach()
        if self.full_at is not None and self.num_writes >= self.full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._inner.create_dir(os.path.dirname(path), recursive=True)
        return self._inner.open_output_stream(path)

    def open_input_stream(self, path: str) -> Any:
        self._reach()
        return self._inner.open_input_stream(path)

    def get_file_info(self, what: Any) -> Any:
        self._reach()
        return self._inner.get_file_info(what)

    def delete_file(self, path: str) -> None:
        self._reach()
        self._inner.delete_file(path)

    def _reach(self) -> None:
        if self.away_at is not None and self.num_writes >= self.away_at and self.waited_s < self.away_s:
            raise OSError("AWS Error NETWORK_CONNECTION: curlCode: 7, Couldn't connect to server")


@pytest.fixture
def shaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shaky:
    made = Shaky(tmp_path / "bucket")
    monkeypatch.setattr(store_module, "resolve", lambda _: (made, "."))
    return made


def on_store(folder: Path, shaky: Shaky) -> Stream:
    stream = around(folder / "stream", shard())
    stream.store = Store("s3://bucket", wait=shaky.wait)
    return stream


def end_of(manifest: Manifest) -> tuple[Any, Any]:
    """What a run has come to. (Digests also name what the ledger held at each cut: how far landing was ahead.)"""
    assert lawful(manifest)
    return manifest.parts, manifest.facts["counters"]


def undisturbed(folder: Path) -> tuple[tuple[Any, Any], int]:
    """The end of the same stream on a store that never fails, and how many writes it took."""
    with pytest.MonkeyPatch.context() as patch:
        calm = Shaky(folder / "calm")
        patch.setattr(store_module, "resolve", lambda _: (calm, "."))
        return end_of(on_store(folder / "undisturbed", calm).advance()[-1]), calm.num_writes


def is_whole(store: Store, manifest: Manifest) -> bool:
    return all(store.exists(part_name(ref.sha256)) for ref in manifest.parts.values())


def newest(stream: Stream) -> tuple[Any, Any]:
    manifest = Chain(stream.store).latest()
    assert manifest is not None
    return end_of(manifest)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_full_disk_is_said_leaves_nothing_half_committed_and_the_run_goes_on_after(
    tmp_path: Path, shaky: Shaky, share: float
) -> None:
    end, num_writes = undisturbed(tmp_path)
    stream = on_store(tmp_path, shaky)
    shaky.full_at = 1 + int(share * num_writes)
    with pytest.raises(StoreError, match=r"no space is left for .* in s3://bucket: free some\. What was committed"):
        stream.advance()
    assert all(is_whole(stream.store, m) for m in Chain(stream.store).manifests())
    shaky.full_at = None
    stream.advance()
    assert newest(stream) == end


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_store_that_is_away_for_ten_seconds_is_waited_for(tmp_path: Path, shaky: Shaky, share: float) -> None:
    end, num_writes = undisturbed(tmp_path)
    stream = on_store(tmp_path, shaky)
    shaky.away_at, shaky.away_s = 1 + int(share * num_writes), 10.0
    stream.advance()
    assert newest(stream) == end
    assert 10.0 <= shaky.waited_s < 20.0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_store_that_stays_away_ends_the_run_in_words_and_it_goes_on_after(
    tmp_path: Path, shaky: Shaky, share: float
) -> None:
    end, num_writes = undisturbed(tmp_path)
    stream = on_store(tmp_path, shaky)
    shaky.away_at = 1 + int(share * num_writes)
    with pytest.raises(StoreError, match=r"in s3://bucket has been away for 31 s .* the same command goes on from it"):
        stream.advance()
    shaky.away_at = None
    stream.advance()
    assert newest(stream) == end


def test_what_will_not_pass_by_waiting_is_not_waited_for(shaky: Shaky, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("s3://bucket", wait=shaky.wait)

    def denied(_: str) -> None:
        raise OSError("AWS Error ACCESS_DENIED during PutObject operation: Access Denied.")

    monkeypatch.setattr(shaky, "open_output_stream", denied)
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        store.put("x", b"")
    with pytest.raises(FileNotFoundError):
        store.get("y")
    assert shaky.waited_s == 0


def test_a_write_that_finds_the_disk_full_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.put("x", b"old")

    def fills_up(path: Path, content: bytes) -> None:
        path.open("wb").write(content[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fills_up)
    with pytest.raises(StoreError, match="no space is left for x in"):
        store.put("x", b"new")
    assert list((tmp_path / ".tmp").iterdir()) == []
    assert store.get("x") == b"old"
