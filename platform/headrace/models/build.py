"""Models from recipes, and models as named arrays and back.

A model's parts are "encoder" (its parameters, and the seed that new rows of the table are drawn from) and the table in
chunks of rows, "table/00000", "table/00001", .., so that rows which did not change are not stored again. A frozen
column (models/columns.py) is "columns/<name>/encoder", "columns/<name>/rows/00000", .. and "columns/<name>/known", of
which only the last ever changes.
"""

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.config.models import ModelConfig, NspConfig, SasRecConfig
from headrace.errors import StoreError
from headrace.models.base import RecallModel
from headrace.models.columns import encoder_of
from headrace.models.nsp import NextSession
from headrace.models.sasrec import SasRec
from headrace.models.table import ItemTable
from headrace.records import hash64

Parts = dict[str, dict[str, NDArray[Any]]]

CHUNK_ROWS = 16384
"""Rows of the table (and of the optimizer's moments of it) in one part."""
_ROW_NORM = 0.125  # of a fresh row: sqrt(width) times its entries' deviation
_SEED = "table_seed"
_OLDER = "older."
_ROWS = "rows"
_OWN_PARTS = {_ROWS: "rows", "is_known": "known"}
"""Of what a frozen column holds beside its weights."""


def build_model(config: ModelConfig, max_events: int, capacity: int, seed: int) -> RecallModel:
    """A fresh model with ``capacity`` rows; the seed alone decides it, whatever the state of torch's generators."""
    with torch.device("meta"):  # nothing is drawn from torch's global generator
        encoder = _fresh_encoder(config, max_events)
    encoder.to_empty(device="cpu")
    encoder.reset(torch.Generator().manual_seed(hash64(seed, "encoder") >> 1))
    table = ItemTable(config.width, capacity, hash64(seed, "table") >> 1, _ROW_NORM * config.width**-0.5)
    return RecallModel(encoder, table, config.temperature if config.scores == "cosine" else None)


def model_parts(model: RecallModel) -> Parts:
    """The whole model as named arrays, one dictionary a part; copies, so that training may go on."""
    parts: Parts = {"encoder": {_SEED: np.array([model.table.seed], dtype=np.int64)}}
    for name, value in model.encoder.state_dict().items():
        part, key = _place(name)
        if key == _ROWS:
            parts.update(row_chunks(part, {key: value}))
        else:
            parts.setdefault(part, {})[key] = _array(value)
    parts.update(row_chunks("table", {"weight": model.table.weight.detach()}))
    return parts


def load_model(config: ModelConfig, max_events: int, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> RecallModel:
    """The model whose ``model_parts`` these were, equal to the byte, capacity included.

    StoreError where the parts belong to a model of another shape.
    """
    try:
        encoder = _loaded_encoder(config, max_events, _encoder_state(parts))
    except RuntimeError as error:
        raise StoreError(f"the stored encoder does not fit the recipe's model section: {error}") from error
    rows = torch.from_numpy(join_chunks("table", "weight", parts))
    table = ItemTable.from_rows(rows, int(parts["encoder"][_SEED][0]), _ROW_NORM * config.width**-0.5)
    return RecallModel(encoder, table, config.temperature if config.scores == "cosine" else None)


def load_into(model: RecallModel, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """Put the ``model_parts`` of this very model back into it, in place."""
    state = _encoder_state(parts)
    with torch.no_grad():
        for name, value in model.encoder.state_dict().items():
            value.copy_(state[name])
        model.table.weight.copy_(torch.from_numpy(join_chunks("table", "weight", parts)))


def row_chunks(prefix: str, tensors: Mapping[str, Tensor]) -> Parts:
    """Tensors of equally many rows as parts of ``CHUNK_ROWS`` rows: prefix/00000, prefix/00001, .."""
    num_rows = len(next(iter(tensors.values())))
    return {
        f"{prefix}/{start // CHUNK_ROWS:05d}": {
            name: _array(tensor[start : start + CHUNK_ROWS]) for name, tensor in tensors.items()
        }
        for start in range(0, num_rows, CHUNK_ROWS)
    }


def join_chunks(prefix: str, name: str, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> NDArray[Any]:
    """The rows that ``row_chunks`` cut; StoreError where none are there."""
    chunks = [parts[part][name] for part in sorted(parts) if part.startswith(f"{prefix}/")]
    if not chunks:
        raise StoreError(f"no part {prefix}/00000 among {sorted(parts)}")
    return np.concatenate(chunks)


def _fresh_encoder(config: ModelConfig, max_events: int) -> SasRec | NextSession:
    match config:
        case SasRecConfig():
            return SasRec(config, max_events)
        case NspConfig():
            return NextSession(config, max_events)
        case _:
            assert_never(config)


def _loaded_encoder(config: ModelConfig, max_events: int, state: Mapping[str, Tensor]) -> SasRec | NextSession:
    """The encoder whose state this is; it takes the tensors over. RuntimeError where they do not fit."""
    if isinstance(config, SasRecConfig):
        return encoder_of(config, max_events, state)
    with torch.device("meta"):  # nothing is drawn
        encoder = _fresh_encoder(config, max_events)
    encoder.load_state_dict(state, assign=True)
    return encoder


def _place(name: str) -> tuple[str, str]:
    """The part of an encoder's entry, and its key in there."""
    if not name.startswith(_OLDER):
        return "encoder", name
    column, key = name.removeprefix(_OLDER).split(".", 1)
    return f"columns/{column}/{_OWN_PARTS.get(key, 'encoder')}", key


def _encoder_state(parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Tensor]:
    """The encoder's state dict, from the parts of a model."""
    state = {name: torch.from_numpy(array).clone() for name, array in parts["encoder"].items() if name != _SEED}
    for part, arrays in parts.items():
        match part.split("/"):
            case ["columns", column, "encoder" | "known"]:
                state |= {f"{_OLDER}{column}.{key}": torch.from_numpy(array).clone() for key, array in arrays.items()}
            case ["columns", column, "rows", "00000"]:
                rows = join_chunks(part.removesuffix("/00000"), _ROWS, parts)
                state[f"{_OLDER}{column}.{_ROWS}"] = torch.from_numpy(rows)
    return state


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy().copy()
    return array
