import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.commit.manifest import Envelope, Manifest
from headrace.commit.summary import Summary, summary_of
from headrace.tracking.increments import Increments
from headrace.tracking.report import (
    Landing,
    Requests,
    build_report,
    freshness_of,
    weighted_quantile,
    write_report,
)


@dataclass(frozen=True)
class Request:
    received_monotonic_s: float
    version: int | None
    replica: str | None = "a"
    failed: bool = False
    slow: bool = False
    mixed: bool | None = None


def _commit(cut, version=None, verdict="publish", metrics=None, events=200, wall_ms=0, train_s=0.5):
    facts = {"events": events, "metrics": metrics or {}, "counters": {"events_in": events * (cut + 1)}}
    envelope = Envelope(1, "t", wall_ms, 0.0, {"feed": 0.25, "train": train_s})
    return Manifest(cut, None, verdict, "", version, {}, facts, envelope)


def _scores(value):
    return {"recall@20": value, "mrr@20": value / 2}


# cut 0 warm-up (version 1), cuts 1 and 2 held and published together as version 2, cut 3 as version 3
COMMITS = [_commit(0, 1), _commit(1, None, "hold"), _commit(2, 2), _commit(3, 3)]


def report_of(commits, requests, landings, now_s=None):
    return build_report(Increments(map(summary_of, commits)), Requests(requests), landings, now_s)


def _fresh(landings, requests, commits=COMMITS):
    return freshness_of(Increments(map(summary_of, commits)).cut_of, Requests(requests), landings).tolist()


def test_a_shard_is_fresh_with_the_first_answer_that_covers_it():
    landings = [Landing("s1", 1, 200, 10.0), Landing("s3", 3, 200, 12.0)]
    requests = [Request(10.5, 1), Request(11.5, 2), Request(12.5, 2), Request(13.0, 3)]
    assert _fresh(landings, requests) == [1.5, 1.0]


def test_a_held_increment_waits_for_the_next_published_one():
    assert _fresh([Landing("s1", 1, 200, 10.0)], [Request(10.1, 1), Request(20.0, 3)]) == [10.0]


def test_every_replica_must_have_answered_with_it():
    requests = [Request(9.0, 1, "a"), Request(9.1, 1, "b"), Request(11.0, 2, "a"), Request(12.0, 1, "b")]
    assert _fresh([Landing("s1", 1, 200, 10.0)], requests) == [math.inf]
    assert _fresh([Landing("s1", 1, 200, 10.0)], [*requests, Request(13.0, 2, "b")]) == [3.0]


def test_the_order_of_the_log_does_not_matter():
    requests = [Request(13.0, 2, "b"), Request(9.1, 1, "b"), Request(11.0, 2, "a"), Request(9.0, 1, "a")]
    assert _fresh([Landing("s1", 1, 200, 10.0)], requests) == [3.0]


def test_a_replica_that_left_is_not_waited_for():
    requests = [Request(9.0, 1, "a"), Request(9.1, 1, "b"), Request(11.0, 2, "a"), Request(30.0, 3, "a")]
    assert _fresh([Landing("s1", 1, 200, 10.0)], requests) == [1.0]


def test_a_replica_that_has_not_come_yet_is_not_waited_for():
    requests = [Request(9.0, 1, "a"), Request(11.0, 2, "a"), Request(20.0, 2, "b"), Request(21.0, 3, "b")]
    assert _fresh([Landing("s1", 1, 200, 10.0)], requests) == [1.0]


def test_what_is_not_served_is_infinitely_old():
    landings = [Landing("waiting", None, 200, 10.0), Landing("s3", 3, 200, 10.0)]
    assert _fresh(landings, [Request(11.0, 2)]) == [math.inf, math.inf]
    assert _fresh(landings, []) == [math.inf, math.inf]
    assert _fresh(landings, [Request(11.0, 3, failed=True), Request(11.0, None, None)]) == [math.inf, math.inf]


def test_quantiles_are_weighted_by_event_and_unserved_events_are_null_at_the_end():
    landings = [
        Landing("warm-up", 0, 9000, 0.0),
        Landing("s1", 1, 10, 10.0),
        Landing("s3", 3, 90, 10.0),
        Landing("late", None, 5, 15.0),
    ]
    requests = [Request(11.0, 2), Request(14.0, 3)]
    fresh = report_of(COMMITS, requests, landings)["freshness_s"]
    assert fresh == {
        "p50": 4.0,
        "p99": None,
        "shards": 3,
        "events": 105,
        "events_not_served": 5,
        "events_rejected": 0,
        "per_increment": [None, 1.0, None, 4.0],
    }
    assert report_of(COMMITS, requests, landings, now_s=25.0)["freshness_s"]["p99"] == 10.0


def test_each_cut_has_the_median_of_its_landings_by_event():
    commits = [_commit(0, 1), _commit(1, 2), _commit(2, None, "reject"), _commit(3, 3), _commit(4, 4)]
    landings = [
        Landing("warm-up", 0, 9000, 0.0),
        Landing("old", 1, 10, 3.0),  # 8 s
        Landing("young", 1, 30, 10.0),  # 1 s
        Landing("middle", 1, 30, 7.0),  # 4 s: 30 of 70 events are fresh after 1 s, 60 after 4 s
        Landing("poison", 2, 100, 11.0),
        Landing("none", 3, 0, 1.0),
        Landing("half", 3, 5, 12.0),  # 2 s: half of the cut's events, and half is enough
        Landing("other half", 3, 5, 11.0),
        Landing("not served", 4, 5, 11.0),
        Landing("waiting", None, 5, 11.0),
    ]
    requests = [Request(11.0, 2), Request(14.0, 3)]
    assert report_of(commits, requests, landings)["freshness_s"]["per_increment"] == [None, 4.0, None, 2.0, None]
    now = report_of(commits, requests, landings, now_s=20.0)
    assert now["freshness_s"]["per_increment"] == [None, 4.0, None, 2.0, None], "what waits has none yet"


def test_what_was_decided_on_each_commit():
    increments = Increments(map(summary_of, [_commit(0, 1), _commit(1, None, "hold"), _commit(2, 2)]))
    assert [tuple(outcome) for outcome in increments.outcomes()] == [
        (0, 1, "publish", ""),
        (1, None, "hold", ""),
        (2, 2, "publish", ""),
    ]


def test_rejected_rows_are_never_served_and_counted_apart():
    commits = [_commit(0, 1), _commit(1, None, "reject"), _commit(2, 2)]
    landings = [Landing("poison", 1, 300, 10.0), Landing("good", 2, 100, 10.0)]
    fresh = report_of(commits, [Request(12.0, 2)], landings)["freshness_s"]
    assert (fresh["p50"], fresh["p99"], fresh["events_rejected"]) == (2.0, 2.0, 300)


def test_scores_are_a_value_per_increment_and_null_where_nothing_was_scored():
    commits = [
        _commit(0, 1),
        _commit(1, 2, metrics={"live": _scores(0.5), "frozen": _scores(0.4), "experts": {"neural": _scores(0.3)}}),
        _commit(2, 3, metrics={"live": _scores(0.6), "frozen": None, "experts": {"popular": _scores(0.2)}}),
        _commit(3, 4, metrics={"queries": 0, "live": None, "learner": None, "frozen": None, "experts": {}}),
    ]
    report = report_of(commits, [], [])
    assert report["recall_at_20"] == {
        "live": [None, 0.5, 0.6, None],
        "learner": [None, None, None, None],
        "frozen": [None, 0.4, None, None],
        "experts": {"neural": [None, 0.3, None, None], "popular": [None, None, 0.2, None]},
    }
    assert report["mrr_at_20"]["live"] == [None, 0.25, 0.3, None]


def test_counts():
    commits = [
        _commit(0, 1, events=5000, wall_ms=1000, train_s=9.75),
        _commit(1, None, "hold", wall_ms=3000),
        _commit(2, 2, wall_ms=6000),
        _commit(3, None, "reject", wall_ms=8000),
    ]
    requests = [
        Request(1.0, 1),
        Request(2.0, 1, slow=True, mixed=False),
        Request(3.0, 2, mixed=True),
        Request(4.0, None, None, failed=True),
    ]
    report = report_of(commits, requests, [])
    assert report["increments"] == 4
    assert report["cuts"] == [0, 1, 2, 3]
    assert report["events"] == 5600
    assert report["requests"] == {"total": 4, "failed": 1, "slow": 1, "recomputed": 2, "mixed_version": 1}
    assert report["versions_served"] == [1, 2]
    assert report["verdicts"] == {"publish": 2, "hold": 1, "reject": 1}
    assert report["counters"] == {"events_in": 800}
    assert report["train_events_per_s"] == 400.0
    assert report["wall_s"] == 17.0


def test_what_stays_of_a_commit_says_the_same_after_a_round_trip():
    for commit in COMMITS:
        summary = summary_of(commit)
        assert Summary.from_json(summary.to_json()) == summary


def test_a_series_that_begins_late_or_pauses_has_nulls_there():
    experts = [{}, {"neural": _scores(0.5)}, {}, {"neural": _scores(0.25)}]
    commits = [_commit(cut, cut + 1, metrics={"experts": of}) for cut, of in enumerate(experts)]
    assert report_of(commits, [], [])["recall_at_20"]["experts"] == {"neural": [None, 0.5, None, 0.25]}


def test_in_a_long_run_neighbouring_increments_share_a_row(monkeypatch):
    monkeypatch.setattr("headrace.tracking.increments._MOST_ROWS", 2)
    shares = [0.5, None, 0.75, 0.25, None]
    commits = [
        _commit(cut, cut + 1, metrics={"experts": {} if share is None else {"neural": _scores(share)}})
        for cut, share in enumerate(shares)
    ]
    landings = [Landing("a", 1, 10, 1.0), Landing("b", 2, 30, 2.0), Landing("c", 3, 10, 2.0), Landing("d", 4, 10, 3.0)]
    requests = [Request(4.0, 2), Request(6.0, 3), Request(6.5, 5)]
    report = report_of(commits, requests, landings)
    assert (report["increments_a_row"], report["increments"], report["cuts"]) == (3, 5, [2, 4])
    assert report["recall_at_20"]["experts"] == {"neural": [0.625, 0.25]}
    # cuts 1 and 2 took 10 events fresh within 3 s and 30 within 4; cuts 3 and 4 took 10 within 4.5 and 10 within 3.5
    assert report["freshness_s"]["per_increment"] == [4.0, 3.5]


def test_differences_are_taken_commit_by_commit(monkeypatch):
    monkeypatch.setattr("headrace.tracking.increments._MOST_ROWS", 2)
    commits = []
    for cut in range(4):  # frozen is asked in every second cut, on which live happens to be better
        live = 0.5 if cut % 2 == 0 else 0.25
        scores = {"live": _scores(live), "experts": {"neural": _scores(live - 0.125)}}
        commits.append(_commit(cut, cut + 1, metrics=scores | ({"frozen": _scores(0.25)} if cut % 2 == 0 else {})))
    report = report_of(commits, [], [])
    assert report["live_above"] == {"frozen": [0.25, 0.0], "experts": {"neural": [0.125, 0.0]}}
    assert report["recall_at_20"]["live"] == [0.375, 0.375]


def test_requests_are_counted_not_kept_and_a_copy_stands_still():
    requests = Requests(Request(float(second), 1 + second // 10) for second in range(100))
    assert (requests.total, requests.versions) == (100, list(range(1, 11)))
    assert requests.first_s == {"a": {version: 10.0 * (version - 1) for version in range(1, 11)}}
    copied = requests.copy(newest_versions=2)
    requests.add(Request(100.0, 11))
    assert (copied.total, copied.versions, copied.span_s["a"]) == (100, [9, 10], (0.0, 99.0))


def test_nothing_at_all_is_a_report_too(tmp_path):
    report = report_of([], [], [])
    assert report["increments"] == 0
    assert report["train_events_per_s"] is None
    assert report["freshness_s"]["p50"] is None
    write_report(tmp_path / "run" / "report.json", report)
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report


def test_a_report_replaces_the_last_one_whole(tmp_path):
    path = tmp_path / "report.json"
    for number in range(3):
        write_report(path, {"increments": number})
    assert json.loads(path.read_text()) == {"increments": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("values", "weights", "q", "expected"),
    [
        ([], [], 0.5, None),
        ([3.0], [0.0], 0.5, None),
        ([3.0], [1.0], 0.99, 3.0),
        ([1.0, 2.0], [1.0, 1.0], 0.5, 1.0),
        ([2.0, 1.0], [1.0, 3.0], 0.75, 1.0),
        ([2.0, 1.0], [1.0, 3.0], 0.76, 2.0),
        ([1.0, math.inf], [99.0, 1.0], 0.99, 1.0),
        ([1.0, math.inf], [98.0, 2.0], 0.99, math.inf),
    ],
)
def test_weighted_quantile(values, weights, q, expected):
    assert weighted_quantile(np.array(values), np.array(weights), q) == expected


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=30), st.sampled_from([0.5, 0.99])
)
def test_a_weight_is_a_repetition(pairs, q):
    values = np.array([float(value) for value, _ in pairs])
    weights = np.array([weight for _, weight in pairs])
    repeated = np.sort(np.repeat(values, weights))
    expected = repeated[math.ceil(q * len(repeated) - 1e-9) - 1]
    assert weighted_quantile(values, weights.astype(float), q) == expected
