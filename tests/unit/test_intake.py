"""From rows to questions: sessions without names, sets, what is context of what, and one rule for all three uses."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from loop_kit import Stream, recipe

from headrace.catalogue.ids import Catalogue
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.rows import cut_rows
from headrace.history.past import history_columns
from headrace.history.segments import SegmentLog
from headrace.inputs.contexts import Contexts
from headrace.inputs.examples import Examples
from headrace.inputs.sessions import derive_sessions
from headrace.records import KEY_GROUPS
from headrace.store.fence import take_epoch
from headrace.train import questions
from headrace.train.intake import Intake, take

MINUTE = 60_000


def intake(folder: Path, rows: list[tuple[int, int, int, int]], *overrides: str) -> tuple[Intake, Stream]:
    """``rows`` are (user, session, item, minute)."""
    made = Stream(folder, recipe("evaluation.eval_share=0", "columns.event=none", *overrides))
    user, session, item, minute = (list(column) for column in zip(*rows, strict=True))
    table = {"item_id": item, "ts": [m * MINUTE for m in minute], "user_id": user}
    if made.recipe.columns.session_id:
        table["session_id"] = session
    made.land(pa.table(table))
    epoch = take_epoch(made.store)
    (cut,) = made.cuts(LedgerWriter.open(made.store, epoch))
    part = cut_rows(LedgerReader(made.store), cut, made.recipe.columns, range(KEY_GROUPS))
    catalogue = Catalogue()
    catalogue.admit(part.item_I)
    history = SegmentLog(history_columns(0), 50, 10**6)
    return take(part.rows, catalogue, history, None, made.recipe), made


def contexts(found: object) -> list[list[int]]:
    return [c.tolist() for c in np.split(found.item_T, found.offset_R[1:-1])] if len(found) else []  # type: ignore[attr-defined]


SEQUENCE = [(1, 1, 100, 0), (2, 2, 101, 1), (1, 1, 102, 2), (1, 1, 103, 2), (1, 1, 104, 3), (1, 9, 105, 500)]
# item numbers in order of appearance: 0 .. 5; 102 and 103 come at the same minute: a set


def test_a_query_sees_strictly_earlier_events_of_its_session(tmp_path: Path) -> None:
    taken, made = intake(tmp_path, SEQUENCE)
    asked = questions.queries(taken, made.recipe.inputs)
    assert asked.target_T.tolist() == [2, 3, 4]
    assert contexts(asked.contexts) == [[0], [0], [0, 2, 3]]


def test_prefixes_and_one_pass_ask_for_the_same_targets(tmp_path: Path) -> None:
    taken, made = intake(tmp_path, SEQUENCE)
    prefixes = questions.examples(taken, made.recipe.inputs, "prefixes")
    one_pass = questions.examples(taken, made.recipe.inputs, "sessions")
    assert contexts(prefixes.contexts) == [[0], [0], [0, 2, 3]]
    assert sorted(one_pass.target_T.tolist()) == sorted(prefixes.target_T.tolist()) == [2, 3, 4]
    assert contexts(one_pass.contexts) == [[0, 2, 3, 4]]
    assert dict(zip(one_pass.target_T.tolist(), one_pass.position_T.tolist(), strict=True)) == {2: 3, 3: 3, 4: 1}


def test_one_pass_over_a_long_session_takes_windows_and_loses_no_target(tmp_path: Path) -> None:
    rows = [(1, 1, 200 + place, place) for place in range(37)]
    taken, made = intake(tmp_path, rows, "inputs.max_events=10")
    made_of = questions.examples(taken, made.recipe.inputs, "sessions")
    assert sorted(made_of.target_T.tolist()) == list(range(1, 37))
    assert made_of.contexts.length_Q.max() == 10
    ends = made_of.contexts.offset_R[1:][made_of.sequence_T]
    newest = made_of.contexts.item_T[ends - 1 - made_of.position_T]
    assert (newest == made_of.target_T - 1).all(), "each target follows the event at its position"


def test_a_users_context_reaches_over_sessions(tmp_path: Path) -> None:
    taken, made = intake(tmp_path, SEQUENCE, "inputs.context=user")
    examples = questions.examples(taken, made.recipe.inputs, "prefixes")
    assert contexts(examples.contexts)[-1] == [0, 2, 3, 4]
    asked = questions.queries(taken, made.recipe.inputs)
    assert 5 not in asked.target_T.tolist(), "a session's first event is no query"


def test_a_basket_asks_once_at_its_start_for_all_its_items(tmp_path: Path) -> None:
    rows = [(1, 1, 10, 0), (1, 1, 11, 0), (2, 2, 10, 1), (1, 3, 12, 60), (1, 3, 13, 60), (1, 3, 10, 60)]
    taken, made = intake(tmp_path, rows, "inputs.sessions=set", "inputs.context=user")
    asked = questions.queries(taken, made.recipe.inputs)
    assert np.split(asked.target_T, asked.offset_R[1:-1])[-1].tolist() == [2, 3, 0]
    assert contexts(asked.contexts) == [[], [], [0, 1]]
    examples = questions.examples(taken, made.recipe.inputs, "prefixes")
    assert contexts(examples.contexts) == [[0, 1]]
    assert examples.target_T.tolist() == [2, 3, 0]


def test_an_unknown_users_first_session_is_learned_in_a_sequence_of_its_own(tmp_path: Path) -> None:
    rows = [(user, user, 10 * user + place, 60 * user + place) for user in (1, 2, 3) for place in (0, 1)]
    taken, made = intake(tmp_path, rows, "inputs.context=user", "inputs.max_events=2")
    for shape in ("prefixes", "sessions"):
        told = questions.examples(taken, made.recipe.inputs, shape, reads_empty=True)
        before = dict(zip(told.target_T.tolist(), contexts(asked_of(told)), strict=True))
        assert before == {0: [], 1: [0], 2: [], 3: [2], 4: [], 5: [4]}
        owners = taken.session_N[[0, 2, 4]]
        assert told.contexts.session_Q[told.sequence_T].tolist() == np.repeat(owners, 2)[told.target_T].tolist()


def asked_of(examples: Examples) -> Contexts:
    return examples.contexts_of(np.arange(len(examples.target_T)))


def test_experts_count_each_trained_row_with_its_context(tmp_path: Path) -> None:
    taken, made = intake(tmp_path, SEQUENCE)
    counted = questions.counted(taken, made.recipe.inputs)
    assert counted.number_N.tolist() == [0, 1, 2, 3, 4, 5]
    assert contexts(counted.contexts) == [[], [], [0], [0], [0, 2, 3], []]


def test_sessions_are_told_apart_by_a_gap(tmp_path: Path) -> None:
    rows = [(1, 0, 10, 0), (1, 0, 11, 20), (2, 0, 12, 21), (1, 0, 13, 51), (1, 0, 14, 52)]
    taken, made = intake(tmp_path, rows, "columns.session_id=none")
    assert len(set(taken.session_N.tolist())) == 3
    asked = questions.queries(taken, made.recipe.inputs)
    assert asked.target_T.tolist() == [1, 4]
    assert contexts(asked.contexts) == [[0], [3]]


@pytest.mark.parametrize("split", range(1, 6))
def test_a_session_keeps_its_name_over_increments(split: int) -> None:
    owner = np.array([7, 7, 8, 7, 7, 8], dtype=np.uint64)
    ts = np.array([0, 10, 11, 20, 3000, 3001], dtype=np.int64) * 1000
    none = np.zeros(6, dtype=np.uint64)
    whole = derive_sessions(owner, ts, none, gap_s=1800)
    first = derive_sessions(owner[:split], ts[:split], none[:split], gap_s=1800)
    rest = derive_sessions(owner, ts, np.concatenate([first, none[split:]]), gap_s=1800)
    assert rest.tolist() == whole.tolist()
    assert len(set(whole.tolist())) == 4
