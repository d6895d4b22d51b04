"""Progressive columns (arXiv 1606.04671): frozen copies of the model beside the one that learns, and a way back.

Where drift asks for it, or every so many increments, the model as the last increment left it becomes a frozen column,
and a copy of it learns on (models/columns.py). It takes over the moments of the optimizer, since its parameters keep
their names; adapters begin without. Where ``max_columns`` answer and one more is asked for, an increment ends by
distilling them into one (methods/consolidate.py), and the next begins with the new column.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.config.methods import ProgressiveConfig
from headrace.methods.base import Answered, Learned, Method
from headrace.methods.consolidate import consolidate
from headrace.methods.drift import Drift
from headrace.models.base import RecallModel
from headrace.models.columns import num_columns, with_new_column
from headrace.models.sasrec import SasRec
from headrace.records import hash64

CONSOLIDATED = "consolidation_loss"
"""The fact that says that columns were distilled into one."""


class Progressive(Method):
    """Decides when a column is born and when columns are consolidated; the columns themselves are the model's."""

    def __init__(self, config: ProgressiveConfig) -> None:
        self.config = config
        self._drift = Drift()
        self._num_rows = 0
        """Rows of the table that the last increment knew."""
        self._since_birth = 0
        """Increments that the newest column has learned from."""
        self._since_one = 0
        """Increments since one column answered."""
        self._is_asked = False
        """Whether a new column is to be born as soon as there is room."""
        self._facts: dict[str, float] = {}

    def observe(self, answered: Answered) -> None:
        """Ask for a column on drift; see ``Method``."""
        away = self._drift.deviations(answered.recall, answered.num_queries)
        if self.config.drift and away > self.config.drift:
            self._is_asked = True
            self._drift.forget()
        self._drift.add(answered.recall)

    def begin_increment(self, model: RecallModel, increment: int) -> None:
        """Freeze the model as it was, if a column is asked for and there is room; see ``Method``."""
        self._facts = {"born": 0.0}
        if not (self._is_asked and self._num_rows) or num_columns(model.encoder) >= self.config.max_columns:
            return
        assert isinstance(model.encoder, SasRec)
        row_VD = model.table.weight.detach()[: self._num_rows]
        seed = hash64(model.table.seed, "column", increment) >> 1
        config = self.config
        model.encoder = with_new_column(model.encoder, row_VD, str(increment), config.adapter_units, config.share, seed)
        self._is_asked, self._since_birth = False, 0
        self._facts["born"] = 1.0

    def end_increment(self, model: RecallModel, learned: Learned) -> None:
        """Ask for a column if it is time, and consolidate where there is no room for it; see ``Method``."""
        config = self.config
        self._num_rows = 1 + int(learned.slot_I.max(initial=-1))
        self._since_birth += 1
        self._is_asked |= config.every is not None and self._since_birth >= config.every
        columns = num_columns(model.encoder)
        self._since_one = self._since_one + 1 if columns > 1 else 0
        is_full = self._is_asked and columns >= config.max_columns
        is_time = config.consolidate_every is not None and self._since_one >= config.consolidate_every
        if (is_full or is_time) and (found := consolidate(model, learned, config)) is not None:
            self._since_one = 0
            self._facts |= {"consolidation_steps": found.steps, "consolidation_loss_before": found.loss_before}
            self._facts[CONSOLIDATED] = found.loss
        self._facts["columns"] = num_columns(model.encoder)

    def facts(self) -> Mapping[str, float]:
        """Columns that answer from now on, and what a consolidation has lost; see ``Method``."""
        return dict(self._facts)

    def state_dict(self) -> Mapping[str, NDArray[Any]]:
        """Counts of increments and rows, and what drift is measured by."""
        counts = [self._num_rows, self._since_birth, self._since_one, self._is_asked]
        return {"counts": np.array(counts, dtype=np.int64), "drift": self._drift.state.copy()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what ``state_dict`` gave."""
        self._num_rows, self._since_birth, self._since_one, asked = state["counts"].tolist()
        self._is_asked = bool(asked)
        self._drift.state = state["drift"].copy()
