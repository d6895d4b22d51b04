"""A study's names, intervals, matrices and pages, by hand-made figures."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from study_kit import WORDS, log_of, recipe_file

from headrace.bench import compare
from headrace.bench.study import forgetting, kinds
from headrace.bench.study.answers import Answers
from headrace.bench.study.charts import cost_chart
from headrace.bench.study.output import note
from headrace.bench.study.page import build_page
from headrace.bench.study.paired import above
from headrace.bench.study.published import published
from headrace.bench.study.results import Study
from headrace.bench.study.shelf import Shelf
from headrace.bench.study.summary import Summary
from headrace.bench.study.table import markdown
from headrace.bench.study.variants import names_of, variant
from headrace.errors import ConfigError
from headrace.inputs.contexts import offsets
from headrace.tracking.heat import heat_map

FIGURES = [("neural", "recall@20"), ("blend_running", "mrr@20")]


def answers(rank_T, session_Q=None, size_Q=None, new_T=None, first=0, repeat_T=None) -> Answers:
    """Of one voter that is everybody; a target each unless ``size_Q`` says otherwise."""
    rank_T = np.asarray(rank_T)
    size_Q = np.ones(len(rank_T), dtype=np.int64) if size_Q is None else np.asarray(size_Q)
    num = len(size_Q)
    session_Q = np.arange(num) if session_Q is None else np.asarray(session_Q)
    new_T = np.zeros(len(rank_T), dtype=bool) if new_T is None else np.asarray(new_T)
    ranks = dict.fromkeys(("neural", "blend", "blend_running", "popular"), rank_T)
    repeat_T = np.zeros(len(rank_T), dtype=bool) if repeat_T is None else np.asarray(repeat_T)
    key_Q, ts_Q = first + np.arange(num), np.arange(num)
    return Answers(key_Q, session_Q.astype(np.uint64), ts_Q, offsets(size_Q), new_T, repeat_T, ranks)


def test_what_was_met_before_and_what_was_not_have_figures_of_their_own():
    made = answers([1, 30, 2, 600], size_Q=[3, 1], repeat_T=[True, True, False, False])
    figures = made.figures("neural")
    assert figures["repeat_recall@20"] == pytest.approx(0.5)  # of the one query that has such targets
    assert figures["repeat_recall@100"] == pytest.approx(1.0)
    assert figures["explore_recall@20"] == pytest.approx((1 + 0) / 2)
    assert figures["explore_recall@500"] == pytest.approx((1 + 0) / 2)
    assert answers([1]).figures("neural")["repeat_recall@20"] is None


def test_figures_of_a_test_by_hand():
    made = answers([1, 30, 2, 600], size_Q=[2, 1, 1], new_T=[False, True, False, False])
    figures = made.figures("neural")
    assert figures["recall@20"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert figures["mrr@20"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert figures["new_item_recall@20"] == 0.5, "the first query alone has a new target"
    assert answers([1, 2]).figures("neural")["new_item_recall@20"] is None


def test_answers_come_back_from_their_file(tmp_path):
    made = answers([1, 70_000, 3], size_Q=[2, 1], new_T=[True, False, False])
    made.save(tmp_path / "a" / "cycle-001.npz")
    back = Answers.load(tmp_path / "a" / "cycle-001.npz")
    assert back.figures("blend") == made.figures("blend")
    np.testing.assert_array_equal(back.ranks["popular"], [1, 65_535, 3])
    np.testing.assert_array_equal(back.take(np.array([1])).ranks["neural"], [3])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["cycle-001.npz"]


def test_the_same_answers_are_not_above_themselves():
    draw = np.random.default_rng(1)
    tests = {cycle: [answers(draw.integers(1, 60, 200))] for cycle in (5, 6)}
    for interval in above(tests, tests, FIGURES).values():
        assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)
        assert not interval.is_above


def test_a_planted_gain_is_found_and_its_width_is_that_of_sessions():
    draw = np.random.default_rng(2)
    session_Q = np.repeat(np.arange(400), 5)
    hit_U = draw.random(400) < 0.1  # all queries of a session gain together
    theirs = np.full(2000, 40)
    ours = np.where(hit_U[session_Q], 1, 40)
    found = above({5: [answers(ours, session_Q)]}, {5: [answers(theirs, session_Q)]}, FIGURES)[FIGURES[0]]
    share = float(hit_U.mean())
    assert found.mean == pytest.approx(share)
    half = 1.96 * math.sqrt(share * (1 - share) / 400)  # were queries independent: a fifth of the variance
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)
    assert found.is_above
    assert (found.cycles, found.seeds, found.queries) == ((5,), 1, 2000)


def test_cycles_weigh_the_same_and_only_common_queries_count():
    large = (answers(np.full(300, 1)), answers(np.full(300, 40)))
    small = (answers([40] * 10), answers([40] * 10))
    found = above({1: [large[0]], 2: [small[0]], 3: [small[0]]}, {1: [large[1]], 2: [small[1]]}, FIGURES)[FIGURES[0]]
    assert found.mean == pytest.approx(0.5)
    assert found.cycles == (1, 2)
    shifted = above({1: [answers([1] * 10)]}, {1: [answers([40] * 10, first=4)]}, FIGURES)[FIGURES[0]]
    assert shifted.queries == 6
    assert above({1: [small[0]]}, {2: [small[1]]}, FIGURES) == {}


def test_seeds_that_disagree_widen_the_interval():
    rank = np.full(400, 40)
    up, down = rank.copy(), rank.copy()
    up[:40], down[:20] = 1, 1
    theirs = [answers(rank)] * 2
    agree = above({1: [answers(up), answers(up)]}, {1: theirs}, FIGURES)[FIGURES[0]]
    differ = above({1: [answers(up), answers(down)]}, {1: theirs}, FIGURES)[FIGURES[0]]
    assert agree.mean == pytest.approx(0.1)
    assert differ.mean == pytest.approx(0.075)
    assert differ.high - differ.low > agree.high - agree.low


def test_forgetting_by_hand():
    rows = [
        {"cycle": 1, "neural": {"recall@20": [0.6]}},
        {"cycle": 2, "neural": {"recall@20": [0.7, 0.5]}},
        {"cycle": 3, "neural": {"recall@20": [0.4, 0.6, 0.9]}},
    ]
    score_IJ = forgetting.matrix(rows, "neural", "recall@20")
    assert np.isnan(score_IJ[0, 1])
    assert score_IJ[2].tolist() == [0.4, 0.6, 0.9]
    assert forgetting.average_forgetting(score_IJ) == pytest.approx(((0.7 - 0.4) + (0.5 - 0.6)) / 2)
    assert forgetting.backward_transfer(score_IJ) == pytest.approx(((0.4 - 0.6) + (0.6 - 0.5)) / 2)
    assert forgetting.average_forgetting(score_IJ[:1, :1]) is None
    holes = forgetting.matrix(rows[1:], "neural", "recall@20")
    assert forgetting.backward_transfer(holes) is None, "period 0 has no score of its own time"


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'train = {epochs = 2}\nmethods = [{kind = "online", warmup_steps = 7}, {kind = "replay", ratio = 2.0}]\n'
        'experts = [{kind = "popular"}, {kind = "own_items", half_life_events = 3.0}]\n'
    )
    return path


def test_names_are_read_as_the_recipe_knows_them(recipe):
    def methods(name):
        return [(config.kind, getattr(config, "ratio", None)) for config in variant(name, recipe).recipe.methods]

    assert methods("default") == [("online", None), ("replay", 2.0)]
    assert methods("online") == [("online", None)]
    assert methods("replay") == methods("online+replay") == [("online", None), ("replay", 2.0)]
    assert methods("replay:ratio=0.5") == [("online", None), ("replay", 0.5)]
    assert methods("window") == [("online", None)]
    assert variant("replay", recipe).recipe.methods[0].warmup_steps == 7, "as the recipe says"
    assert variant("online+train.epochs=5", recipe).recipe.train.epochs == 5
    late = variant('joint+train.budget={kind="early_stop", split="prefix"}', recipe)
    assert (late.reference, late.recipe.train.budget.split) == ("joint", "prefix")
    assert variant("joint", recipe).reference == "joint"
    fresh = variant("replay-fresh-untested", recipe)
    assert (fresh.fresh_optimizer, fresh.recipe.gate.window, len(fresh.recipe.methods)) == (True, 0, 2)
    assert not variant("online", recipe).fresh_optimizer


def test_names_are_joined_by_commas_but_for_those_in_brackets():
    text = 'online,replay:ratio=2,online+a.b=[1, 2],online+c={d = 1, e = ["f", "g"]},joint'
    assert names_of(text) == [
        "online",
        "replay:ratio=2",
        "online+a.b=[1, 2]",
        'online+c={d = 1, e = ["f", "g"]}',
        "joint",
    ]


def test_an_override_that_would_be_without_effect_is_refused(recipe):
    words = ['methods=[{kind="replay"}]']
    assert [config.kind for config in variant("default", recipe, words).recipe.methods] == ["replay"]
    with pytest.raises(ConfigError, match="take the place of methods"):
        variant("online", recipe, words)


def test_experts_join_or_are_set_by_their_kind(recipe):
    def experts(name):
        return [
            (config.kind, getattr(config, "half_life_events", None)) for config in variant(name, recipe).recipe.experts
        ]

    assert experts("online+covisit") == [("popular", None), ("own_items", 3.0), ("covisit", None)]
    assert experts("online+own_items:half_life_events=7") == [("popular", None), ("own_items", 7.0)]


def test_every_kind_that_recipes_know_is_a_name(recipe):
    from typing import get_args

    from headrace.config.methods import MethodConfig

    for member in get_args(get_args(MethodConfig)[0]):
        kind = member.model_fields["kind"].default
        made = variant(f"replay+{kind}", recipe).recipe  # some have nothing to work on without replay
        assert kind in [config.kind for config in made.methods]


@pytest.mark.parametrize("name", ["onlin", "online+", "replay:ratio=-1", "replay:rate=2", "joint+online"])
def test_names_that_say_nothing_are_refused(recipe, name):
    with pytest.raises(ConfigError):
        variant(name, recipe)


def test_a_shelf_gives_periods_in_any_order_and_survives_a_move(tmp_path):
    made = variant("default", recipe_file(tmp_path), [*WORDS, f"feed.path={log_of(tmp_path / 'log', 4)}"]).recipe
    shelf = Shelf(made, tmp_path / "shelf")
    assert len(shelf) == 4
    last, first = shelf.part(3), shelf.part(0)
    assert (last.cut.number, last.cut.num_rows, last.cut.events_in) == (3, 300, 1200)
    assert first.rows.item_N.max() < last.rows.item_N.max()
    both = shelf.first(2)
    assert shelf.period_of(both.rows.shard_N).tolist() == [0] * 300 + [1] * 300
    born = shelf.born([int(first.rows.item_N[0]), int(last.rows.item_N.max()), 10**6])
    assert born.tolist() == [0, 3, 4]
    (tmp_path / "shelf").rename(tmp_path / "moved")
    moved = Shelf(made, tmp_path / "moved")
    assert moved.digest == shelf.digest
    np.testing.assert_array_equal(moved.part(2).rows.item_N, Shelf(made, tmp_path / "new").part(2).rows.item_N)
    assert (
        len(
            Shelf(made.model_copy(update={"feed": made.feed.model_copy(update={"warmup_shards": 3})}), tmp_path / "new")
        )
        == 2
    )


def test_published_rows_are_the_means_of_their_cycles():
    rows = published("diginetica")
    for row in rows:
        assert not row.by_cycle or np.mean(row.by_cycle) == pytest.approx(row.recall_at_20, abs=0.01)
        assert len(row.by_cycle) in (0, 16)
    assert sum(bool(row.by_cycle) for row in rows) == 4
    assert published("globo") == ()


def study_of(folder: Path, methods, cycles=range(1, 7)) -> Study:
    """A folder with made-up rows: method number n has R@20 0.5 + 0.1 n."""
    study = Study(folder)
    draw = np.random.default_rng(3)
    for place, name in enumerate(methods):
        for seed in (1, 2):
            cells = study.cells(variant(name, recipe_file(folder), [f"seed={seed}"]))
            cells.begin(variant(name, recipe_file(folder), [f"seed={seed}"]).recipe, "log")
            for cycle in cycles:
                made = answers(np.where(draw.random(100) < 0.5 + 0.1 * place, 1, 99))
                figures = {voter: made.figures(voter) for voter in made.ranks}
                row = {"seed": seed, "cycle": cycle, **figures.pop("neural"), "train_s": 2.0, "queries": 100, **figures}
                cells.put({**row, "experts": {"neural": {}, "popular": figures["popular"]}}, made)
                scores = {metric: [0.5] * cycle for metric in forgetting.MEASURED}
                cells.put_measured(
                    cycle, {"seed": seed, "cycle": cycle, "held_out": True, "neural": scores, "blend": scores}
                )
    return study


def test_a_page_is_well_formed_and_has_only_numbers_in_its_charts(tmp_path):
    hostile = "online+columns.weight=<script>"
    summary = Summary(study_of(tmp_path, ["online", "replay", hostile]), kinds.cycles(4))
    page = build_page(summary, published("diginetica"), ["`headrace <bench>`"])
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    svg = "{http://www.w3.org/2000/svg}"
    assert len(tree.findall(f".//{svg}svg")) == 2 * 3 + 2 * 3
    assert "<script" not in page
    for element in tree.iter():
        for name, value in element.attrib.items():
            assert name == "class" or "nan" not in value, (element.tag, name, value)
    labels = {text.text for text in tree.findall(f".//{svg}text")}
    assert {"online", "replay", "ADER *", "joint *"} <= labels
    assert "held out and never trained" in page


def test_the_table_tells_what_lies_above_online(tmp_path):
    summary = Summary(study_of(tmp_path, ["online", "replay"]), kinds.cycles(4))
    interval = summary.above_baseline("replay")["neural", "recall@20"]
    assert interval.cycles == (5, 6)
    assert interval.low < 0.1 < interval.high
    page = markdown(summary, published("diginetica"), ["made"])
    assert interval.words() in page
    assert "| published: ADER |  |  |  | 50.21 / 17.32 |" in page
    assert summary.seconds("online", 6) == 12.0
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines[:4]} == {lines[0].count("|")}


def test_two_methods_are_compared_from_what_was_kept(tmp_path):
    note(study_of(tmp_path, ["online", "replay"]), kinds.cycles(4), "log", [])
    made = compare.run(ours="replay", theirs="online", folder=tmp_path, cycles="2-3,9")
    assert made["neural"]["recall@20"]["cycles"] == (2, 3)
    assert made["neural"]["recall@20"]["low"] < 0.1 < made["neural"]["recall@20"]["high"]
    with pytest.raises(ConfigError, match="has no 'joint'; it has online, replay"):
        compare.run(ours="joint", theirs="online", folder=tmp_path)
    with pytest.raises(ConfigError, match="no cycle of 9"):
        compare.run(ours="replay", theirs="online", folder=tmp_path, cycles="9")


def test_charts_of_nothing_are_empty():
    assert heat_map(np.full((3, 3), np.nan), range(3), range(3), "%", "period") == ""
    assert cost_chart({"online": (np.zeros(0), np.zeros(0))}, {"online": "live"}, "s", "%") == ""
