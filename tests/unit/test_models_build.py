"""Models and tables as arrays: exact bytes, rows that depend on (seed, slot) alone."""

import numpy as np
import pytest
import torch

from headrace.config.models import SasRecConfig
from headrace.errors import StoreError
from headrace.models import build
from headrace.models.build import build_model, load_model, model_parts
from headrace.models.table import ItemTable
from headrace.store.arrays import dump_arrays, load_arrays

CONFIG = SasRecConfig(width=8)


def as_bytes(parts):
    return {name: dump_arrays(part) for name, part in parts.items()}


def test_the_seed_alone_decides_a_fresh_model():
    torch.manual_seed(1)
    first = as_bytes(model_parts(build_model(CONFIG, 5, 16, seed=7)))
    state = torch.get_rng_state()
    second = as_bytes(model_parts(build_model(CONFIG, 5, 16, seed=7)))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert first != as_bytes(model_parts(build_model(CONFIG, 5, 16, seed=8)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_comes_back_to_the_byte_and_grows_as_it_would_have(monkeypatch, dtype):
    monkeypatch.setattr(build, "CHUNK_ROWS", 6)
    model = build_model(CONFIG, 5, 16, seed=7).to(dtype)
    parts = model_parts(model)
    assert sorted(parts) == ["encoder", "table/00000", "table/00001", "table/00002"]
    stored = as_bytes(parts)
    back = load_model(CONFIG, 5, {name: load_arrays(content) for name, content in stored.items()})
    assert as_bytes(model_parts(back)) == stored
    assert back.table.capacity == 16
    model.table.grow(17)
    back.table.grow(17)
    assert torch.equal(model.table.weight, back.table.weight)


def test_a_loaded_model_shares_no_memory_with_its_parts():
    parts = model_parts(build_model(CONFIG, 5, 16, seed=7))
    stored = as_bytes(parts)
    back = load_model(CONFIG, 5, parts)
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.add_(1.0)
    assert as_bytes(parts) == stored


def test_parts_of_another_shape_are_refused():
    parts = model_parts(build_model(CONFIG, 5, 16, seed=7))
    with pytest.raises(StoreError, match="does not fit"):
        load_model(SasRecConfig(width=8, blocks=3), 5, parts)
    with pytest.raises(StoreError, match="table/00000"):
        load_model(CONFIG, 5, {"encoder": parts["encoder"]})


def test_growth_keeps_old_rows_and_new_ones_do_not_depend_on_the_capacity():
    small, large = ItemTable(4, 6, seed=1, scale=0.1), ItemTable(4, 10000, seed=1, scale=0.1)
    with torch.no_grad():
        small.weight += 1.0
    before = small.weight.detach().clone()
    assert not small.grow(6)
    assert small.grow(4100)
    assert small.capacity == 6144
    assert torch.equal(small.weight[:6], before)
    assert torch.equal(small.weight[6:], large.weight[6:6144])
    assert float(large.weight.detach().std()) == pytest.approx(0.1, rel=0.05)


def test_rows_are_zero_where_there_is_no_event():
    table = ItemTable(4, 6, seed=1, scale=0.1)
    rows = table.rows(torch.tensor([[-1, 2], [0, 5]]))
    assert torch.equal(rows[0, 0], torch.zeros(4))
    assert torch.equal(rows[0, 1], table.weight[2])


def test_vectors_of_a_prefix_are_a_view():
    table = ItemTable(4, 6, seed=1, scale=0.1)
    assert table.vectors(torch.arange(5)).data_ptr() == table.weight.data_ptr()
    assert torch.equal(table.vectors(torch.tensor([1, 4])), table.weight[[1, 4]])
    assert np.array_equal(table.vectors(torch.zeros(0, dtype=torch.long)).shape, (0, 4))
