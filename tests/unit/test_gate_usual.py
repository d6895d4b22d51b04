"""What is usual: each rule at its limit, that learning goes on, that a restart changes nothing, that ranks agree."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from loop_kit import RING, Stream, lawful, recipe, walks

from headrace.bench.poisons import TooFast
from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.config.answers import GateConfig
from headrace.evaluation.coherence import Coherence, best_coherence, draw_controls
from headrace.evaluation.gate import Signs, decide, decide_rows
from headrace.evaluation.usual import RowSigns, Usual
from headrace.recommend.block import share_below

GATE = GateConfig()
USUAL = Usual(
    coherence=(0.8,) * 8, updates=((0.1, 10),) * 8, user_shares=(0.03,) * 7 + (0.04,), item_shares=(0.11,) * 8
)
WRONG = 12
"""The cut whose labels are dealt out anew."""


def coherent(mean: float, error: float = 0.02) -> Coherence:
    return Coherence(mean, error, 100)


def rows(user: int = 20, item: int = 50, events: int = 1000, coherence: Coherence | None = None) -> RowSigns:
    return RowSigns(events, item, user, 0, coherence)


@pytest.mark.parametrize(
    ("signs", "word"),
    [
        (rows(), None),
        (rows(item=950), "one item has 95% of the events (> 90%)"),
        (rows(user=700), "one user has 70% of the events (> 50%)"),
        (rows(user=201), "one user has 20% of the events, lately at most 4.0%"),
        (rows(user=200), None),
        (rows(item=560), "one item has 56% of the events, lately at most 11.0%"),
        (rows(item=540), None),
        (rows(item=20, user=20, events=20), None),
        (rows(coherence=coherent(0.64)), "in 64% of all cases, lately 80%, by chance 50%"),
        (rows(coherence=coherent(0.66)), None),
        (rows(coherence=coherent(0.55, error=0.11)), None),
    ],
)
def test_each_rule_of_the_rows_says_what_it_saw(signs: RowSigns, word: str | None) -> None:
    decision = decide_rows(signs, USUAL, GATE)
    assert (decision is None) == (word is None)
    if decision is not None and word is not None:
        assert decision.verdict == "reject"
        assert word in decision.reason
        assert decision.unusual == ("lately" in word)


def test_small_shares_are_small_whatever_is_usual() -> None:
    quiet = Usual(user_shares=(0.001,) * 8, item_shares=(0.01,) * 8)
    assert decide_rows(rows(item=500), quiet, GATE) is None
    assert decide_rows(rows(item=501), quiet, GATE) is not None
    assert decide_rows(rows(user=100), quiet, GATE) is None
    assert decide_rows(rows(user=101), quiet, GATE) is not None


def test_nothing_is_unusual_while_little_is_known() -> None:
    young = Usual((0.8,) * 7, ((0.1, 10),) * 7, (0.01,) * 7, (0.01,) * 7)
    assert decide_rows(rows(user=400, item=800, coherence=coherent(0.5)), young, GATE) is None
    assert decide(moved(4.0), young, GATE).verdict == "publish"


def moved(ratio: float, steps: int = 10) -> Signs:
    return Signs(False, True, 1.0, ratio, steps, None, 100, 100)


def test_the_update_is_held_against_as_many_steps() -> None:
    assert USUAL.expected_update(10) == USUAL.expected_update(5) == 0.1
    assert USUAL.expected_update(30) == pytest.approx(0.3)
    assert decide(moved(0.39), USUAL, GATE).verdict == "publish"
    decision = decide(moved(0.41), USUAL, GATE)
    assert (decision.verdict, decision.unusual) == ("reject", True)
    assert "0.41 of the weights' norm in 10 steps, lately 0.1 in as many" in decision.reason
    assert decide(moved(1.1, steps=30), USUAL, GATE).verdict == "publish"


def test_the_signs_are_of_the_newest_increments_and_survive_json() -> None:
    usual = Usual(num_rejected=3)
    for nth in range(40):
        usual = usual.add(rows(coherence=coherent(nth / 100)), (0.1, nth))
    assert usual.coherence == tuple(nth / 100 for nth in range(8, 40))
    assert len(usual.updates) == len(usual.user_shares) == 32
    assert usual.num_rejected == 0
    assert usual.add(rows(events=50), (0.0, 0)).rejected() == Usual(
        usual.coherence, usual.updates, usual.user_shares, usual.item_shares, 1
    ), "a cut that says nothing"
    assert Usual.from_state(json.loads(json.dumps(usual.state()))) == usual


def test_a_stream_whose_contexts_tell_now_more_and_now_less_is_believed() -> None:
    steady, moody = Usual(coherence=(0.58,) * 20), Usual(coherence=(0.53, 0.63) * 10)
    low = rows(coherence=coherent(0.51, error=0.02))
    assert "lately 58%" in decide_rows(low, steady, GATE).reason
    assert decide_rows(low, moody, GATE) is None
    assert decide_rows(rows(coherence=coherent(0.5)), Usual(coherence=(0.75, 0.85) * 10), GATE) is not None


def test_coherence_by_hand() -> None:
    nan = np.nan
    told = best_coherence({"a": np.array([1.0, nan, 0.5]), "b": np.array([0.2, 0.4, 0.0])})
    assert told == Coherence(0.75, 0.25 / np.sqrt(2), 2)
    assert best_coherence({"a": np.array([nan]), "b": np.zeros(0)}) is None


def test_the_share_below_by_hand() -> None:
    score_QE = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.0, 0.3, 0.6, 0.1]])
    row_T, column_T = np.array([0, 0, 1]), np.array([1, 0, 3])
    assert share_below(score_QE, row_T, column_T, np.array([0, 1, 2, 3])).tolist() == [0.5, 1.0, 1 / 3]
    assert share_below(score_QE, row_T, column_T, np.array([2, 2, 3])).tolist() == [2 / 3, 1.0, 0.0]
    assert np.isnan(share_below(score_QE, row_T, column_T, np.array([1]))).tolist() == [True, False, False]
    assert np.isnan(share_below(score_QE, row_T, column_T, np.zeros(0, dtype=np.int64))).all()


def test_controls_are_drawn_evenly_and_from_all_ranks() -> None:
    mine, other = np.arange(800), np.arange(1000, 1100)

    def gather(part):
        return [part, {"control": other}]

    control_C = draw_controls(mine, gather)
    assert len(control_C) == 500
    assert (control_C >= 1000).sum() == 100
    assert len(draw_controls(np.zeros(0, dtype=np.int64), gather)) == 100


def shuffled(table: pa.Table) -> pa.Table:
    item = table["item_id"].take(np.random.default_rng(0).permutation(table.num_rows))
    return table.set_column(table.column_names.index("item_id"), "item_id", item)


def wrong_stream(folder: Path, *overrides: str, shards: int = WRONG + 3) -> Stream:
    """Walks around a ring, a hundred clicks a cut, of which one cut's items are dealt out anew."""
    stream = Stream(folder, recipe(*RING, *overrides))
    for cut in range(shards):
        table = walks(1000 if cut == 0 else 200, cut)
        stream.land(shuffled(table) if cut == WRONG else table)
    return stream


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stream, list[Manifest]]:
    stream = wrong_stream(tmp_path_factory.mktemp("wrong"))
    return stream, stream.advance()


def test_shuffled_labels_are_never_learned_and_learning_goes_on(told: tuple[Stream, list[Manifest]]) -> None:
    _, manifests = told
    assert [m.cut for m in manifests if m.verdict != "publish"] == [WRONG]
    found, before, after = manifests[WRONG], manifests[WRONG - 1], manifests[WRONG + 1]
    assert "do items belong to their rows?" in found.reason
    assert found.facts["training"]["steps"] == 0, "nothing was trained for it"
    assert found.parts == before.parts
    assert found.facts["counters"]["quarantined"] == 200
    assert all(lawful(m) for m in manifests)
    assert found.facts["usual"] == before.facts["usual"] | {"num_rejected": 1}
    assert after.facts["usual"]["num_rejected"] == 0
    assert len(after.facts["usual"]["coherence"]) == WRONG, "one for each cut with queries that was not rejected"


def test_a_run_stopped_after_every_increment_decides_alike(told: tuple[Stream, list[Manifest]], tmp_path: Path) -> None:
    stream = wrong_stream(tmp_path)
    for cut in range(WRONG + 3):
        stream.advance(until=cut)
    latest = Chain(stream.store).latest()
    assert latest is not None
    assert latest.state_digest == told[1][-1].state_digest


def test_two_ranks_decide_alike(tmp_path: Path) -> None:
    manifests = wrong_stream(tmp_path).advance_pair()
    assert [m.cut for m in manifests if m.verdict != "publish"] == [WRONG]


def test_where_it_is_not_asked_the_cut_is_learned(tmp_path: Path) -> None:
    manifests = wrong_stream(tmp_path, "gate.min_coherence=0", "gate.max_update_growth=1e9", "gate.window=0").advance()
    assert [m.verdict for m in manifests] == ["publish"] * (WRONG + 3)


def test_a_stream_that_has_changed_is_believed_in_the_end(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe(*RING, "gate.max_unusual=2", "gate.window=0"))
    for cut in range(WRONG + 5):
        table = walks(1000 if cut == 0 else 200, cut)
        stream.land(shuffled(table) if cut >= WRONG else table)
    manifests = stream.advance()
    assert [m.verdict for m in manifests[WRONG:]] == ["reject", "reject", "publish", "publish", "publish"]
    assert len(manifests[-1].facts["usual"]["coherence"]) == 3, "what is usual is learned anew"


def test_a_learning_rate_that_is_too_high_is_rejected_and_forgotten(tmp_path: Path) -> None:
    stream = wrong_stream(tmp_path, "gate.window=0", shards=WRONG)
    stream.advance()
    stream.land(walks(200, WRONG))
    stream.land(walks(200, WRONG + 1))

    def hurry(state):
        state.step.methods = [*state.methods, TooFast()]

    (found,) = stream.advance(until=WRONG, change=hurry)
    assert found.verdict == "reject"
    assert "of the weights' norm in" in found.reason
    (after,) = stream.advance()
    assert after.verdict == "publish"
