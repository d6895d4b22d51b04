"""A person rolls back: served at once, obeyed at the next cut, whoever is up, and wherever it is killed in between."""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from loop_kit import RING, Stream, lawful, recipe, walks
from typer.testing import CliRunner

from headrace import cli
from headrace.bundles.bundle import bundle_of
from headrace.bundles.publish import ROLLBACK_POINTER, bundle_name, read_bundle, read_pointer
from headrace.commit.chain import Chain
from headrace.commit.journal import Journal
from headrace.commit.manifest import Manifest
from headrace.commit.rollbacks import Request, find, request, requests
from headrace.commit.summary import summary_of
from headrace.errors import ConfigError, StoreError
from headrace.feed.keeper import take_up
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.serving.local import LocalRecall
from headrace.serving.replica import Replica
from headrace.serving.request import parse
from headrace.store.fence import StoreLock, take_epoch
from headrace.store.store import Store, part_name
from headrace.train.feeder import Feeder, LandingLog
from headrace.train.rollback import ask, see_through, serve_again

SEEN = 5
"""Increments before anybody rolls back."""
TO = 3
"""The version that is rolled back to."""
REPLAY = 'methods=[{kind="online"},{kind="replay",ratio=1.0}]'


def no_wait(_: float) -> None: ...


def land(stream: Stream, first: int, last: int) -> None:
    for shard in range(first, last):
        stream.land(walks(600 if shard == 0 else 150, shard))


def begun(folder: Path, *overrides: str) -> Stream:
    """A stream with a few increments behind it."""
    stream = Stream(folder, recipe(*RING, "store.keep=100", *overrides))
    land(stream, 0, SEEN)
    stream.advance()
    return stream


def roll_back(stream: Stream, to: int = TO) -> int:
    """As the command does, with nobody training."""
    return see_through(stream.store, ask(stream.store, to), wait=no_wait)


def manifest_of(stream: Stream, version: int) -> Manifest:
    (found,) = [m for m in Chain(stream.store).manifests() if m.version == version]
    return found


def answers(store: Store, version: int | None = None) -> list[tuple[object, ...]]:
    recall = LocalRecall(store, version)
    found = recall.recall_many([{"items": [item], "k": 10, "ts": 10**11} for item in (1, 17, 40)])
    return [(answer.items, answer.scores) for answer in found]


def served_version(store: Store) -> int:
    pointer = read_pointer(store)
    assert pointer is not None
    return pointer.version


def test_it_is_served_at_once_and_answers_as_it_did(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    replica = Replica(stream.store, "one")
    assert replica.refresh()
    before, wanted = answers(stream.store), answers(stream.store, TO)
    assert before != wanted
    assert roll_back(stream) == SEEN + 1 == served_version(stream.store)
    assert answers(stream.store) == wanted
    assert replica.refresh()
    (answer,) = replica.answer_batch([parse(b'{"items": [1], "k": 10, "ts": 100000000000}')])
    assert (answer.version, answer.items, answer.scores) == (SEEN + 1, *wanted[0])
    assert Chain(stream.store).names()[-1][0] == SEEN - 1, "nothing was committed for it"


def test_at_its_next_increment_the_learner_goes_back_and_is_trained_on_from_there(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    to, newest = manifest_of(stream, TO), manifest_of(stream, SEEN)
    served = roll_back(stream)
    assert stream.advance() == [], "it makes no cut by itself"
    land(stream, SEEN, SEEN + 1)
    stream.recipe = recipe(*RING, "store.keep=100", "train.learning_rate=1e-30")
    (made,) = stream.advance()
    same = ("model/encoder", "methods/online")
    assert {made.parts.get(name) for name in same} == {to.parts.get(name) for name in same}
    assert made.parts["model/encoder"] != newest.parts["model/encoder"]
    assert made.version == served + 1 == served_version(stream.store)
    assert made.reason.startswith(
        f"rolled back to version {TO}: somebody asked for it, and it was served as version 6; "
    )
    assert made.facts["trial"]["trusted"] == to.cut, "no older version undoes it"
    assert made.facts["num_items"] == newest.facts["num_items"]
    assert made.facts["review"]["rolled_back_to"] == TO
    assert lawful(made)
    lost = newest.facts["rows"]["trained"] - to.facts["rows"]["trained"]
    assert made.facts["counters"]["reverted"] == made.facts["review"]["reverted"] == lost > 0


def test_what_users_got_is_scored_as_live(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    stream.recipe = recipe(*RING, "store.keep=100", "evaluation.max_queries=all")
    roll_back(stream, 1)
    land(stream, SEEN, SEEN + 2)
    first, second = stream.advance()
    assert first.facts["metrics"]["live"] == first.facts["metrics"]["frozen"] != first.facts["metrics"]["learner"]
    assert second.facts["metrics"]["live"] == second.facts["metrics"]["learner"]


def ended(stream: Stream, stops: list[int], pair: bool = False) -> list[Manifest]:
    """The commits of a run that is stopped after these cuts."""
    advance: Callable[..., list[Manifest]] = stream.advance_pair if pair else stream.advance
    made: list[Manifest] = []
    for until in stops:
        made += advance(until=until)
    made += advance()
    return made


@pytest.mark.parametrize("pair", [False, True], ids=["one rank", "two ranks"])
def test_however_often_a_run_is_stopped_it_ends_with_the_same_state(tmp_path: Path, pair: bool) -> None:
    digests = []
    for name, stops in (("a", []), ("b", [SEEN - 1, SEEN, SEEN + 1])):
        stream = Stream(tmp_path / name, recipe(*RING, "store.keep=100", REPLAY))
        land(stream, 0, SEEN)
        ended(stream, [], pair)  # alike: a start between two landings gives the next shard another number
        roll_back(stream)
        land(stream, SEEN, SEEN + 4)
        manifests = ended(stream, stops, pair)
        assert all(lawful(m) for m in manifests)
        assert [m.version for m in manifests] == [7, 8, 9, 10]
        digests.append([m.state_digest for m in manifests])
    assert digests[0] == digests[1]


def test_cuts_that_were_written_before_it_are_trained_and_never_served(tmp_path: Path) -> None:
    digests = []
    for name, stops in (("a", []), ("b", [4, 5, 6])):
        stream = begun(tmp_path / name)
        land(stream, SEEN, SEEN + 2)
        writer = LedgerWriter.open(stream.store, take_epoch(stream.store))
        assert len(stream.cuts(writer)) == SEEN + 2
        assert roll_back(stream) == SEEN + 3, "higher than the two that wait can publish"
        wanted = answers(stream.store)
        land(stream, SEEN + 2, SEEN + 3)
        for until in stops:
            stream.advance(until=until)
            assert answers(stream.store) == wanted
        stream.advance()
        manifests = Chain(stream.store).manifests()
        assert [m.version for m in manifests[SEEN:]] == [6, 7, 9]
        assert [m.facts["review"]["rolled_back_to"] for m in manifests[SEEN:]] == [None, None, TO]
        assert served_version(stream.store) == 9
        digests.append(manifests[-1].state_digest)
    assert digests[0] == digests[1]


def spam(seed: int) -> pa.Table:
    """One user in all events: the gate rejects it."""
    table = walks(150, seed)
    return table.set_column(table.column_names.index("user_id"), "user_id", pa.array([7] * 150))


def test_an_increment_that_is_rejected_leaves_it_to_the_next(tmp_path: Path) -> None:
    digests = []
    for name, stops in (("a", []), ("b", [SEEN, SEEN + 1])):
        stream = begun(tmp_path / name)
        to = manifest_of(stream, TO)
        served = roll_back(stream)
        stream.recipe = recipe(*RING, "store.keep_s=0", "gate.window=1")  # the version stays for this alone
        for seed in (SEEN, SEEN + 1):
            stream.land(spam(seed))
        land(stream, SEEN + 2, SEEN + 4)
        rejected, again, obeyed, after = ended(stream, stops)
        assert [m.verdict for m in (rejected, again, obeyed, after)] == ["reject", "reject", "publish", "publish"]
        assert rejected.facts["review"]["rolled_back_to"] is None
        assert obeyed.facts["review"]["rolled_back_to"] == TO
        assert (obeyed.version, after.version) == (served + 1, served + 2)
        assert obeyed.facts["trial"]["trusted"] == to.cut
        assert all(lawful(m) for m in (rejected, again, obeyed, after))
        digests.append(after.state_digest)
    assert digests[0] == digests[1]


def test_who_changes_their_mind_rolls_forward_again(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    roll_back(stream, 2)
    land(stream, SEEN, SEEN + 2)
    stream.advance()
    forward = answers(stream.store, SEEN)
    assert roll_back(stream, SEEN) == 9
    assert answers(stream.store) == forward
    land(stream, SEEN + 2, SEEN + 3)
    (made,) = stream.advance()
    assert made.facts["rows"]["trained"] == (
        manifest_of(stream, SEEN).facts["rows"]["trained"] + made.facts["fates"]["trained"]
    )
    assert lawful(made)


def test_of_two_before_one_cut_the_newest_counts(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    assert (roll_back(stream, 2), roll_back(stream, 4)) == (6, 7)
    land(stream, SEEN, SEEN + 1)
    (made,) = stream.advance()
    assert (made.version, made.facts["review"]["rolled_back_to"]) == (8, 4)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (SEEN, r"version 5 is what .* serves now: there is nothing to roll back"),
        (99, "has never published a version 99; those that can be served again are 1, 2, 3, 4, 5"),
    ],
)
def test_what_cannot_be_is_said_in_words(tmp_path: Path, version: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ask(begun(tmp_path).store, version)


def test_an_empty_store_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is published in"):
        ask(Store(str(tmp_path)), 1)


def test_neither_what_is_served_again_nor_its_new_number_can_be_named(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    roll_back(stream)
    with pytest.raises(ConfigError, match=r"version 3 is what .* serves now, again, as version 6"):
        ask(stream.store, TO)
    with pytest.raises(ConfigError, match="version 6 was version 3 again: name that one"):
        ask(stream.store, 6)


def test_a_second_request_waits_for_the_first(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    first = ask(stream.store, TO)
    assert ask(stream.store, TO) == first
    with pytest.raises(ConfigError, match=r"a roll back to version 3 waits .* headrace rollback 3 sees it through"):
        ask(stream.store, 2)
    see_through(stream.store, first, wait=no_wait)
    assert ask(stream.store, 2).number == 2


def test_what_has_left_the_store_is_told_from_what_never_was(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe(*RING, "store.keep_s=0"))
    land(stream, 0, 8)
    stream.advance()
    with pytest.raises(ConfigError, match=r"version 2 \(cut 1\) has left .* pin what is to stay; those .* are 1, "):
        ask(stream.store, 2)


def test_a_version_stays_from_the_request_on_and_leaves_when_nobody_needs_it(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    asked = ask(stream.store, TO)
    stream.recipe = recipe(*RING, "store.keep_s=0", "gate.window=1")
    land(stream, SEEN, SEEN + 3)
    writer = LedgerWriter.open(stream.store, take_epoch(stream.store))
    (stream.store.local_root / "rollbacks" / "0000000001.json").rename(tmp_path / "aside")  # not looked at meanwhile
    stream.cuts(writer)
    (tmp_path / "aside").rename(stream.store.local_root / "rollbacks" / "0000000001.json")
    stream.advance()
    assert TO - 1 in {m.cut for m in Chain(stream.store).manifests()}
    assert 1 not in {m.cut for m in Chain(stream.store).manifests()}, "others have left"
    served = see_through(stream.store, asked, wait=no_wait)
    to = manifest_of(stream, TO)
    assert answers(stream.store)
    land(stream, SEEN + 3, SEEN + 8)
    stream.advance()
    assert manifest_of(stream, served + 5).facts["review"]["rolled_back_to"] is None
    assert to.cut not in {m.cut for m in Chain(stream.store).manifests()}
    assert not stream.store.exists(bundle_name(served))
    assert not stream.store.exists(bundle_name(TO))


def test_a_version_that_is_leaving_is_refused(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    to = manifest_of(stream, TO)
    Journal(stream.store).add(summary_of(to))
    with pytest.raises(ConfigError, match="version 3 is leaving"):
        request(stream.store, to)
    assert requests(stream.store) == []


def test_a_command_that_died_before_its_request_was_ready_stands_in_nobodys_way(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    stream.store.put("rollbacks/0000000001.json", b'{"number": 1, "version": 2, "cut": 1, "wall_ms": 0}')
    assert find(stream.store, 1) == Request(1, 2, 1, 0)
    land(stream, SEEN, SEEN + 1)
    (made,) = stream.advance()
    assert made.facts["rollback"] is None
    assert roll_back(stream) == 7
    assert [(one.number, one.version) for one in requests(stream.store)] == [(1, TO)]


def feeder_of(stream: Stream, told: list[str]) -> Feeder:
    log = LandingLog(stream.store.local_root.parent / "landings.jsonl")
    return Feeder(stream.recipe, stream.store, take_epoch(stream.store), stream.landing, None, log, told.append)


def test_a_run_that_is_up_takes_it_up_itself(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    told: list[str] = []
    feeder = feeder_of(stream, told)
    with StoreLock(stream.store):
        asked = ask(stream.store, TO)
        assert see_through(stream.store, asked, wait=lambda _: feeder._poll()) == 6
    assert told == [
        "version 3 is served again, as version 6, since somebody asked for it; at its next increment the learner goes "
        "back to it"
    ]
    assert served_version(stream.store) == 6
    assert LedgerReader(stream.store).newest_epoch == feeder._epoch, "nobody else took the fence"


def test_a_run_that_does_not_look_is_waited_for_and_then_named(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    with StoreLock(stream.store), pytest.raises(StoreError, match="no run has taken that up in 30 s"):
        see_through(stream.store, ask(stream.store, TO), wait=no_wait)
    assert served_version(stream.store) == SEEN
    land(stream, SEEN, SEEN + 1)
    (made,) = stream.advance()
    assert made.facts["review"]["rolled_back_to"] == TO, "the next start takes it up"


@pytest.mark.parametrize("killed_after", ["record", "bundle", "pointer"])
def test_killed_in_the_middle_it_is_served_by_whoever_comes_next(tmp_path: Path, killed_after: str) -> None:
    stream = begun(tmp_path)
    wanted = answers(stream.store, TO)
    asked = ask(stream.store, TO)
    epoch = take_epoch(stream.store)
    writer = LedgerWriter.open(stream.store, epoch)
    recorded = take_up(writer)
    assert recorded is not None
    if killed_after != "record":
        serve_again(stream.store, epoch, recorded)
        stream.store.put(
            "rollbacks/0000000001.json", stream.store.get("rollbacks/0000000001.json").replace(b"6}", b"null}")
        )
    if killed_after == "bundle":
        stream.store.delete(ROLLBACK_POINTER)
    assert find(stream.store, 1) == asked
    feeder_of(stream, [])
    assert answers(stream.store) == wanted
    assert see_through(stream.store, asked, wait=no_wait) == 6
    land(stream, SEEN, SEEN + 1)
    assert [m.version for m in stream.advance()] == [7]


def test_the_trainers_pointer_and_a_persons_are_not_fought_over(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    land(stream, SEEN, SEEN + 1)
    stream.cuts(LedgerWriter.open(stream.store, take_epoch(stream.store)))
    roll_back(stream)
    stream.advance()
    assert served_version(stream.store) == 7
    assert read_bundle(stream.store, 6) == bundle_of(manifest_of(stream, 6)), "it can be asked by name"


def test_items_that_were_retired_since_are_not_answered(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    item = LocalRecall(stream.store, TO).recall([17], 10, ts=10**11).items[0]
    stream.items.land("more.parquet", pa.table({"item_id": [item], "ts": [10**9], "status": ["retired"]}))
    land(stream, SEEN, SEEN + 1)
    stream.advance()
    roll_back(stream)
    recall = LocalRecall(stream.store)
    assert item not in recall.items
    assert len(recall.items) == len(LocalRecall(stream.store, TO).items) - 1


def test_the_command_and_what_others_say_of_it(tmp_path: Path) -> None:
    def headrace(*words: str) -> str:
        result = CliRunner().invoke(cli.app, [*words, "--store", stream.store.uri])
        return result.output if result.exit_code == 0 else f"{result.exit_code}: {result.output}"

    def status() -> dict[str, str]:
        pairs = (re.split(" {2,}", line, maxsplit=1) for line in headrace("status").splitlines())
        return {name: re.sub("[0-9]+ seconds ago", "a moment ago", value) for name, value in pairs}

    stream = begun(tmp_path)
    assert status()["served version"] == "5 (cut 4)"
    asked = ask(stream.store, 2)
    assert status()["served version"] == "5 (cut 4)"
    assert status()["roll back"] == "to version 2 (cut 1), asked for a moment ago: no run has taken it up yet"
    see_through(stream.store, asked, wait=no_wait)
    assert headrace("rollback", "3").startswith(
        "version 3 is served again, as version 7; the learner goes back to it\n"
    )
    assert headrace("rollback", "3").startswith("2: version 3 is what")
    served = "7, which is version 3 (cut 2) again, asked for"
    assert status()["served version"] == f"{served} a moment ago; the learner goes back at its next increment"
    assert f"\nserved: version {served}" in headrace("versions")
    land(stream, SEEN, SEEN + 1)
    stream.advance()
    assert status()["served version"] == "8 (cut 5)"
    assert "rolled back to version 3: somebody asked for it, and it was served as version 7" in headrace("versions")


def test_parts_of_what_is_served_again_are_there(tmp_path: Path) -> None:
    stream = begun(tmp_path)
    bundle = read_bundle(stream.store, roll_back(stream))
    assert bundle.parent == TO
    assert all(stream.store.exists(part_name(ref.sha256)) for ref in bundle.parts.values())
