"""The protocol of cycles: what each method is trained and asked, and that a run that was stopped goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from study_kit import WORDS, log_of, recipe_file

from headrace.bench import continual
from headrace.bench.study.answers import Answers
from headrace.bench.study.cycles import Cycles
from headrace.bench.study.forgetting import forgotten_by_columns
from headrace.bench.study.results import Study
from headrace.bench.study.shelf import Shelf
from headrace.bench.study.variants import variant
from headrace.commit.chain import Chain
from headrace.errors import ConfigError
from headrace.train.checkpoint import Checkpoint
from headrace.train.offline import Learner

torch.set_num_threads(1)
CPU = torch.device("cpu")
CLOCKS = ("train_s", "cpu_s", "peak_mb")


class StoppedError(Exception):
    """Somebody killed the run."""


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return log_of(tmp_path_factory.mktemp("log"), 6)


class Bench:
    """One folder of a study over a small log."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self.recipe = recipe_file(folder)
        self.study = Study(folder / "out")
        self.shelf = Shelf(self.variant("default").recipe, folder / "out" / "log")

    def variant(self, name: str, *words: str):
        return variant(name, self.recipe, [*WORDS, f"feed.path={self.log}", *words])

    def run(self, name: str, cycles, tell=lambda row: None, sample: int = 30, words=()):
        chosen = self.variant(name, *words)
        Cycles(chosen, self.shelf, self.study.cells(chosen), CPU, sample, tell).run(cycles)
        return [timeless(row) for row in self.study.rows()[name]]

    def answers(self, name: str, cycle: int) -> Answers:
        return self.study.ranks(name, 1, cycle)


@pytest.fixture
def bench(tmp_path, log) -> Bench:
    return Bench(tmp_path, log)


def timeless(row):
    return {name: value for name, value in row.items() if name not in CLOCKS}


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(bench, tmp_path, log):
    (tmp_path / "other").mkdir()
    whole = Bench(tmp_path / "other", log)
    expected = whole.run("online+replay", range(1, 5))

    def stop(row):
        if row["cycle"] == 2:
            raise StoppedError

    with pytest.raises(StoppedError):  # the row of cycle 2 is there, and its period is not trained
        bench.run("online+replay", range(1, 5), stop)
    told = []
    assert bench.run("online+replay", range(1, 5), told.append) == expected
    assert [row["cycle"] for row in told] == [3, 4], "what was tested is not tested again"
    measured = [study.forgetting()["online+replay"][1] for study in (bench.study, whole.study)]
    assert measured[0] == measured[1]
    assert [len(row["neural"]["recall@20"]) for row in measured[0]] == [1, 2, 3, 4]


STOPPING = ('train.budget={kind="early_stop", share=0.3, patience=1, max_epochs=5}', "train.learning_rate=0.03")


@pytest.mark.parametrize(
    ("name", "words", "after"),
    [("online+ewc+replay+distill", (), 6), ("online", STOPPING, 7), ("joint", STOPPING, 5), ("window-fresh", (), 4)],
)
def test_a_run_that_was_stopped_within_a_cycle_ends_as_if_it_had_not_been(
    name, words, after, bench, tmp_path, log, monkeypatch
):
    (tmp_path / "other").mkdir()
    whole = Bench(tmp_path / "other", log)
    expected = whole.run(name, range(1, 4), words=words)
    num_kept, keep = 0, Checkpoint.keep

    def stop(self, *progress):
        nonlocal num_kept
        keep(self, *progress)
        num_kept += 1
        if num_kept == after:
            raise StoppedError

    monkeypatch.setattr(Checkpoint, "keep", stop)
    with pytest.raises(StoppedError):
        bench.run(name, range(1, 4), words=words)
    epochs = bench.study.cells(bench.variant(name)).run / "epochs"
    assert [path.suffix for path in epochs.glob("cycle-*")] == [".safetensors"]
    assert bench.run(name, range(1, 4), words=words) == expected
    assert not epochs.exists()
    if name != "joint":  # which has no store that stays
        newest = [Chain(study.cells(bench.variant(name)).store()).latest() for study in (bench.study, whole.study)]
        assert newest[0].state_digest == newest[1].state_digest
        trained = newest[0].facts["training"]
        assert ("recall_per_epoch" in trained) == bool(words)


def test_more_cycles_may_follow_another_day_and_a_finished_log_leaves_no_store(bench):
    first = bench.run("online", range(1, 3))
    assert (bench.study.cells(bench.variant("online")).run / "store").is_dir()
    assert bench.run("online", range(1, 6))[:2] == first
    assert not (bench.study.cells(bench.variant("online")).run / "store").exists()
    told = []
    bench.run("online", range(1, 6), told.append)
    assert not told


def test_all_methods_are_asked_the_same_queries_about_what_was_met_before(bench):
    names = ("online", "window", "joint", "frozen")
    for name in names:
        bench.run(name, [1, 2, 3])
    for cycle in (1, 2, 3):
        asked = [bench.answers(name, cycle) for name in names]
        assert len(asked[0]) > 50
        for other in asked[1:]:
            np.testing.assert_array_equal(other.key_Q, asked[0].key_Q)
            np.testing.assert_array_equal(other.session_Q, asked[0].session_Q)
            np.testing.assert_array_equal(other.new_T, asked[0].new_T)
        part = bench.shelf.part(cycle)
        known_N = bench.shelf.born(part.rows.item_N.tolist()) < cycle
        row_Q = asked[0].key_Q & 0xFFFFFFFF
        assert known_N[row_Q].all()
        # walks of five: whoever asks has a known item before the known target
        assert len(asked[0]) == sum(
            known_N[row] and known_N[row - row % 5 : row].any() for row in range(len(known_N)) if row % 5
        )
    assert not bench.answers("online", 1).new_T.any()
    assert 0 < bench.answers("online", 2).new_T.mean() < 1


def test_retrainers_look_back_as_far_as_they_say(bench, monkeypatch):
    trained = {}
    train = Learner.train

    def watch(self, part, *given, **named):
        manifest = train(self, part, *given, **named)
        facts = manifest.facts
        trained.setdefault(name, []).append((facts["events"], facts["training"]["replayed"]))
        return manifest

    monkeypatch.setattr(Learner, "train", watch)
    examples = 240  # of a period: each click but a session's first
    for name in ("online", "window", "joint_warm", "joint", "frozen"):
        bench.run(name, range(1, 6))
    assert trained["online"] == [(300, 0)] * 5
    assert trained["window"] == [(300, examples * back) for back in (0, 1, 2, 3, 3)]
    assert trained["joint_warm"] == [(300, examples * back) for back in range(5)]
    assert trained["joint"] == [(300 * periods, 0) for periods in range(1, 6)]
    assert trained["frozen"] == [(300, 0)] * 5


def test_frozen_answers_as_the_warm_up_left_it(bench):
    online, frozen = (bench.run(name, range(1, 4)) for name in ("online", "frozen"))
    assert online[0]["recall@20"] == frozen[0]["recall@20"]
    assert online[0]["blend"] == frozen[0]["blend"]
    assert frozen[2]["recall@20"] == 0.0, "it knows none of the items of two periods later"
    assert frozen[2]["experts"]["popular"]["recall@20"] == 0.0
    assert online[2]["recall@20"] > 0.5


def test_an_optimizer_that_starts_afresh_is_another_method(bench):
    online, fresh = (bench.run(name, range(1, 4)) for name in ("online", "online-fresh-untested"))
    assert online[0]["mrr@20"] == fresh[0]["mrr@20"], "the warm-up has no optimizer before it"
    assert online[1]["mrr@20"] != fresh[1]["mrr@20"]


def test_joint_carries_its_blend_from_cycle_to_cycle(bench):
    rows = bench.run("joint", [2, 3])
    cells = bench.study.cells(bench.variant("joint"))
    assert cells.blend(2) is None
    assert cells.blend(3).weights != cells.blend(4).weights
    assert rows[1]["blend"] != rows[1]["blend_running"] or rows[1]["queries"] <= 500


def test_a_split_blend_moves_within_a_test_and_is_carried_by_retrainers_too(bench):
    words = ["blend.split=repeat", "recommend.seen=keep"]
    for name in ("online", "frozen", "joint"):
        rows = bench.run(name, [1, 2, 3], words=words)
        assert all(0.0 <= row["blend"]["recall@20"] <= 1.0 for row in rows)
    cells = bench.study.cells(bench.variant("joint"))
    assert sum(cells.blend(4).split.asked_B) > sum(cells.blend(3).split.asked_B) > 0
    newest = Chain(bench.study.cells(bench.variant("online")).store()).latest()
    assert sum(newest.facts["split"]["asked"]) > 0


def test_another_recipe_is_refused_in_the_same_folder(bench):
    bench.run("online", [1])
    with pytest.raises(ConfigError, match="another train"):
        bench.run("online", [1, 2], words=["train.epochs=3"])


def test_held_out_rows_are_what_forgetting_is_measured_on(bench):
    words = ["evaluation.eval_share=0.3"]
    bench.run("online", range(1, 4), words=words, sample=1000)
    rows = bench.study.forgetting()["online"][1]
    assert all(row["held_out"] for row in rows)
    sizes = [len(path.read_bytes()) for path in sorted((bench.folder / "out/runs/online/seed-1/samples").iterdir())]
    assert len(sizes) == 4
    assert all(0.0 < value <= 1.0 for value in rows[-1]["neural"]["recall@20"])


def test_older_columns_by_themselves_have_lost_nothing(bench):
    name = "online+progressive:every=1:max_columns=9"
    bench.run(name, range(1, 4), sample=1000)
    rows = bench.study.forgetting()[name][1]
    assert [list(row.get("columns", {})) for row in rows] == [[], ["1"], ["1", "2"]]
    for born, now in (("1", 1), ("1", 2), ("2", 2)):
        was = rows[int(born) - 1]["neural"]["recall@20"]
        assert rows[now]["columns"][born][: len(was)] == was
    assert rows[2]["neural"]["recall@20"][:2] != rows[1]["neural"]["recall@20"]
    assert forgotten_by_columns(rows) == 0.0
    assert forgotten_by_columns(rows[:1]) is None
    assert forgotten_by_columns([]) is None


def test_the_command_writes_its_tables_and_says_what_was_not_run(tmp_path, log):
    (tmp_path / "runs").mkdir()
    options = {"data": log, "folder": tmp_path / "out", "recipe": recipe_file(tmp_path / "runs"), "overrides": WORDS}
    continual.run(methods="online", cycles="1-3", sample=20, **options)
    made = continual.run(methods="replay:ratio=0.5,joint", cycles="2,3", sample=20, **options)
    assert set(made["means"]) == {"online", "replay:ratio=0.5", "joint"}
    assert made["means"]["online"]["cycles 1-3"]["neural"]["recall@20"] > 0.5
    assert made["means"]["joint"]["cycles 1-3"]["neural"]["recall@20"] is None
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["seed"], row["cycle"]) for row in rows["joint"]] == [(1, 2), (1, 3)]
    wanted = {"seed", "cycle", "recall@20", "recall@10", "recall@100", "mrr@20", "ndcg@20", "new_item_recall@20"}
    assert wanted | {"train_s", "cpu_s", "peak_mb", "blend", "blend_running", "experts"} <= set(rows["online"][0])
    assert wanted - {"seed", "cycle"} <= set(rows["online"][0]["blend"])
    assert set(rows["online"][0]["experts"]) == {"neural", "popular", "own_items"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| joint | *not run* |" in table
    assert "not run" in (tmp_path / "out" / "report.html").read_text()
    forgetting = json.loads((tmp_path / "out" / "forgetting.json").read_text())
    assert forgetting["online"]["neural"]["recall@20"][2][0] is not None
    assert forgetting["joint"]["neural"]["average_forgetting"] is None, "cycle 1 was not run"


@pytest.mark.parametrize(
    ("text", "cycles"), [("1-4", [1, 2, 3, 4]), ("4,8", [4, 8]), ("2", [2]), ("1-2,2-3", [1, 2, 3])]
)
def test_cycles_are_read(text, cycles):
    assert continual.cycles_of(text) == cycles


@pytest.mark.parametrize("text", ["", "0", "1-", "a", "4-2", "1,,2"])
def test_cycles_that_say_nothing_are_refused(text):
    with pytest.raises(ConfigError, match="--cycles"):
        continual.cycles_of(text)


def test_a_log_that_is_too_short_is_said(tmp_path, log):
    with pytest.raises(ConfigError, match="has 6 periods; cycles up to 6 need 7"):
        continual.run(data=log, cycles="6", folder=tmp_path, recipe=recipe_file(tmp_path), overrides=WORDS)
