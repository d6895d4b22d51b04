"""What is set aside is shown and put back: no row is lost on the way, and none is trained twice."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_kit import Stream, events, lawful, recipe
from typer.testing import CliRunner

from headrace import cli
from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.errors import DataError
from headrace.feed.landing import shard_name
from headrace.feed.quarantine import Aside, ask_release, find, first_rows, set_aside

HOUR_MS = 3_600_000
SPAM = 7


def spam(num_events: int, seed: int, start_ms: int) -> pa.Table:
    """One item in all events: the gate rejects it."""
    return events(num_events, seed, start_ms).set_column(0, "item_id", pa.array(np.full(num_events, SPAM)))


def rejected_stream(folder: Path, *overrides: str) -> Stream:
    """Cut 2 of four is rejected."""
    stream = Stream(folder, recipe("evaluation.eval_share=0", *overrides))
    for shard in range(4):
        size = 300 if shard == 0 else 120
        stream.land((spam if shard == 2 else events)(size, shard, shard * HOUR_MS))
    return stream


def only(stream: Stream) -> Aside:
    (aside,) = [aside for aside in set_aside(stream.store) if aside.state == "set aside"]
    return aside


def counters(manifest: Manifest) -> dict[str, int]:
    assert lawful(manifest)
    return dict(manifest.facts["counters"])


def mend(stream: Stream) -> None:
    """The recipe no longer minds one item in all events."""
    stream.recipe = recipe("evaluation.eval_share=0", "gate.max_item_share=1")


def test_a_rejected_cut_is_released_and_its_rows_are_trained_once(tmp_path: Path) -> None:
    stream = rejected_stream(tmp_path)
    manifests = stream.advance()
    assert [m.verdict for m in manifests] == ["publish", "publish", "reject", "publish"]
    assert counters(manifests[-1])["quarantined"] == 120
    aside = only(stream)
    assert (aside.where, aside.kind, aside.num_rows) == ("cut 2", "cut", 120)
    assert "one item has 100% of the events" in aside.reason
    assert first_rows(stream.store, aside)[0].startswith(f'{shard_name(2)} row 0: {{"item_id": {SPAM}, "ts": 7200000')
    assert stream.advance() == [], "nothing comes back of itself"

    ask_release(stream.store, aside.number)
    mend(stream)
    (again,) = stream.advance()
    assert (again.cut, again.verdict, again.facts["events"]) == (4, "publish", 120)
    after = counters(again)
    assert (after["quarantined"], after["trained_once"], after["pending"]) == (0, 660, 0)
    assert after["events_in"] == counters(manifests[-1])["events_in"]
    assert find(stream.store, aside.number).state == "released"


def test_a_cut_is_released_once_also_while_the_run_has_not_looked_yet(tmp_path: Path) -> None:
    stream = rejected_stream(tmp_path)
    stream.advance()
    number = only(stream).number
    ask_release(stream.store, number)
    assert find(stream.store, number).state == "asked for"
    with pytest.raises(DataError, match="waits for the run to release it already"):
        ask_release(stream.store, number)
    mend(stream)
    assert len(stream.advance()) == 1
    with pytest.raises(DataError, match="has been released already: its rows are trained once"):
        ask_release(stream.store, number)
    assert stream.advance() == []


def test_released_rows_that_are_rejected_again_have_a_number_of_their_own(tmp_path: Path) -> None:
    stream = rejected_stream(tmp_path)
    stream.advance()
    first = only(stream)
    ask_release(stream.store, first.number)
    (again,) = stream.advance()
    assert (again.verdict, counters(again)["quarantined"]) == ("reject", 120)
    second = only(stream)
    assert (second.where, second.num_rows) == ("cut 4", 120)
    ask_release(stream.store, second.number)
    mend(stream)
    (last,) = stream.advance()
    assert (counters(last)["quarantined"], counters(last)["trained_once"]) == (0, 660)


def test_released_rows_end_with_the_same_state_however_often_the_run_is_stopped(tmp_path: Path) -> None:
    digests = []
    for name, stops in (("a", []), ("b", [0, 2, 3])):
        stream = rejected_stream(tmp_path / name)
        for until in stops:
            stream.advance(until=until)
        stream.advance()
        ask_release(stream.store, only(stream).number)
        mend(stream)
        stream.land(events(60, 9, 9 * HOUR_MS))
        stream.advance(until=4 if stops else None)
        stream.advance()
        latest = Chain(stream.store).latest()
        assert latest is not None
        digests.append((latest.cut, latest.state_digest))
    assert digests[0] == digests[1]


def test_a_repaired_file_is_taken_under_its_old_name(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe("evaluation.eval_share=0"))
    stream.land(events(200, 0))
    stream.land(events(80, 1, HOUR_MS).drop_columns(["ts"]))
    stream.land(events(60, 2, 2 * HOUR_MS))
    manifests = stream.advance()
    assert counters(manifests[-1])["quarantined"] == 80
    aside = only(stream)
    assert (aside.where, aside.kind, aside.num_rows) == (shard_name(1), "file", 80)
    assert "no column 'ts'" in aside.reason
    assert first_rows(stream.store, aside)[0].startswith('row 0: {"item_id": ')

    stream.landing.land(shard_name(1), events(90, 1, HOUR_MS))
    assert stream.advance() == [], "nobody looks at it again of itself"
    ask_release(stream.store, aside.number)
    (taken,) = stream.advance()
    after = counters(taken)
    assert (after["events_in"], after["trained_once"], after["quarantined"]) == (350, 350, 0)


def test_a_file_that_is_released_unrepaired_is_set_aside_anew(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe("evaluation.eval_share=0"))
    stream.land(events(200, 0))
    stream.land(events(80, 1, HOUR_MS).drop_columns(["ts"]))
    stream.advance()
    first = only(stream)
    ask_release(stream.store, first.number)
    stream.land(events(60, 2, 2 * HOUR_MS))
    (taken,) = stream.advance()
    assert counters(taken)["quarantined"] == 80
    assert only(stream).number > first.number


def test_a_file_that_is_gone_is_not_released(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe())
    stream.land(events(80, 1).drop_columns(["ts"]))
    stream.land(events(80, 2))
    stream.advance()
    Path(stream.landing.uri_of(shard_name(0))).unlink()
    with pytest.raises(DataError, match="is not there any more: put the repaired file there first"):
        ask_release(stream.store, only(stream).number)


def test_a_cut_whose_file_is_gone_or_changed_is_not_released(tmp_path: Path) -> None:
    stream = rejected_stream(tmp_path)
    stream.advance()
    path = Path(stream.landing.uri_of(shard_name(2)))
    content = path.read_bytes()
    path.write_bytes(content + b"more")
    with pytest.raises(DataError, match="put what landed there first"):
        ask_release(stream.store, only(stream).number)
    path.unlink()
    with pytest.raises(DataError, match="put what landed there first"):
        ask_release(stream.store, only(stream).number)
    path.write_bytes(content)
    ask_release(stream.store, only(stream).number)


def test_a_request_that_means_another_record_is_left_alone(tmp_path: Path) -> None:
    stream = rejected_stream(tmp_path)
    stream.advance()
    number = only(stream).number
    ask_release(stream.store, number)
    content = stream.store.get(f"releases/{number:010d}.json")
    stream.store.delete(f"releases/{number:010d}.json")
    stream.store.put(f"releases/{number - 1:010d}.json", content)
    stream.store.put(f"releases/{9999:010d}.json", content)
    assert stream.advance() == []
    assert only(stream).number == number


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["quarantine", *(str(word) for word in words)])


def test_the_command_lists_shows_and_releases(tmp_path: Path) -> None:
    stream = rejected_stream(tmp_path, "feed.max_bad_rows=0.5")
    bad = events(90, 5, 5 * HOUR_MS)
    stream.land(bad.set_column(1, "ts", pa.array([-1, *bad["ts"].to_pylist()[1:]])))
    stream.advance()
    listed = run("list", "--store", stream.store.uri).stdout.splitlines()
    assert [line.split() for line in listed[:1]] == [["number", "after", "cut", "where", "rows", "state", "reason"]]
    rows, cut = only_numbers(listed[1:])
    assert "-  shard-000004.parquet     1  set aside  1 rows: the time in ts lies" in listed[1 + (rows > cut)]

    shown = run("show", cut, "--store", stream.store.uri).stdout
    assert shown.startswith("cut 2: 120 rows, set aside\none item has 100% of the events")
    assert shown.count("\n  shard-000002.parquet row ") == 5
    assert 'row 0: {"item_id": ' in run("show", rows, "--store", stream.store.uri).stdout

    released = run("release", cut, "--store", stream.store.uri)
    assert released.stdout == (
        "cut 2 is put back (120 rows), at once where the run goes on, else when it is started again\n"
    )
    refused = run("release", cut, "--store", stream.store.uri)
    assert (refused.exit_code, "already" in refused.output) == (2, True)
    refused = run("release", rows, "--store", stream.store.uri)
    assert "land them, repaired, in a file of their own" in " ".join(refused.output.split())
    mend(stream)
    stream.advance()
    assert run("list", "--store", stream.store.uri).stdout.splitlines()[-1] == (
        "1 more: released, late, or ahead in time (--all)"
    )
    assert "released   one item has" in run("list", "--all", "--store", stream.store.uri).stdout
    refused = run("show", 99, "--store", stream.store.uri)
    assert "nothing with number 99 is set aside" in " ".join(refused.output.split())


def only_numbers(lines: list[str]) -> tuple[int, int]:
    """Numbers of the dropped rows and of the rejected cut."""
    numbers = {line.split()[2]: int(line.split()[0]) for line in lines}
    return numbers["shard-000004.parquet"], numbers["cut"]


def test_an_empty_quarantine_says_so(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe())
    stream.land(events(80, 2))
    stream.advance()
    assert run("list", "--store", stream.store.uri).stdout == f"nothing is set aside in {stream.store.uri}\n"


KINDS = st.sampled_from(["good", "bad rows", "late", "spam", "no time", "ahead"])


def shard_of(kind: str, seed: int) -> pa.Table:
    start_ms = (0 if kind == "late" else 100 + seed) * HOUR_MS
    table = (spam if kind == "spam" else events)(110, seed, start_ms)
    times = table["ts"].to_pylist()
    if kind == "no time":
        return table.drop_columns(["ts"])
    if kind == "bad rows":
        times[5:7] = [-1, None]
    if kind == "ahead":
        times[50] = 10**12
    return table.set_column(1, "ts", pa.array(times))


@settings(max_examples=12, deadline=None)
@given(kinds=st.lists(KINDS, min_size=1, max_size=5))
def test_the_law_holds_whatever_is_set_aside_and_put_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str]
) -> None:
    policy = (
        "feed.max_bad_rows=0.05",
        "feed.allowed_lateness_s=86400",
        "feed.max_ahead_s=86400",
        "feed.ahead=set_aside",
    )
    stream = Stream(tmp_path_factory.mktemp("law"), recipe("evaluation.eval_share=0", *policy))
    stream.land(events(200, 0, 100 * HOUR_MS))
    for seed, kind in enumerate(kinds, start=1):
        stream.land(shard_of(kind, seed))
    made = stream.advance()
    for aside in set_aside(stream.store):
        if aside.kind in ("cut", "file"):
            ask_release(stream.store, aside.number)
    stream.recipe = recipe("evaluation.eval_share=0", "gate.max_item_share=1", *policy)
    stream.land(events(110, 99, 120 * HOUR_MS))
    made += stream.advance()
    after = counters(made[-1])
    assert all(lawful(m) for m in made)
    assert after["quarantined"] == 2 * kinds.count("bad rows") + kinds.count("ahead") + 110 * kinds.count("no time")
    assert after["late_set_aside"] == 110 * kinds.count("late")
    assert after["events_in"] == 310 + 110 * len(kinds)
    assert after["pending"] == after["duplicate"] == 0
