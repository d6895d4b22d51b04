"""Bias and forgetting: by hand, and in the commits of a stream."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from loop_kit import Stream, events, recipe, walks

from headrace.catalogue.eligible import NEVER
from headrace.commit.summary import Summary, summary_of
from headrace.evaluation.bias import NEW_S, new_item_recall, recall_by_age, shown
from headrace.evaluation.forgetting import SIZE, Anchors, Held, Score
from headrace.inputs.contexts import contexts_of, offsets
from headrace.tracking.increments import Increments
from headrace.tracking.page import build_page
from headrace.tracking.report import Requests, build_report
from headrace.tracking.wandb_run import row_of
from headrace.train import increment, vitals

HOUR_MS = 3_600_000
NOW_MS = 1_700_000_000_000


def test_what_is_shown_by_hand():
    count_I = np.array([100, 10, 1, 0, 0])
    first_ts_I = NOW_MS - np.array([90 * 24, 48, 1, 0, 0]) * HOUR_MS
    first_ts_I[3:] = NEVER
    found = shown(np.array([[0, 1], [0, 3], [0, -1]]), np.array([0, 1, 2, 4]), count_I, first_ts_I, NOW_MS, 3)
    assert found["popularity_lift"] == pytest.approx(((100 + 10 + 100 + 0 + 100) / 5) / ((100 + 10 + 1) / 3))
    assert found["coverage@20"] == 1.0, "three different ones, and no more may be answered"
    assert found["new_item_share"] == pytest.approx(1 / 5), "an item that nobody has touched is new"
    nothing = shown(np.full((2, 3), -1), np.array([0]), count_I, first_ts_I, NOW_MS, 3)
    assert set(nothing.values()) == {None}


def test_recall_by_age_by_hand():
    first_ts_I = NOW_MS - np.array([30 * 24, 100, 24, 23, 1, 0.5, 0]) * HOUR_MS
    first_ts_I[6] = NEVER
    first_ts_I = first_ts_I.astype(np.int64)
    item_T = np.array([0, 0, 1, 2, 3, 4, 5, 6, 6])
    rank_T = np.array([1, 20, 21, 5, 99, 1, 99, 10**9, 10**9])
    found = recall_by_age(rank_T, item_T, first_ts_I, NOW_MS)
    assert {name: one["targets"] for name, one in found.items()} == {
        "hour": 1,
        "day": 2,
        "week": 2,
        "older": 2,
        "unseen": 2,
    }
    assert {name: one["recall@20"] for name, one in found.items()} == {
        "hour": 0.0,
        "day": 0.5,
        "week": 0.5,
        "older": 1.0,
        "unseen": 0.0,
    }
    assert new_item_recall(found) == pytest.approx(1 / 5)
    assert new_item_recall(recall_by_age(rank_T[:2], item_T[:2], first_ts_I, NOW_MS)) is None
    assert 1000 * NEW_S == 24 * HOUR_MS


def held(num, first):
    """Queries whose target is their own number."""
    contexts = contexts_of([[first + n, 7] for n in range(num)], 100, 10)
    return Held(contexts, np.arange(first, first + num), offsets(np.ones(num, dtype=np.int64)))


def test_a_score_remembers_its_first_its_best_and_its_newest():
    score = Score(0.5, 0.5).then(0.8).then(0.6)
    assert (score.first, score.best_before, score.newest) == (0.5, 0.8, 0.6)


def test_queries_wait_until_they_are_an_anchor_and_anchors_spread_over_the_run():
    anchors, given = Anchors(), 0
    for cut in range(100):
        anchors = anchors.add(held(SIZE // 2, given), cut)
        given += SIZE // 2
        index = anchors.due(cut)
        if index is not None:
            anchors = anchors.noted(index, {"neural": 0.5, "blend": 0.25})
    assert anchors.completed == 50
    assert anchors.stride == 8
    assert [anchor.serial for anchor in anchors.anchors] == [0, 8, 16, 24, 32, 40, 48]
    assert [anchor.cut for anchor in anchors.anchors] == [1, 17, 33, 49, 65, 81, 97]
    for index, anchor in enumerate(anchors.anchors):
        mine = anchors.of(index)
        assert mine.target_T.tolist() == list(range(SIZE * anchor.serial, SIZE * (anchor.serial + 1)))
        assert mine.contexts.item_T[0] == mine.target_T[0]
    assert len(anchors.held) == SIZE * 7
    back = Anchors.from_state(anchors.state(), anchors.arrays())
    assert back.state() == anchors.state()
    assert {name: array.tolist() for name, array in back.arrays().items()} == {
        name: array.tolist() for name, array in anchors.arrays().items()
    }


def test_a_new_anchor_is_asked_at_once_and_then_each_in_turn():
    anchors = Anchors().add(held(SIZE, 0), 0)
    assert anchors.due(0) == 0
    anchors = anchors.noted(0, {"neural": 0.4}).add(held(SIZE, SIZE), 1)
    assert anchors.due(1) == 1
    assert anchors.forgotten("neural") is None
    anchors = anchors.noted(1, {"neural": 1.0})
    assert [anchors.due(cut) for cut in (2, 3, 4)] == [0, 1, 0]
    anchors = anchors.noted(0, {"neural": 0.6}).noted(0, {"neural": 0.1}).noted(1, {"neural": 0.8})
    assert anchors.forgotten("neural") == pytest.approx(((0.6 - 0.1) + (1.0 - 0.8)) / 2)
    assert anchors.transferred("neural") == pytest.approx(((0.1 - 0.4) + (0.8 - 1.0)) / 2)


STREAM = ("evaluation.eval_share=0.3", "model.dropout=0.0", "gate.window=0")


def stream(folder, shards=6, *words):
    made = Stream(folder, recipe(*STREAM, *words))
    for index in range(shards):
        made.land(walks(400 if index == 0 else 200, index))
    return made


def test_commits_tell_how_the_learner_is(tmp_path):
    commits = stream(tmp_path).advance()
    first, second = (commit.facts["vitals"] for commit in commits[:2])
    assert set(first) == {"anchor", "average_forgetting", "backward_transfer", "churn@20"}
    assert first["anchor"]["cut"] == 0, "the warm-up has more held-out rows than an anchor needs"
    assert first["churn@20"] is None
    assert 0.0 <= second["new_item_recall@20"] <= 1.0
    assert 0.0 <= second["churn@20"] <= 1.0
    assert "popularity_lift" not in second, "a hundred queries are too few to look again"
    assert sum(one["targets"] for one in second["recall_by_age"].values()) == commits[1].facts["metrics"]["queries"]
    asked = [commit.facts["vitals"]["anchor"] for commit in commits]
    assert [one["cut"] for one in asked[:3]] == [0, 1, 2], "a new anchor is asked at once"


def test_it_is_looked_at_two_in_a_hundred_queries(tmp_path, monkeypatch):
    monkeypatch.setattr(vitals, "_EVERY", 250)
    commits = stream(tmp_path, 10, "evaluation.eval_share=0.02").advance()
    looked = [commit.cut for commit in commits if "popularity_lift" in commit.facts["vitals"]]
    since, expected = 0, []
    for commit in commits[1:]:
        since += commit.facts["metrics"]["queries"]
        if since >= 250:
            since, expected = 0, [*expected, commit.cut]
    assert looked == expected
    assert len(looked) > 2
    for cut in looked:
        found = commits[cut].facts["vitals"]
        assert all(found[name] >= 0.0 for name in ("popularity_lift", "coverage@20", "new_item_share"))


def test_nothing_is_measured_where_nothing_is_held_out(tmp_path):
    commits = stream(tmp_path, 3, "evaluation.eval_share=0.0").advance()
    assert "anchor" not in commits[-1].facts["vitals"]
    assert "anchors" not in commits[-1].parts
    assert "recall_by_age" in commits[-1].facts["vitals"]


def test_anchors_are_alike_on_two_ranks_and_survive_a_restart(tmp_path):
    whole = stream(tmp_path / "whole").advance_pair()
    stopped = stream(tmp_path / "stopped")
    stopped.advance_pair(until=2)
    assert [commit.state_digest for commit in stopped.advance_pair()] == [commit.state_digest for commit in whole[3:]]


def test_held_out_rows_teach_nothing_by_being_asked(tmp_path, monkeypatch):
    asked = stream(tmp_path / "asked").advance()
    monkeypatch.setattr(increment, "measure", lambda *_: {})
    others = stream(tmp_path / "not").advance()
    for one, other in zip(asked, others, strict=True):
        assert {name: ref for name, ref in one.parts.items() if name != "anchors"} == dict(other.parts)


def test_a_stream_without_a_single_query_is_fine(tmp_path):
    made = Stream(tmp_path, recipe(*STREAM))
    for index in range(3):
        made.land(events(40, index, start_ms=index * 10**7, num_users=10**6))
    assert [commit.verdict for commit in made.advance()] == ["publish"] * 3


def test_the_report_and_its_page_tell_how_the_learner_is(tmp_path, monkeypatch):
    monkeypatch.setattr(vitals, "_EVERY", 100)
    commits = stream(tmp_path, 8).advance()
    increments = Increments(map(summary_of, commits))
    report = build_report(increments, Requests(), [])
    assert set(report["anchors"]) <= {str(commit.cut) for commit in commits}
    assert report["anchors"]["0"][0] == commits[0].facts["vitals"]["anchor"]["neural"]
    told = report["vitals"]
    assert told["popularity_lift"] == [commit.facts["vitals"].get("popularity_lift") for commit in commits]
    assert told["update_ratio"][1] == commits[1].facts["training"]["update_ratio"]
    frozen, live = (commits[3].facts["metrics"][name]["recall@20"] for name in ("frozen", "live"))
    assert told["regret_at_20"][3] == pytest.approx(frozen - live)
    assert told["average_forgetting_neural"][-1] is not None
    page = build_page(report, "a run", increments.outcomes(), as_of_ms=0, is_running=False)
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    text = " ".join(tree.itertext())
    for words in (
        "Bias and stability",
        "popularity lift",
        "Forgetting",
        "after cut",
        "recall@20 of frozen less that of live",
    ):
        assert words in text, words
    for element in tree.iter():
        assert not [value for name, value in element.attrib.items() if "nan" in value and name != "class"]


def test_wandb_gets_the_same_figures(tmp_path):
    commits = [summary_of(commit) for commit in stream(tmp_path, 3).advance()]
    row = row_of(commits[2], None, {}, "store")
    assert row["vitals/churn_at_20"] == commits[2].vitals["churn@20"]
    assert row["vitals/update_ratio"] == commits[2].vitals["update_ratio"]
    assert row["vitals/regret_at_20"] == row["recall_at_20/frozen"] - row["recall_at_20/live"]
    assert row["forgetting/cut_2/neural"] == commits[2].anchor["neural"]
    assert "vitals/popularity_lift" not in row, "it was not looked at"


def test_a_summary_survives_the_journal_and_older_lines_are_read(tmp_path):
    made = summary_of(stream(tmp_path, 2).advance()[1])
    assert Summary.from_json(made.to_json()) == made
    line = {name: value for name, value in json.loads(made.to_json()).items() if name not in ("vitals", "anchor")}
    assert Summary.from_json(json.dumps(line)).vitals == {}
