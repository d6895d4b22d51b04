"""The optimizer of one rank: Adam (arXiv 1412.6980) by parameter's name, so that its moments outlive any tensor.

Parameters are made anew at every increment, since the table grows; moments go on, those of new rows from zero. A recipe
may give the whole table an optimizer of rows instead (train/row_adagrad.py).
Shape legend: V rows of the table in use, R rows, D width.
"""

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.config.methods import AdamConfig, RowAdagradConfig, TrainConfig
from headrace.errors import TrainingError
from headrace.models.build import Parts, join_chunks, row_chunks
from headrace.train.row_adagrad import RowAdagrad
from headrace.train.row_adam import RowAdam

TABLE = "table"
"""The parameter that holds the item table."""
_PART = f"optimizer/{TABLE}"
_MOMENTS = ("exp_avg", "exp_avg_sq")
RowOptimizer = RowAdam | RowAdagrad


def row_optimizer(config: TrainConfig, weight_VD: Tensor) -> RowOptimizer:
    """What moves a few rows of the table, as the recipe says."""
    match config.optimizer:
        case AdamConfig():
            return RowAdam(weight_VD)
        case RowAdagradConfig(half_life_steps=half_life_steps):
            return RowAdagrad(weight_VD, half_life_steps)
        case _:
            assert_never(config.optimizer)


def row_rate(config: TrainConfig) -> float:
    """The learning rate of what ``row_optimizer`` gives."""
    return config.optimizer.learning_rate if isinstance(config.optimizer, RowAdagradConfig) else config.learning_rate


class Optimizer:
    """Moves parameters by their gradients; ``begin`` comes before the first step, always."""

    def __init__(self, config: TrainConfig, weight_VD: Tensor) -> None:
        self.steps = 0
        """Since the moments were zero; part of the state."""
        self._config = config
        self._parameters: dict[str, Tensor] = {}
        self._moments: dict[str, dict[str, Tensor]] = {}
        """By name, as the last state had them, until ``begin`` hands them on."""
        self._adam: torch.optim.Adam | None = None
        self._rows: RowAdagrad | None = None
        """Of the whole table, where it is not Adam's."""
        if isinstance(config.optimizer, RowAdagradConfig):
            self._rows = RowAdagrad(weight_VD, config.optimizer.half_life_steps)

    @property
    def num_table_rows(self) -> int:
        """Rows of the table that it has moved; 0 where the table is none of its parameters."""
        if self._rows is not None:
            return len(self._rows.tensors["touched_at"])
        moments = self._collect().get(TABLE)
        return 0 if moments is None else len(moments["exp_avg"])

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        """These are the parameters from now on, by name; moments go on, and what is new starts at zero."""
        self._moments = self._collect()
        self._parameters = dict(parameters)
        moved = self._parameters
        if self._rows is not None and TABLE in parameters:
            self._rows.grow(len(parameters[TABLE]))
            moved = {name: value for name, value in parameters.items() if name != TABLE}
        self._adam = torch.optim.Adam(moved.values(), lr=self._config.learning_rate, fused=True)
        for name, value in moved.items() if self.steps else ():
            state: dict[str, Tensor] = {"step": torch.tensor(float(self.steps), device=value.device)}
            for key in _MOMENTS:
                old = self._moments.get(name, {}).get(key, torch.zeros(0))
                state[key] = torch.zeros_like(value, requires_grad=False)
                if old.ndim == value.ndim:
                    state[key][: len(old)] = old.to(value)
            self._adam.state[value] = state

    def step(self, scale: float) -> None:
        """One step, at ``scale`` times the recipe's learning rate. TrainingError before ``begin``."""
        if self._adam is None:
            raise TrainingError("a step before begin_increment: there is no optimizer yet")
        self._adam.param_groups[0]["lr"] = self._config.learning_rate * scale
        self._adam.step()
        self.steps += 1
        table_VD = self._parameters.get(TABLE)
        if self._rows is not None and table_VD is not None:
            assert table_VD.grad is not None
            every_V = torch.arange(len(table_VD), device=table_VD.device)
            rate = row_rate(self._config) * scale
            self._rows.update_(every_V, table_VD.detach(), table_VD.grad, rate, self.steps)

    def reset_rows(self, slot_R: Tensor) -> None:
        """These rows of the table belong to other items from now on: as if never moved."""
        if self._rows is not None:
            self._rows.reset(slot_R)
        for moment in self._collect().get(TABLE, {}).values():
            moment[slot_R] = 0.0

    def moments(self) -> list[Tensor]:
        """All that is remembered of gradients."""
        mine = [tensor for pair in self._collect().values() for tensor in pair.values()]
        return mine if self._rows is None or not self.num_table_rows else [*mine, self._rows.tensors["sum_sq"]]

    def state(self) -> Parts:
        """As parts: "optimizer/encoder", and "optimizer/table/00000", .. cut as the model's table is."""
        moments = self._collect()
        encoder: dict[str, NDArray[Any]] = {"steps": np.array([self.steps], dtype=np.int64)}
        for name, pair in moments.items():
            if name != TABLE:
                encoder.update({f"{name}/{key}": pair[key].cpu().numpy().copy() for key in _MOMENTS})
        parts: Parts = {"optimizer/encoder": encoder}
        if TABLE in moments:
            parts.update(row_chunks(_PART, moments[TABLE]))
        elif self._rows is not None and self.num_table_rows:
            parts.update(row_chunks(_PART, self._rows.tensors))
        return parts

    def load(self, parts: Mapping[str, Mapping[str, NDArray[Any]]], with_table: bool) -> None:
        """Take over what ``state`` gave, of the table only if that is a parameter of this one; for ``begin``."""
        encoder = parts["optimizer/encoder"]
        self.steps = int(encoder["steps"][0])
        names = {name.rsplit("/", 1)[0] for name in encoder if name != "steps"}
        moments = {name: {key: torch.tensor(encoder[f"{name}/{key}"]) for key in _MOMENTS} for name in names}
        if with_table and any(part.startswith(f"{_PART}/") for part in parts):
            if self._rows is not None:
                self._rows.tensors = load_rows(self._rows, parts)
            else:
                moments[TABLE] = {key: torch.from_numpy(join_chunks(_PART, key, parts)) for key in _MOMENTS}
        self._moments, self._adam = moments, None

    def _collect(self) -> dict[str, dict[str, Tensor]]:
        """Adam's moments by name, wherever they are just now."""
        if self._adam is None:
            return self._moments
        states = self._adam.state
        return {
            name: {key: states[value][key] for key in _MOMENTS}
            for name, value in self._parameters.items()
            if value in states
        }


def load_rows(rows: RowOptimizer, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Tensor]:
    """An optimizer of rows' tensors from the parts that ``row_chunks`` has cut, on its device."""
    device = rows.tensors["touched_at"].device
    return {key: torch.from_numpy(join_chunks(_PART, key, parts)).to(device) for key in rows.KEYS}
