"""The eight steps, without Ray: what is bound by a commit, kept by a restart, and accounted for by the law."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_kit import Stream, events, lawful, recipe

from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.errors import FencedError, TrainingError
from headrace.records import Cut
from headrace.store.fence import take_epoch
from headrace.store.store import part_name
from headrace.train.committer import conserve
from headrace.train.state import LearnerState

DAY_MS = 86_400_000


def stream_of(folder: Path, *overrides: str, shards: int = 5) -> Stream:
    stream = Stream(folder, recipe(*overrides))
    for index in range(shards):
        stream.land(events(300 if index == 0 else 80, seed=index, start_ms=index * 3_600_000))
    return stream


def test_every_commit_binds_what_it_changed_and_is_lawful(tmp_path: Path) -> None:
    manifests = stream_of(tmp_path).advance()
    assert [m.cut for m in manifests] == [0, 1, 2, 3, 4]
    assert [m.version for m in manifests] == [1, 2, 3, 4, 5]
    assert all(lawful(m) for m in manifests)
    assert manifests[-1].facts["counters"]["events_in"] == 300 + 4 * 80
    folders = {name.split("/")[0] for name in manifests[-1].parts}
    assert folders == {"model", "optimizer", "catalogue", "experts", "history", "probes", "anchors"}
    assert manifests[1].facts["metrics"]["queries"] > 0
    assert [m.parent for m in manifests[1:]] == [m.state_digest for m in manifests[:-1]]


def test_a_run_that_stops_after_every_increment_ends_with_the_same_state(tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a").advance()
    disturbed = stream_of(tmp_path / "b")
    for cut in range(5):
        disturbed.advance(until=cut)
    latest = Chain(disturbed.store).latest()
    assert latest is not None
    assert latest.state_digest == undisturbed[-1].state_digest


def test_two_ranks_stopped_halfway_end_with_the_same_state(tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a", "model.dropout=0.0").advance_pair()
    disturbed = stream_of(tmp_path / "b", "model.dropout=0.0")
    disturbed.advance_pair(until=2)
    assert disturbed.advance_pair()[-1].state_digest == undisturbed[-1].state_digest
    assert lawful(undisturbed[-1])


def test_another_rank_count_goes_on_with_every_row_of_history(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, "model.dropout=0.0")
    solo = stream.advance(until=2)
    pair = stream.advance_pair()
    assert [m.cut for m in pair] == [3, 4]
    assert lawful(pair[-1])
    assert solo[-1].facts["world"] == 1
    assert pair[-1].facts["world"] == 2


def test_the_same_stream_gives_other_bytes_with_another_seed(tmp_path: Path) -> None:
    one = stream_of(tmp_path / "a", shards=2).advance()
    two = stream_of(tmp_path / "b", "seed=2", shards=2).advance()
    assert one[-1].state_digest != two[-1].state_digest


def test_a_repeated_event_id_trains_nothing_within_the_horizon(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe("columns.event_id=event_id", "evaluation.eval_share=0"))
    first = events(200, seed=0).append_column("event_id", pa.array(range(200)))
    again = first.slice(0, 50).append_column("extra", pa.array([1] * 50))  # other bytes, the same events
    late = events(10, seed=9, start_ms=30 * DAY_MS).append_column("event_id", pa.array(range(10)))
    for table in (first, again, late):
        stream.land(table)
    _, second, third = stream.advance()
    assert second.facts["fates"]["duplicate"] == 50
    assert third.facts["fates"]["duplicate"] == 0, "the horizon has passed"
    assert lawful(third)
    assert third.facts["counters"]["duplicate"] == 50


def test_the_same_content_under_two_names_is_wholly_duplicate(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe())
    for table in (events(200, seed=0), events(60, seed=1), events(60, seed=1), events(60, seed=2)):
        stream.land(table)
    manifests = stream.advance()
    assert [m.facts["events"] for m in manifests] == [200, 60, 60]
    assert manifests[-1].facts["counters"]["duplicate"] == 60
    assert lawful(manifests[-1])


def test_a_bot_is_capped_and_an_empty_shard_or_a_single_event_stalls_nothing(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe("feed.max_events_per_user=20", "evaluation.eval_share=0"))
    for table in (
        events(200, seed=0),
        events(90, seed=1, num_users=1),
        events(80, seed=2).slice(0, 0),
        events(1, seed=3),
    ):
        stream.land(table)
    manifests = stream.advance()
    assert [m.facts["events"] for m in manifests] == [200, 90, 1]
    assert manifests[1].facts["fates"]["capped"] == 70
    assert lawful(manifests[-1])


def test_held_out_users_are_never_trained(tmp_path: Path) -> None:
    manifests = stream_of(tmp_path, "evaluation.eval_share=0.3").advance()
    counters = manifests[-1].facts["counters"]
    assert counters["held_out"] > 0
    assert lawful(manifests[-1])
    assert counters["trained_once"] + counters["held_out"] == counters["events_in"]


def test_a_poisoned_increment_is_rejected_and_the_next_one_goes_on_from_before(tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "a", "gate.window=0", shards=2)  # else the sequential test would mend it first
    before = stream.advance()[-1]

    def poison(state: LearnerState) -> None:
        with torch.no_grad():
            state.model.table.weight[0, 0] = float("nan")

    stream.land(events(80, seed=2))
    stream.land(events(80, seed=3))
    (rejected,) = stream.advance(until=2, change=poison)
    assert rejected.verdict == "reject"
    assert rejected.version is None
    assert "NaN" in rejected.reason
    assert rejected.parts == before.parts, "the state is the one before, to the byte"
    assert rejected.facts["counters"]["quarantined"] == 80
    (after,) = stream.advance()
    assert after.verdict == "publish"
    assert after.version == before.version + 1
    assert lawful(after)


def test_one_item_in_nearly_all_events_is_rejected_in_the_running_process(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, shards=2)
    spam = events(300, seed=5)
    stream.land(spam.set_column(0, "item_id", pa.array(np.full(300, 7))))
    stream.land(events(80, seed=6))
    manifests = stream.advance()
    assert [m.verdict for m in manifests] == ["publish", "publish", "reject", "publish"]
    assert "one item" in manifests[2].reason
    assert [m.version for m in manifests] == [1, 2, None, 3]
    assert lawful(manifests[-1])


def test_one_event_far_ahead_in_time_does_not_empty_what_is_served(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, "catalogue.alive_s=86400", shards=2)
    ahead = events(80, seed=2, start_ms=2 * 3_600_000)
    times = ahead["ts"].to_numpy().copy()
    times[40] += 365 * DAY_MS
    stream.land(ahead.set_column(1, "ts", pa.array(times)))
    stream.land(events(80, seed=3, start_ms=3 * 3_600_000))
    manifests = stream.advance()
    assert [m.verdict for m in manifests] == ["publish", "publish", "reject", "publish"]
    assert "time lie far ahead" in manifests[2].reason
    assert manifests[3].facts["num_eligible"] > 20
    assert lawful(manifests[-1])


def test_a_held_version_is_not_served_while_the_learner_goes_on(tmp_path: Path) -> None:
    manifests = stream_of(tmp_path, "gate.max_churn=0.0").advance()
    assert manifests[0].verdict == "publish"
    assert manifests[1].verdict == "hold"
    live = [m.facts["metrics"]["live"] for m in manifests[1:]]
    frozen = [m.facts["metrics"]["frozen"] for m in manifests[1:]]
    assert live == frozen, "nothing after the warm-up was published"
    assert manifests[-1].facts["num_holds"] == 4
    assert manifests[-1].parts != manifests[0].parts


def test_a_rejected_warm_up_says_that_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe("gate.max_abs=1e-9"))
    stream.land(events(100, seed=0))
    with pytest.raises(TrainingError, match="warm-up was rejected"):
        stream.advance()


def test_an_older_writer_stops_at_its_next_marker(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, shards=3)

    def overtake(_: LearnerState) -> None:
        take_epoch(stream.store)

    with pytest.raises(FencedError):
        stream.advance(change=overtake)
    assert Chain(stream.store).latest() is None


def test_only_kept_commits_hold_parts(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, "store.keep=2", "store.keep_s=0", shards=6)
    manifests = stream.advance()

    def whole(manifest: Manifest) -> bool:
        return all(stream.store.exists(part_name(ref.sha256)) for ref in manifest.parts.values())

    assert manifests[-1].facts["trial"]["trusted"] == 1
    assert [whole(m) for m in manifests] == [True, True, False, False, True, True]


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_the_law_holds_whatever_lands(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], share: float) -> None:
    stream = Stream(
        tmp_path_factory.mktemp("law"), recipe(f"evaluation.eval_share={share}", "feed.max_events_per_user=5")
    )
    stream.land(events(50, seed=0))
    for seed, size in enumerate(sizes, start=1):
        stream.land(events(size, seed=seed, start_ms=seed * 3_600_000))
    manifests = stream.advance()
    assert all(lawful(m) for m in manifests)


def test_what_does_not_add_up_is_refused_in_words() -> None:
    rows = {"trained": 90, "held_out": 5, "duplicate": 2, "capped": 1, "quarantined": 0, "reverted": 0}
    rows["late_set_aside"] = rows["deferred"] = 0
    cut = Cut(number=3, ranges=(), num_rows=98, events_in=110, duplicate=4, quarantined=0, pending=8, record=9)
    assert conserve(rows, cut)["trained_once"] == 90
    with pytest.raises(TrainingError, match="cut 3 does not add up: 111 events came in, 110 are accounted for"):
        conserve(rows, dataclasses.replace(cut, events_in=111))


def test_an_expert_that_dies_is_left_out_counted_and_keeps_its_weight(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, "gate.window=0")
    before = stream.advance(until=2)[-1]

    def kill(state: LearnerState) -> None:
        def dies(*_: object) -> None:
            raise MemoryError("by hand")

        state.experts[0].probabilities = dies  # type: ignore[method-assign, assignment]

    after = stream.advance(change=kill)
    queries = after[0].facts["metrics"]["queries"]
    assert after[0].facts["metrics"]["faults"] == {"popular": queries}
    assert after[-1].facts["weights"]["popular"] == pytest.approx(before.facts["weights"]["popular"], rel=1e-9)
    assert all(lawful(m) for m in after)
    assert before.facts["metrics"]["faults"] == {}
