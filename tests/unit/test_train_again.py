"""What is trained again: whose rows, against which context, counted once, and never what was set aside."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_kit import Stream, events, lawful, recipe

from headrace.feed.ledger import LedgerReader
from headrace.feed.rows import cut_rows
from headrace.feed.window import picked_N
from headrace.records import KEY_GROUPS, Cut, CutRows, Rows
from headrace.train import questions
from headrace.train.again import Due, due
from headrace.train.deferrals import Deferrals
from headrace.train.group import Solo
from headrace.train.intake import take
from headrace.train.state import resume
from headrace.train.times import believed_times

HOUR_MS = 3_600_000
PIT = 'feed.window={kind="pit",buckets=3,window_s=14400}'
ALL = 'feed.window={kind="all",window_s=14400}'


def stream_of(folder: Path, *overrides: str, shards: int = 7, num_events: int = 60) -> Stream:
    stream = Stream(folder, recipe("evaluation.eval_share=0", "model.dropout=0", *overrides))
    for index in range(shards):
        stream.land(events(200 if index == 0 else num_events, seed=index, start_ms=index * HOUR_MS))
    return stream


def part_of(stream: Stream, cut: int) -> CutRows:
    reader = LedgerReader(stream.store)
    return cut_rows(reader, reader.cut(cut), stream.recipe.columns, range(KEY_GROUPS))


def due_at(stream: Stream, cut: int) -> Due:
    """What this cut is due to train, as of the newest commit, which is the one before it."""
    state, part = resume(stream.store, stream.recipe, Solo(), torch.device("cpu")), part_of(stream, cut)
    state.catalogue.admit(part.item_I)
    times = believed_times(part, state.watermark_ms, stream.recipe.feed, Solo())
    own = take(part.rows, state.catalogue, state.history, state.seen, state.recipe, times, part.cut.window)
    return due(part, own, state, Solo())


def mine(cut: Cut, rows: Rows) -> int:
    """How many of these rows are of those whose turn it is."""
    assert cut.window is not None
    return int(picked_N(cut.window, rows.user_N, rows.session_N).sum())


def test_a_row_waits_for_its_turn_and_is_then_trained_once_by_the_law(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, PIT)
    manifests = stream.advance()
    parts = [part_of(stream, cut) for cut in range(7)]
    for cut, manifest in enumerate(manifests):
        assert lawful(manifest)
        now = parts[cut].cut
        fates, window = manifest.facts["fates"], manifest.facts["window"]
        assert fates["trained"] == mine(now, parts[cut].rows)
        assert fates["trained"] + fates["deferred"] == now.num_rows
        # a turn comes every third cut: at it, the two cuts before wait for theirs; the warm-up had trained all
        assert window["at_last"] == sum(mine(now, parts[before].rows) for before in (cut - 1, cut - 2) if before > 0)
        reached = range(max(0, cut - 4), cut)
        assert window["again"] == sum(mine(now, parts[before].rows) for before in reached)
    last = manifests[-1].facts
    assert last["counters"]["deferred"] == sum(count for _, count in last["deferrals"]["waiting"])
    assert last["deferrals"]["left"] == 0
    assert [cut for cut, _ in last["deferrals"]["waiting"]] == [5, 6]


def test_rows_of_others_are_asked_counted_and_remembered_as_ever(tmp_path: Path) -> None:
    without = stream_of(tmp_path / "a").advance()[-1]
    with_turns = stream_of(tmp_path / "b", PIT).advance()[-1]
    for folder in ("experts", "history", "catalogue"):
        assert with_turns.folder(folder) == without.folder(folder), folder
    assert with_turns.facts["metrics"]["queries"] == without.facts["metrics"]["queries"]
    assert with_turns.folder("model") != without.folder("model")


def test_a_window_of_everyone_defers_nothing_and_trains_all_of_it(tmp_path: Path) -> None:
    manifests = stream_of(tmp_path, ALL).advance()
    assert [m.facts["window"]["again"] for m in manifests] == [0, 200, 260, 320, 380, 240, 240]
    assert all(m.facts["window"]["at_last"] == 0 for m in manifests)
    assert manifests[-1].facts["counters"]["deferred"] == 0


def test_rows_that_no_sample_drew_are_told_apart_when_they_leave(tmp_path: Path) -> None:
    manifests = stream_of(tmp_path, 'feed.window={kind="sample",share=0.2,window_s=7200}').advance()
    assert all(lawful(m) for m in manifests)
    facts = manifests[-1].facts
    assert facts["deferrals"]["left"] > 0
    waiting = sum(count for _, count in facts["deferrals"]["waiting"])
    assert facts["counters"]["deferred"] == waiting + facts["deferrals"]["left"]


@pytest.mark.parametrize("context", ["session", "user"])
@pytest.mark.parametrize("shape", ["prefixes", "sessions"])
def test_a_row_read_again_sees_what_its_owner_did_strictly_before_it_and_nothing_else(
    tmp_path: Path, context: str, shape: str
) -> None:
    words = (f"inputs.context={context}", "inputs.max_events=40", f"objective.examples={shape}")
    stream = stream_of(tmp_path, ALL, *words)
    for index in range(7, 9):  # sessions that go on from cut to cut
        table = events(60, seed=5, start_ms=index * HOUR_MS)
        stream.land(table)
    stream.advance(until=7)
    wanted = due_at(stream, 8)
    made = questions.examples(wanted.intake, stream.recipe.inputs, shape)
    assert len(made.target_T) > 150
    log = [part_of(stream, cut).rows for cut in range(9)]
    key_N = np.concatenate([rows.session_N if context == "session" else rows.user_N for rows in log])
    ts_N = np.concatenate([rows.ts_N for rows in log])
    named = [(shard, row) for rows in log for shard, row in zip(rows.shard_N, rows.row_N, strict=True)]
    place = {name: index for index, name in enumerate(named)}
    contexts = made.contexts_of(np.arange(len(made.target_T)))
    first_cut = part_of(stream, 8).cut.window.first
    seen_whole = 0
    for target, (shard, row) in enumerate(zip(made.shard_T, made.row_T, strict=True)):
        at = place[shard, row]
        start, stop = contexts.offset_R[target : target + 2]
        found = contexts.ts_T[start:stop].tolist()
        before = sorted(ts_N[(key_N == key_N[at]) & (ts_N < ts_N[at])].tolist())
        assert found == before[len(before) - len(found) :], "the newest of them, in order"
        seen_whole += len(found) == min(40, len(before))
    assert first_cut > 0
    assert seen_whole > 0.9 * len(made.target_T)


def test_a_window_teaches_what_one_cut_of_its_rows_would(tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "a", 'feed.window={kind="all",window_s=864000}', shards=4)
    stream.advance(until=2)
    again = questions.examples(due_at(stream, 3).intake, stream.recipe.inputs, "prefixes")
    whole = Stream(tmp_path / "b", stream.recipe)
    tables = [events(200 if index == 0 else 60, seed=index, start_ms=index * HOUR_MS) for index in range(4)]
    whole.land(pa.concat_tables(tables))
    whole.advance(until=-1)
    once = questions.examples(due_at(whole, 0).intake, whole.recipe.inputs, "prefixes")
    order = np.lexsort((again.row_T, again.shard_T))
    again = again.take(order)
    for name in ("target_T", "ts_T", "weight_T"):
        np.testing.assert_array_equal(getattr(again, name), getattr(once, name))
    for name in ("item_T", "ts_T", "kind_T", "offset_R", "as_of_Q", "session_Q"):
        np.testing.assert_array_equal(getattr(again.contexts, name), getattr(once.contexts, name))


def test_sessions_without_a_name_are_derived_over_the_window(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, ALL, "columns.session_id=none")
    stream.advance(until=5)
    wanted = due_at(stream, 6)
    state = resume(stream.store, stream.recipe, Solo(), torch.device("cpu"))
    past = state.history.find(np.unique(wanted.intake.owner_N))
    known = set(past["session"].tolist()) | set(wanted.own.session_N.tolist())
    assert set(wanted.intake.session_N.tolist()) <= known
    assert (wanted.intake.session_N != 0).all()


def test_what_was_set_aside_stays_so_and_a_time_that_was_given_stays_given(tmp_path: Path) -> None:
    words = ("columns.event_id=event_id", "feed.max_events_per_user=2", "feed.max_ahead_s=7200")
    stream = stream_of(tmp_path, ALL, *words, shards=0)
    for index in range(4):
        table = events(200 if index == 0 else 60, seed=index, start_ms=index * HOUR_MS)
        ids = list(range(1000 * index, 1000 * index + len(table)))
        ids[:10] = range(10)  # ten that repeat the warm-up's
        times = table["ts"].to_numpy().copy()
        if index == 2:
            times[50] += 50 * HOUR_MS
        stream.land(table.set_column(1, "ts", pa.array(times)).append_column("event_id", pa.array(ids)))
    manifests = stream.advance(until=2)
    fates = [m.facts["fates"] for m in manifests]
    assert [f["duplicate"] for f in fates] == [0, 10, 10]
    assert fates[1]["capped"] > 0
    assert manifests[2].facts["clamped"] == 1
    wanted = due_at(stream, 3)
    assert wanted.num_again == sum(f["trained"] for f in fates)
    assert wanted.intake.rows.ts_N.max() < 5 * HOUR_MS
    assert len(np.unique(wanted.intake.rows.event_N)) == len(wanted.intake.rows)


def test_held_out_users_are_not_trained_again_either(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, ALL, "evaluation.eval_share=0.3")
    manifests = stream.advance(until=5)
    assert all(lawful(m) for m in manifests)
    reached = manifests[2:6]
    assert due_at(stream, 6).num_again == sum(m.facts["fates"]["trained"] for m in reached)


def spam(seed: int) -> pa.Table:
    """What the gate rejects: one item in nearly all events."""
    table = events(120, seed=seed, start_ms=seed * HOUR_MS)
    return table.set_column(0, "item_id", pa.array(np.full(120, 7)))


def test_a_rejected_turn_trains_nobody_and_its_rows_are_not_read_again(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, PIT, shards=3)
    stream.land(spam(3))
    for index in range(4, 8):
        stream.land(events(60, seed=index, start_ms=index * HOUR_MS))
    manifests = stream.advance()
    assert [m.verdict for m in manifests].count("reject") == 1
    assert all(lawful(m) for m in manifests)
    parts = [part_of(stream, cut) for cut in range(8)]
    turn = parts[6].cut  # of those whose turn at cut 3 was rejected
    # the window of cut 6 begins an hour after cut 1's: rows of cuts 1 and 2 have waited for two rotations
    assert turn.window is not None
    assert turn.window.first <= 2
    wanted = sum(mine(turn, parts[cut].rows) for cut in (2, 4, 5))
    assert manifests[6].facts["window"]["at_last"] == wanted
    assert 3 not in dict(manifests[6].facts["deferrals"]["waiting"])


def test_a_state_that_was_stored_is_the_state(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, PIT, "feed.max_events_per_user=3")
    stream.advance()
    state = resume(stream.store, stream.recipe, Solo(), torch.device("cpu"))
    assert len(state.deferrals.noted) > 0
    assert state.deferrals.num_deferred == state.rows["deferred"] > 0
    again = Deferrals.from_state(state.deferrals.state(), state.deferrals.noted)
    assert again == state.deferrals


def test_turns_may_end_and_begin_again(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, PIT, shards=3)
    stream.advance()
    for overrides in ((), (PIT,)):
        stream.recipe = recipe("evaluation.eval_share=0", "model.dropout=0", *overrides)
        for index in range(2):
            shard = stream._num_landed + index
            stream.land(events(60, seed=shard, start_ms=shard * HOUR_MS))
        made = stream.advance()
        assert all(lawful(m) for m in made)
    assert made[-1].facts["deferrals"]["left"] > 0, "what waited as turns ended"
    assert made[-1].facts["window"]["first_cut"] == 5


CUTS = st.lists(st.tuples(st.sampled_from(["some", "few", "none", "spam", "again"]), st.integers(0, 40)), max_size=6)
WINDOWS = st.sampled_from([PIT, 'feed.window={kind="sample",share=0.3,window_s=7200}', ALL])


@settings(max_examples=8, deadline=None)
@given(cuts=CUTS, window=WINDOWS, share=st.sampled_from([0.0, 0.5]), until=st.integers(0, 6))
def test_the_law_holds_whatever_lands_and_is_rejected(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[str, int]], window: str, share: float, until: int
) -> None:
    stream = Stream(
        tmp_path_factory.mktemp("law"),
        recipe(f"evaluation.eval_share={share}", "feed.max_events_per_user=5", window),
    )
    stream.land(events(60, seed=0))
    for seed, (what, size) in enumerate(cuts, start=1):
        sizes = {"some": 30 + size, "few": size, "none": 0, "again": 25}
        start_ms = (seed if what != "again" else 1) * HOUR_MS
        stream.land(spam(seed) if what == "spam" else events(sizes[what], seed=seed, start_ms=start_ms))
    manifests = [*stream.advance(until=until), *stream.advance()]
    for manifest in manifests:
        assert lawful(manifest)
        deferrals = manifest.facts["deferrals"]
        waiting = [count for _, count in deferrals["waiting"]]
        assert all(count > 0 for count in waiting)
        assert manifest.facts["counters"]["deferred"] == sum(waiting) + deferrals["left"]


def test_replay_is_given_each_example_when_it_is_trained_first(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, PIT, 'methods=[{kind="online"},{kind="replay"}]')
    manifests = stream.advance(until=5)
    assert all(lawful(m) for m in manifests)
    wanted = due_at(stream, 6)
    made = questions.examples(wanted.intake, stream.recipe.inputs, "prefixes")
    kept, rows = wanted.first_time(made), wanted.intake.rows
    first = set(zip(rows.shard_N[wanted.first_N].tolist(), rows.row_N[wanted.first_N].tolist(), strict=True))
    named = set(zip(kept.shard_T.tolist(), kept.row_T.tolist(), strict=True))
    assert 0 < len(named) < len(made)
    assert named <= first
    assert not first & (set(zip(made.shard_T.tolist(), made.row_T.tolist(), strict=True)) - named)
