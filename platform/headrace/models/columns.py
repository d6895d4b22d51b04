"""Progressive columns (arXiv 1606.04671): frozen encoders of the past, beside one that learns and reads them.

A column is a SasRec. An older one is frozen with a copy of the table's rows as they were, so that nothing which is
learned later moves its output by a bit. The newest begins as a copy of the one before it, and takes two things over
from each older column: through an adapter, its hidden states before every block but the first and after the last one;
and a share of its answer. Adapters begin at zero and a copy answers as its original does, so that a new column answers
as the model did; only of contexts with items that are newer than the frozen rows does it say something else.

An older column has no row for items that are younger than itself, nor for rows that have passed to other items since:
it passes over them in contexts, and says nothing where nothing is left. The share is fixed, not learned: new examples
alone would say to forget.
Shape legend: B batch, L length, D width, P positions asked for, V rows of the table, R rows that are given on.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.config.models import SasRecConfig
from headrace.inputs.contexts import Contexts, ModelInputs
from headrace.models.base import RecallModel
from headrace.models.layers import host
from headrace.models.sasrec import SasRec
from headrace.models.table import ItemTable, read_rows

_OLDER = re.compile(r"older\.(\d+)\.(.+)")
_LATERAL = re.compile(r"laterals\.(\d+)\.adapters\.0\.narrow\.weight")


class Adapter(nn.Module):
    """One layer of few units; its output begins at zero."""

    def __init__(self, width: int, num_units: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, num_units)
        self.wide = nn.Linear(num_units, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the newest column's states, of the same shape."""
        added: Tensor = self.wide(self.narrow(x).relu())
        return added


class Lateral(nn.Module):
    """What a column takes over from one older column."""

    share: Tensor
    """Of the older column's answer."""

    def __init__(self, config: SasRecConfig, num_units: int) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(Adapter(config.width, num_units) for _ in range(config.blocks))
        """Before each block but the first, and after the last one."""
        self.register_buffer("share", torch.zeros(()))


@dataclass(frozen=True)
class Reading:
    """What a column made of a batch. Made by ``Column.read``; read by newer columns."""

    at: Sequence[Tensor]
    """Its states by place; see ``SasRec.run``."""
    query_PD: Tensor
    known_V: NDArray[np.bool_] | None = None
    """The rows that it has; None: all."""
    silent_P: Tensor | None = None
    """Where it knows no event; None: nowhere."""

    def states(self, place: int, inputs: ModelInputs) -> tuple[Tensor, Tensor | None]:
        """Its states at a place, by the events of ``inputs``, and where it has any (1 or 0; None: everywhere).

        At an event that it does not know, its states are those at the last one before that it does.
        """
        x = self.at[place]
        if x.ndim == 2:
            return x, None if self.silent_P is None else (~self.silent_P).unsqueeze(1).to(x)
        assert self.known_V is not None
        kept, newer_BR = inputs.known(self.known_V)
        if kept is inputs:
            return x, None
        later_BL = newer_BR[:, -2::-1]
        place_BL = np.maximum(x.shape[1] - 1 - later_BL, 0)
        index_BL = torch.from_numpy(place_BL).to(x.device)
        there_BL = torch.from_numpy(later_BL < newer_BR[:, -1:]).to(x)
        return x.gather(1, index_BL.unsqueeze(2).expand(x.shape)), there_BL.unsqueeze(2)

    def mixed(self, query_PD: Tensor, share: Tensor) -> Tensor:
        """A newer column's queries, moved by a share to this one's; equal ones stay as they are, to the bit."""
        mixed_PD = torch.lerp(query_PD, self.query_PD.to(query_PD), share.to(query_PD))
        return mixed_PD if self.silent_P is None else torch.where(self.silent_P.unsqueeze(1), query_PD, mixed_PD)


class Column(SasRec):
    """A SasRec that reads older columns, if it has laterals; by the increment in which these were frozen."""

    def __init__(self, config: SasRecConfig, max_events: int) -> None:
        super().__init__(config, max_events)
        self.laterals = nn.ModuleDict()

    def heard(self) -> Iterator[tuple[str, Lateral]]:
        """The older columns that it reads, oldest first, and how."""
        for name, lateral in self.laterals.items():
            assert isinstance(lateral, Lateral)
            yield name, lateral

    def read(
        self, inputs: ModelInputs, item_BLD: Tensor, row_P: Tensor, back_P: Tensor, older: Mapping[str, Reading]
    ) -> Reading:
        """``forward``, with what the older columns made of the same batch."""
        at: list[Tensor] = []

        def beside(place: int, x: Tensor) -> Tensor:
            for name, lateral in self.heard() if place else ():
                states, there = older[name].states(place, inputs)
                added = lateral.adapters[place - 1](states)
                x = x + (added if there is None else added * there)
            at.append(x)
            return x

        query_PD = self.run(inputs, item_BLD, row_P, back_P, beside)
        for name, lateral in self.heard():
            query_PD = older[name].mixed(query_PD, lateral.share)
        return Reading(at, query_PD)


class OldColumn(Column):
    """A frozen column: all that it holds are buffers, and it never drops anything out."""

    rows: Tensor
    """Of the table, as they were, ``(V, D)``."""
    is_known: Tensor
    """Which of them are still about the same items, ``(V,)``."""

    def __init__(self, config: SasRecConfig, max_events: int, num_rows: int) -> None:
        super().__init__(config, max_events)
        self.register_buffer("rows", torch.zeros(num_rows, config.width))
        self.register_buffer("is_known", torch.zeros(num_rows, dtype=torch.bool))

    def freeze(self) -> Self:
        """Parameters become buffers of the same names, which no optimizer, gate or penalty looks at."""
        for module in self.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, value.detach())
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """It stays as it is."""
        return super().train(False)

    def answer(self, inputs: ModelInputs, row_P: Tensor, back_P: Tensor, older: Mapping[str, Reading]) -> Reading:
        """What it makes of a batch, of the events that it knows."""
        known_V = self.is_known.cpu().numpy()
        inputs, newer_BR = inputs.known(known_V)
        row_np, length = host(row_P), newer_BR.shape[1] - 1
        back_np = newer_BR[row_np, np.minimum(host(back_P), length)]
        silent_P = torch.from_numpy(back_np >= newer_BR[row_np, -1]).to(self.rows.device)
        with torch.no_grad():
            item_BLD = read_rows(self.rows, torch.from_numpy(inputs.slot_BL).to(self.rows.device))
            read = self.read(inputs, item_BLD, row_P, torch.from_numpy(back_np), older)
        return Reading(read.at, read.query_PD, known_V, silent_P if bool(silent_P.any()) else None)


class Columns(Column):
    """The column that learns, and the older ones that it reads; an ``Encoder``."""

    def __init__(self, config: SasRecConfig, max_events: int) -> None:
        super().__init__(config, max_events)
        self.older = nn.ModuleDict()

    def forward(self, inputs: ModelInputs, item_BLD: Tensor, row_P: Tensor, back_P: Tensor) -> Tensor:
        """The query vectors ``(P, D)`` of the newest column, which are served; see ``models.base.Encoder``."""
        older = self.readings(inputs, row_P, back_P)
        return self.read(inputs, item_BLD, row_P, back_P, older).query_PD

    def forget(self, slot_R: Tensor) -> None:
        """These rows of the table belong to other items from now on."""
        for column in self.older.values():
            assert isinstance(column, OldColumn)
            column.is_known[slot_R[slot_R < len(column.is_known)]] = False

    def readings(self, inputs: ModelInputs, row_P: Tensor, back_P: Tensor) -> dict[str, Reading]:
        """What each older column makes of a batch, oldest first."""
        readings: dict[str, Reading] = {}
        for name, column in self.older.items():
            assert isinstance(column, OldColumn)
            readings[name] = column.answer(inputs, row_P, back_P, readings)
        return readings


class Route(nn.Module):
    """One older column by itself; an ``Encoder`` that reads the rows it was frozen with."""

    reads_empty = False

    def __init__(self, columns: Columns, name: str) -> None:
        super().__init__()
        self.columns = columns
        self.name = name

    def forward(self, inputs: ModelInputs, item_BLD: Tensor, row_P: Tensor, back_P: Tensor) -> Tensor:
        """The query vectors ``(P, D)`` as the model gave them when this column was its newest."""
        return self.columns.readings(inputs, row_P, back_P)[self.name].query_PD

    def kin(self, contexts: Contexts) -> NDArray[np.int64]:
        """As those of the whole model."""
        return self.columns.kin(contexts)


def old_models(model: RecallModel) -> dict[str, RecallModel]:
    """By older column: the model as it was when the column was frozen, of the items that it still knows."""
    if not isinstance(model.encoder, Columns):
        return {}
    models = {}
    for name, column in model.encoder.older.items():
        assert isinstance(column, OldColumn)
        table = ItemTable.from_rows(column.rows, model.table.seed, model.table.scale)
        models[name] = RecallModel(Route(model.encoder, name), table, model.temperature).eval()
    return models


def known_rows(model: RecallModel) -> NDArray[np.bool_]:
    """Of one of ``old_models``: the rows that it still knows, ``(V,)``."""
    route = model.encoder
    assert isinstance(route, Route)
    column = route.columns.older[route.name]
    assert isinstance(column, OldColumn)
    known_V: NDArray[np.bool_] = column.is_known.cpu().numpy()
    return known_V


def num_columns(encoder: nn.Module) -> int:
    """How many columns answer."""
    return 1 + len(encoder.older) if isinstance(encoder, Columns) else 1


def encoder_of(config: SasRecConfig, max_events: int, state: Mapping[str, Tensor]) -> SasRec:
    """The encoder whose state dict this is; it takes the tensors over. RuntimeError where they do not fit."""
    older: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if match := _OLDER.fullmatch(name):
            older.setdefault(match[1], {})[match[2]] = value
    with torch.device("meta"):  # nothing is drawn
        encoder = Columns(config, max_events) if older else SasRec(config, max_events)
        if isinstance(encoder, Columns):
            _add_laterals(encoder, state)
            for name in sorted(older, key=int):
                column = OldColumn(config, max_events, len(older[name].get("rows", ())))
                _add_laterals(column, older[name])
                encoder.older[name] = column.freeze()
    encoder.load_state_dict(dict(state), assign=True)
    return encoder


def with_new_column(encoder: SasRec, row_VD: Tensor, name: str, num_units: int, share: float, seed: int) -> SasRec:
    """The encoder frozen under this name, with the rows that it has learned, and a copy of it that learns on.

    ``num_units``: of each adapter, drawn from ``seed``; ``share``: of the frozen column's answer.
    """
    state = encoder.state_dict()
    newest = {key: value for key, value in state.items() if not _OLDER.fullmatch(key)}
    frozen = {**newest, "rows": row_VD, "is_known": torch.ones(len(row_VD), dtype=torch.bool, device=row_VD.device)}
    state |= {f"older.{name}.{key}": value.clone() for key, value in frozen.items()}
    with torch.device("meta"):
        lateral = Lateral(encoder.config, num_units)
    lateral.to_empty(device="cpu")
    draw = torch.Generator().manual_seed(seed)
    for adapter in lateral.adapters:
        assert isinstance(adapter, Adapter)
        nn.init.xavier_uniform_(adapter.narrow.weight, generator=draw)
        nn.init.zeros_(adapter.narrow.bias)
        nn.init.zeros_(adapter.wide.weight)
    lateral.share.fill_(share)
    state |= {f"laterals.{name}.{key}": value.to(row_VD) for key, value in lateral.state_dict().items()}
    return encoder_of(encoder.config, encoder.max_events, state).train(encoder.training)


def merged(encoder: SasRec) -> SasRec:
    """One column whose weights are mixed as the answers of all columns are (as in arXiv 2109.01903), without laterals.

    Columns begin as copies, so that on a straight line between their weights lie models that answer in between.
    """
    state = {name: value.clone() for name, value in _mixed_weights(encoder, {}).items()}
    return encoder_of(encoder.config, encoder.max_events, state).train(encoder.training)


def _mixed_weights(column: SasRec, older: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """``older``: the mixed weights of the columns that it reads, where it does not hold them itself."""
    if isinstance(column, Columns):
        held: dict[str, dict[str, Tensor]] = {}
        for name, old in column.older.items():
            assert isinstance(old, OldColumn)
            held[name] = _mixed_weights(old, held)
        older = held
    beside = ("older.", "laterals.", "rows", "is_known")
    mixed = {name: value for name, value in column.state_dict().items() if not name.startswith(beside)}
    for name, lateral in column.heard() if isinstance(column, Column) else ():
        mixed = {key: torch.lerp(value, older[name][key], lateral.share) for key, value in mixed.items()}
    return mixed


def _add_laterals(column: Column, state: Mapping[str, Tensor]) -> None:
    """Laterals of the shapes that this state has."""
    matches = {match[1]: value for name, value in state.items() if (match := _LATERAL.fullmatch(name))}
    for name in sorted(matches, key=int):
        column.laterals[name] = Lateral(column.config, len(matches[name]))
