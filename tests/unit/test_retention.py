"""What a store keeps, and what is left of the rest: nothing grows with the stream but lines of figures."""

from dataclasses import replace

import numpy as np
import pytest
from loop_kit import Stream, events, recipe

from headrace.bundles.bundle import bundle_of, load_bundle
from headrace.bundles.publish import bundle_name, publish, withdraw
from headrace.commit.chain import Chain
from headrace.commit.journal import Journal
from headrace.commit.manifest import Envelope, Manifest
from headrace.commit.pins import pin, pinned, unpin
from headrace.commit.retention import Retention
from headrace.commit.summary import summary_of
from headrace.config.run import StoreConfig
from headrace.errors import ConfigError
from headrace.store.fence import take_epoch
from headrace.store.store import Store, part_name
from headrace.tracking.console import Observer
from headrace.train.feeder import LandingLog
from headrace.train.follower import Follower


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


class Course:
    """Commits one after the other, by a clock of our own: each has a part of its own, and one that all share."""

    def __init__(self, store, keep=2, keep_s=0.0):
        self.store, self.epoch = store, take_epoch(store)
        self.retention = Retention(store, StoreConfig(keep=keep, keep_s=keep_s), lambda v: withdraw(store, v))
        self.now_ms = 0
        self.version = 0

    def commit(self, cut, verdict="publish", after_s=1, needed=frozenset()):
        self.now_ms += after_s * 1000
        self.version += verdict == "publish"
        parts = {"own": self.store.put_part(b"of %d" % cut), "shared": self.store.put_part(b"all")}
        envelope = Envelope(self.epoch.number, self.epoch.token, self.now_ms, 0.0, {"train": 1.0})
        version = self.version if verdict == "publish" else None
        manifest = Manifest(cut, None, verdict, f"{verdict}ed", version, parts, {"events": 10}, envelope)
        Chain(self.store).commit(manifest, self.epoch)
        if version is not None:
            self.store.put(bundle_name(version), b"{}")
        self.retention.add(manifest, needed)
        return manifest


def cuts(store):
    return [manifest.cut for manifest in Chain(store).manifests()]


def parts(store):
    return {path.name for path in (store.local_root / "parts").rglob("*") if path.is_file()}


def test_the_newest_and_the_warm_up_stay_and_bundles_parts_and_manifests_go(store):
    course = Course(store)
    made = [course.commit(cut) for cut in range(6)]
    assert cuts(store) == [0, 4, 5]
    assert store.names("bundles") == [bundle_name(version).split("/")[1] for version in (1, 5, 6)]
    assert parts(store) == {ref.sha256 for cut in (0, 4, 5) for ref in made[cut].parts.values()}
    assert Chain(store).summaries() == [summary_of(manifest) for manifest in made]
    assert Chain(store).summaries(after_cut=2) == [summary_of(manifest) for manifest in made[3:]]


def test_what_was_replaced_a_moment_ago_stays_since_a_replica_may_be_loading_it(store):
    course = Course(store, keep_s=10)
    for cut in range(6):
        course.commit(cut, after_s=4)
    assert cuts(store) == [0, 2, 3, 4, 5], "cut 1 was replaced 12 seconds ago, cut 2 only 8"
    course.commit(6, after_s=60)
    assert cuts(store) == [0, 5, 6]


def test_a_version_is_replaced_by_the_next_version_and_not_by_what_is_held(store):
    course = Course(store, keep_s=10)
    course.commit(0)
    course.commit(1)
    for cut in range(2, 9):
        course.commit(cut, "hold", after_s=60)
    assert cuts(store) == [0, 1, 7, 8], "cut 1 is still what replicas load"
    course.commit(9)
    assert 1 in cuts(store)
    course.commit(10, after_s=11)
    assert cuts(store) == [0, 9, 10]


def test_what_is_needed_stays_whatever_its_age(store):
    course = Course(store)
    for cut in range(6):
        course.commit(cut, needed={1, 2})
    assert cuts(store) == [0, 1, 2, 4, 5]
    course.commit(6, needed={2})
    assert cuts(store) == [0, 2, 5, 6]


def test_a_pin_holds_until_it_is_taken_away(store):
    course = Course(store)
    course.commit(0)
    course.commit(1)
    assert pin(store, 2).cut == 1
    for cut in range(2, 6):
        course.commit(cut)
    assert cuts(store) == [0, 1, 4, 5]
    again = Course(store)
    again.retention.start(set(), 0)
    assert 1 in cuts(store)
    unpin(store, 2)
    assert pinned(store) == set()
    again.version, again.now_ms = course.version, course.now_ms
    again.commit(6)
    assert cuts(store) == [0, 5, 6]
    with pytest.raises(ConfigError, match="version 2 is not in"):
        pin(store, 2)
    with pytest.raises(ConfigError, match="version 2 is not pinned"):
        unpin(store, 2)


def test_of_a_pin_and_a_removal_at_the_same_moment_one_sees_the_other(store, monkeypatch):
    course = Course(store)
    course.commit(0)
    course.commit(1)
    course.commit(2)
    noted = Journal.add

    def pins_first(journal, summary):
        pin(store, 2)
        noted(journal, summary)

    monkeypatch.setattr(Journal, "add", pins_first)
    course.commit(3)
    assert 1 in cuts(store), "the pin came before the line: it holds"
    monkeypatch.undo()
    unpin(store, 2)

    def too_late(journal, summary):
        noted(journal, summary)
        with pytest.raises(ConfigError, match="version 2 is being removed"):
            pin(store, 2)

    monkeypatch.setattr(Journal, "add", too_late)
    course.commit(4)
    assert 1 not in cuts(store)


@pytest.mark.parametrize("num_deletes", range(6))
def test_a_removal_that_was_cut_short_is_finished_at_the_next_start(store, monkeypatch, num_deletes):
    course = Course(store)
    made = [course.commit(cut) for cut in range(3)]
    delete, left = Store.delete, [num_deletes]

    def dies(self, name):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        delete(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", dies)
        try:
            made.append(course.commit(3))
        except KeyboardInterrupt:
            made.append(Chain(store).latest())
    again = Course(store)
    again.retention.start(set(), course.now_ms)
    assert cuts(store) == [0, 2, 3]
    assert parts(store) == {ref.sha256 for cut in (0, 2, 3) for ref in made[cut].parts.values()}
    assert [summary.cut for summary in Chain(store).summaries()] == [0, 1, 2, 3]


def test_a_commit_that_a_newer_epoch_made_again_leaves_at_the_next_start(store):
    old = Course(store)
    old.commit(0)
    late = old.commit(1)
    new = Course(store)
    new.version = 1
    kept = new.commit(1)
    assert Chain(store).superseded() == [(1, old.epoch.number)]
    Course(store).retention.start(set(), 0)
    assert store.names("commits") == ["0000000000.000001.json", "0000000001.000002.json"]
    assert kept.parts == late.parts
    assert all(store.exists(part_name(ref.sha256)) for ref in kept.parts.values())


def test_lines_are_written_in_pages_that_fold(store):
    journal = Journal(store)
    course = Course(store)
    template = summary_of(course.commit(0))
    late = 700  # pinned, say
    for cut in range(1100):
        if cut != late:
            journal.add(replace(template, cut=cut))
    assert len(store.names("journal")) == 3
    assert [summary.cut for summary in Journal(store).summaries(after_cut=1062)] == list(range(1063, 1100))
    assert journal.has(63)
    assert not journal.has(late)
    assert not journal.has(1100)
    journal.add(replace(template, cut=late))
    assert len(store.names("journal")) == 3
    assert [summary.cut for summary in Journal(store).summaries()] == list(range(1100))


def test_a_follower_that_was_held_up_finds_what_has_gone(store, tmp_path):
    course = Course(store)
    course.commit(0)
    log = LandingLog(tmp_path / "landings.jsonl")
    follower = Follower(store, tmp_path / "report.json", Observer(), log, None, lambda: 0)
    follower.follow_epoch(course.epoch.number)
    for cut in range(1, 9):
        course.commit(cut)
    follower._found_s -= 60
    follower._read_new()
    assert list(follower.increments.cuts) == list(range(9))


def test_a_run_keeps_its_versions_whole_and_its_figures_all(tmp_path):
    stream = Stream(tmp_path, recipe("store.keep=2", "store.keep_s=0", "gate.window=0"))
    for shard in range(8):
        stream.land(events(120, seed=shard, start_ms=shard * 3_600_000))
    made = stream.advance(until=4) + stream.advance()
    there = Chain(stream.store).manifests()
    assert [manifest.cut for manifest in there] == [0, 6, 7]
    named = {ref.sha256 for manifest in there for ref in manifest.parts.values()}
    facts = {name for name in parts(stream.store) if name not in named}
    assert len(facts) <= 8, "only what the ledger names"
    for manifest in there:
        bundle = bundle_of(manifest)
        publish(stream.store, bundle, take_epoch(stream.store))
        assert load_bundle(stream.store, bundle).version == manifest.version
    summaries = Chain(stream.store).summaries()
    assert [summary.state_digest for summary in summaries] == [manifest.state_digest for manifest in made]
    recalls = [summary.scores["live"]["recall@20"] for summary in summaries[1:]]
    assert np.isfinite(recalls).all()
