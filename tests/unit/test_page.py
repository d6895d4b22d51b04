import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from headrace.store.store import Store
from headrace.tracking.console import Observer
from headrace.tracking.increments import Increments, Outcome
from headrace.tracking.page import build_page, write_page
from headrace.tracking.report import Requests, build_report
from headrace.tracking.samples import told
from headrace.tracking.series import (
    floats,
    kept,
    log_ticks,
    mean_difference,
    round_ticks,
    running_mean,
    spread,
    stretches,
    window_of,
)
from headrace.train.feeder import LandingLog
from headrace.train.follower import Follower

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('x')</script>\"&"
LATE, PAUSED = "own_items", "covisit"
SERIES = ("live", "frozen", "oracle", "neural", LATE, PAUSED, HOSTILE)


def _report(num, total=100, failed=0, slow=0, mixed=0):
    def series(base):
        return [None, *(base + 0.01 * math.sin(cut) for cut in range(1, num))][:num]

    late = [None] * (num // 2) + series(0.2)[num // 2 :]
    paused = [value if cut % 3 else None for cut, value in enumerate(series(0.15))]
    experts = {"neural": series(0.3), LATE: late, PAUSED: paused, HOSTILE: series(0.1)}
    weights = {"neural": [0.5] * num, LATE: [None] * (num // 2) + [0.3] * (num - num // 2), "uniform": [0.2] * num}
    counters = {"events_in": 200 * num, "trained_once": 190 * num, "held_out": 10 * num}
    return {
        "increments": num,
        "cuts": list(range(num)),
        "events": 200 * num,
        "recall_at_20": {"live": series(0.4), "frozen": series(0.35), "oracle": series(0.5), "experts": experts},
        "live_above": {"frozen": [0.05, 0.0], "experts": {"neural": [0.1, 0.001], LATE: [0.2, 0.001], PAUSED: None}},
        "blend_weights": weights,
        "freshness_s": {"p50": 0.5, "p99": None, "events": 100, "events_not_served": 7, "per_increment": series(0.6)},
        "requests": {"total": total, "failed": failed, "slow": slow, "recomputed": total // 10, "mixed_version": mixed},
        "counters": counters,
        "train_events_per_s": 2833.2,
        "wall_s": 400.0,
    }


def _outcomes(num):
    kinds = [("publish", "passed every rule"), ("hold", "much changed"), ("reject", HOSTILE)]
    outcomes = [Outcome(cut, cut if cut % 3 == 0 else None, *kinds[cut % 3]) for cut in range(num)]
    return [*outcomes[:-1], Outcome(num - 1, num, "publish", "rolled back to version 1: live lost")] if num else []


def _page(num, **requests):
    return build_page(_report(num, **requests), "a run", _outcomes(num), as_of_ms=0, is_running=False)


def _tree(page):
    """It is XML as well, which is stricter than a browser."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def _text(page):
    return " ".join(_tree(page).itertext())


@pytest.mark.parametrize("num", [0, 1, 2, 3, 12, 120, 3000])
def test_a_page_is_well_formed_and_has_only_numbers_in_its_charts(num):
    tree = _tree(_page(num))
    assert len(tree.findall(f".//{SVG}svg")) == {0: 0, 1: 2}.get(num, 4)
    for element in tree.iter():
        for name, value in element.attrib.items():
            assert not re.search(r"nan|inf", value) or name == "class", (element.tag, name, value)


def test_nothing_is_loaded_from_elsewhere():
    page = _page(40)
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|href|url|@import)\b", page)
    assert not _tree(page).findall(".//script")


def test_every_series_is_named_in_the_legend_and_at_its_end():
    tree = _tree(_page(40))
    assert [entry.find("i").tail.strip() for entry in tree.findall(".//ul")[0]] == list(SERIES)
    labels = {text.text for text in tree.findall(f".//{SVG}text")}
    assert {"live", "frozen", "oracle", "neural", LATE, PAUSED} <= labels
    assert any(HOSTILE.startswith(label.removesuffix("…")) for label in labels if label.endswith("…"))


def test_a_long_run_has_numbers_below_its_charts_and_says_how_many_increments_a_point_is():
    report = _report(500) | {"increments": 10_000, "increments_a_row": 20, "cuts": list(range(19, 10_000, 20))}
    page = build_page(report, "", [], as_of_ms=0, is_running=False)
    labels = [text.text for text in _tree(page).findall(f".//{SVG}text")]
    assert labels.count("2000") == labels.count("8000") == 3
    assert "Running mean of 820 increments" in page
    assert "median over the events of every 20 increments" in page


def test_a_hostile_name_is_text():
    page = build_page(_report(12), HOSTILE, _outcomes(12), as_of_ms=0, is_running=False)
    assert "<script" not in page
    assert _tree(page).find(".//h1").text == HOSTILE
    assert any(HOSTILE in title.text for title in _tree(page).findall(f".//{SVG}title"))


@pytest.mark.parametrize("report", [{}, build_report(Increments(), Requests(), [])])
def test_an_empty_report_is_a_page_too(report):
    text = _text(build_page(report, "empty", [], as_of_ms=0, is_running=True))
    assert text.count("Nothing yet.") == 5
    assert text.count("nobody asked") == 3


def test_samples_are_cards_with_names_and_ids_where_there_are_none():
    had = [{"item_id": 7, "name": None, "score": None}, {"item_id": 8, "name": HOSTILE, "score": None}]
    answers = [{"item_id": "a&b", "name": "tea", "score": 0.25}, {"item_id": 9, "name": None, "score": 0.125}]
    report = _report(4) | {"samples": [{"past": had, "num_before": 95, "answers": answers}]}
    card = _tree(build_page(report, "", [], as_of_ms=0, is_running=False)).find(".//div[@class='sample']")
    assert [" ".join(line.itertext()) for line in card.findall("ul/li")] == ["95 more, then", "7", HOSTILE]
    assert ["".join(line.itertext()) for line in card.findall("ol/li")] == ["tea 25.0%", "9 12.5%"]
    assert card.find("ol/li/span").attrib == {"title": "a&b"}
    assert "Sample recommendations" not in _page(4)


def test_a_few_samples_are_told_on_the_terminal():
    named, plain = {"item_id": 8, "name": "tea", "score": 0.25}, {"item_id": 7, "name": None, "score": 0.125}
    sample = {"past": [plain, named], "num_before": 0, "answers": [named, plain]}
    assert told([], None) == []
    assert told([sample | {"num_before": 3}] * 9, 12) == [
        "what version 12 answers to those who came last:",
        *["  had:   3 more, then 7; tea", "  next:  1. tea  25.0%", "         2. 7  12.5%"] * 3,
    ]


def test_lists_of_nothing_but_gaps_are_not_drawn():
    report = _report(4) | {
        "recall_at_20": {"live": [None] * 4, "frozen": [None] * 4, "experts": {"neural": [None] * 4}},
        "blend_weights": {"neural": [None] * 4},
        "freshness_s": {"per_increment": [None] * 4},
    }
    assert len(_tree(build_page(report, "", [], as_of_ms=0, is_running=False)).findall(f".//{SVG}svg")) == 0


def test_requests_are_green_or_red_and_neither_where_nobody_asked():
    def states(**requests):
        return [tile.attrib["class"] for tile in _tree(_page(3, **requests)).findall(".//div[@class='tiles']/div")[:3]]

    assert states() == ["tile good"] * 3
    assert states(failed=1, slow=2, mixed=3) == ["tile bad"] * 3
    assert states(total=0) == ["tile "] * 3


def test_live_is_compared_with_frozen_and_with_the_best_expert():
    text = _text(_page(12))
    assert re.search(r"\+5\.00\s*live over frozen", text)
    assert re.search(r"\+10\.00\s*live over the best expert, neural", text)
    assert "✗ 3" in _text(_page(3, mixed=3))


def test_ticks_say_what_was_decided_and_why():
    titles = [title.text for title in _tree(_page(9)).findall(f".//{SVG}rect/{SVG}title")]
    assert "increment 3, version 3, publish: passed every rule" in titles
    assert "increment 4, hold: much changed" in titles
    assert "increment 8, version 9, publish: rolled back to version 1: live lost" in titles


def test_ticks_of_a_long_run_tell_of_several_increments_and_lose_none_that_was_rejected():
    ticks = _tree(_page(3000)).findall(f".//{SVG}rect[@class='tick reject']")
    words = [line for tick in ticks for line in tick.find(f"{SVG}title").text.split("\n")]
    more = sum(int(line.split()[1]) for line in words if line.startswith("and "))
    assert len(ticks) < 500
    assert sum(line.startswith("increment") for line in words) + more == 999


def test_counters_must_add_up():
    report = _report(3)
    assert "✓ The terms add up" in _text(_page(3))
    report["counters"]["held_out"] += 1
    assert "✗ The terms do not add up" in _text(build_page(report, "", [], as_of_ms=0, is_running=False))


def test_only_the_page_of_a_run_that_goes_on_loads_itself_anew():
    def page(is_running):
        return build_page(_report(2), "", [], as_of_ms=0, is_running=is_running)

    assert 'http-equiv="refresh"' in page(True)
    assert 'http-equiv="refresh"' not in page(False)
    assert "running, as of 1970-01-01 00:00:00 UTC" in _text(page(True))


def test_a_long_run_has_no_longer_page():
    assert len(_page(20_000)) < 3 * len(_page(500))


def test_a_page_replaces_the_last_one_whole(tmp_path):
    path = tmp_path / "run" / "report.html"
    for words in ("one", "two ✓"):
        write_page(path, words)
    assert path.read_text(encoding="utf-8") == "two ✓"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_run_leaves_the_page_beside_its_report(tmp_path):
    report = tmp_path / "my run" / "report.json"
    log = LandingLog(tmp_path / "landings.jsonl")
    follower = Follower(Store(str(tmp_path / "store")), report, Observer(), log, None, lambda: 0)
    follower.start()
    follower.close()
    assert sorted(file.name for file in report.parent.iterdir()) == ["report.html", "report.json"]
    assert _tree(report.with_suffix(".html").read_text(encoding="utf-8")).find(".//h1").text == "my run"


def test_a_running_mean_by_hand():
    curve = running_mean(floats([None, 1.0, 2.0, None, 6.0, None]), 3)
    np.testing.assert_allclose(curve.mean_C, [np.nan, 1.5, 1.5, 4.0, 6.0, np.nan])
    # of 1 and 2: a variance of 0.5 over 2 values; of 2 and 6: of 8
    np.testing.assert_allclose(curve.half_C[1:4], [1.96 * 0.5, 1.96 * 0.5, 1.96 * 2.0])
    assert np.isnan(curve.half_C[4]), "one value does not tell how far off it is"


def test_a_running_mean_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    value_C = 1000 + rng.normal(0, 0.01, 60)
    curve = running_mean(value_C, 7)
    around = value_C[20 - 3 : 20 + 4]
    assert curve.mean_C[20] == pytest.approx(around.mean())
    assert curve.half_C[20] == pytest.approx(1.96 * around.std(ddof=1) / math.sqrt(7))


def test_windows_are_odd():
    assert [window_of(num) for num in (0, 1, 60, 84, 120)] == [5, 5, 5, 7, 11]


def test_a_mean_difference_counts_increments_that_have_both():
    ours, theirs = floats([1.0, 3.0, None, 5.0]), floats([1.0, 1.0, 9.0, None])
    assert mean_difference(ours, theirs) == pytest.approx((1.0, 1.96))
    assert mean_difference(ours[:1], theirs[:1]) is None


def test_what_is_kept_to_be_drawn():
    assert kept(0, 5).tolist() == []
    assert kept(3, 5).tolist() == [0, 1, 2]
    assert kept(101, 5).tolist() == [0, 25, 50, 75, 100]
    at_K, least_K, median_K, most_K = spread(floats([1.0, 2.0, 9.0, None, None, None]), 2)
    assert at_K.tolist() == [1, 4]
    np.testing.assert_array_equal([least_K, median_K, most_K], [[1, np.nan], [2, np.nan], [9, np.nan]])
    assert stretches(np.array([True, True, False, True])) == [slice(0, 2), slice(3, 4)]


def test_ticks_are_round_and_cover_what_is_drawn():
    assert round_ticks(0.0, 40.0) == [0, 10, 20, 30, 40]
    assert round_ticks(3.2, 7.9) == [3, 4, 5, 6, 7, 8]
    assert round_ticks(5.0, 5.0)[0] <= 5.0 < round_ticks(5.0, 5.0)[-1]
    assert log_ticks(0.3, 26.0) == pytest.approx([0.2, 0.5, 1, 2, 5, 10, 20, 50])
    assert log_ticks(0.03, 260.0) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    assert log_ticks(1.0, 100.0) == pytest.approx([1, 2, 5, 10, 20, 50, 100])
    assert log_ticks(math.nextafter(1e-3, 0), 1e3)[0] < 1e-3
