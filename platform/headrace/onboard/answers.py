"""A few real questions of the log and what was answered: asked through production's own intake, before it learns.

Also names of items, for people. Shape legend: Q queries, K answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import DataError
from headrace.onboard.columns import is_text, plain
from headrace.onboard.words import listing
from headrace.records import CutRows
from headrace.train import questions
from headrace.train.intake import take
from headrace.train.state import LearnerState

_SHOWN = 3
_TOP = 5
_PAST = 5
_TRUTH = 5
_NAME_COLUMNS = ("name", "title", "product_name", "item_name", "product_type", "description", "label", "headline")


@dataclass(frozen=True)
class _Answer:
    """A question, what was answered, and what came."""

    past: tuple[Any, ...]
    num_before: int
    """Items before those in ``past``."""
    top: tuple[Any, ...]
    came: tuple[Any, ...]


class Answers:
    """Asks live a few questions of every slice before it is learned from, and keeps the newest ones."""

    def __init__(self, names: Mapping[Any, str]) -> None:
        self._names = names
        self._kept: list[_Answer] = []

    def ask(self, part: CutRows, state: LearnerState) -> CutRows:
        """Called with each cut before it is taken; gives the cut back as it came."""
        if state.live is None or not len(part.rows):
            return part
        intake = take(part.rows, state.catalogue, state.history, state.seen, state.recipe)
        asked = questions.queries(intake, state.recipe.inputs)
        length_Q = asked.contexts.length_Q
        wanted_Q = np.flatnonzero((length_Q >= min(2, int(length_Q.max(initial=0)))) & (length_Q > 0))
        _, first = np.unique(asked.contexts.session_Q[wanted_Q][::-1], return_index=True)
        last_Q = np.sort(wanted_Q[::-1][first])  # each session's last question
        if not len(last_Q):
            return part
        chosen = last_Q[np.linspace(0, len(last_Q) - 1, min(_SHOWN, len(last_Q))).astype(np.int64)]
        few = asked.take(chosen)
        number_QK = state.live.top(few.contexts, _TOP).number_QK
        self._kept = []
        for query in range(len(few)):
            past = few.contexts.item_T[few.contexts.offset_R[query] : few.contexts.offset_R[query + 1]]
            past = past[past >= 0]
            came = few.target_T[few.offset_R[query] : few.offset_R[query + 1]]
            raw = state.catalogue.raw_ids
            answer = _Answer(
                tuple(raw(past[-_PAST:])),
                max(0, len(past) - _PAST),
                tuple(raw(number_QK[query][number_QK[query] >= 0])),
                tuple(raw(came[came >= 0])),
            )
            self._kept.append(answer)
        return part

    def lines(self) -> list[str]:
        """What was asked and answered, to be printed."""
        if not self._kept:
            return []
        told = ["", f"A few of the last questions, with the {_TOP} best answers, asked before they were learned from"]
        for answer in self._kept:
            before = f"{answer.num_before} more, then " if answer.num_before else ""
            told.append(f"  had:   {before}{listing([self._name(item) for item in answer.past])}")
            for place, item in enumerate(answer.top):
                hit = "  <- came" if item in answer.came else ""
                told.append(f"  {'top:' if place == 0 else '':<6} {place + 1}. {self._name(item)}{hit}")
            came = listing([self._name(item) for item in answer.came], _TRUTH) or "an item that was not known yet"
            told += [f"  came:  {came}", ""]
        return told[:-1]

    def _name(self, item: Any) -> str:  # noqa: ANN401 (raw ids are int or str)
        name = self._names.get(item)
        return str(item) if name is None else f"{name} ({item})"


def read_names(path: Path, column: str | None, item_id: str) -> dict[Any, str]:
    """Item to name from a Parquet file with a column called as the log's item, or like one."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"--names {path}: it cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    same = [name for name in schema.names if name.lower().replace("_", "") == item_id.lower().replace("_", "")]
    key = (
        item_id
        if item_id in schema.names
        else next(iter([*same, *(n for n in schema.names if n.lower() == "id")]), None)
    )
    if key is None:
        raise DataError(f"--names {path}: no column {item_id!r} among {listing(schema.names, 20)}")
    if column is not None and column not in schema.names:
        raise DataError(f"--name-column {column}: no such column among {listing(schema.names, 20)}")
    texts = [name for name in schema.names if name != key and _is_text(schema.field(name).type)]
    known = [name for wanted in _NAME_COLUMNS for name in texts if name.lower() == wanted]
    label = column or next(iter([*known, *texts]), None)
    if label is None:
        raise DataError(f"--names {path}: no column holds text among {listing(schema.names, 20)}; say --name-column")
    table = pq.read_table(path, columns=[key, label])
    pairs = zip(plain(table[key]).to_pylist(), plain(table[label]).to_pylist(), strict=True)
    return {item: str(name) for item, name in pairs if name is not None}


def _is_text(kind: Any) -> bool:  # noqa: ANN401
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return is_text(inner) or bool(pa.types.is_large_string(inner))
