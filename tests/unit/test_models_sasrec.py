"""The encoder: what is padded, what comes later, and how a query is asked for must not matter."""

import numpy as np
import pytest
import torch

from headrace.config.models import SasRecConfig
from headrace.inputs.contexts import contexts_of, pad
from headrace.models.base import RecallModel
from headrace.models.build import build_model

SEQUENCES = [[1, 2, 3, 4, 5], [7, 8], [9], [], [3, 3, 3, 1]]


def make(**changes: object) -> RecallModel:
    config = SasRecConfig(width=12, heads=2, dropout=0.5, **changes)
    return build_model(config, max_events=10, capacity=32, seed=3).eval()


def queries(model: RecallModel, sequences: list[list[int]], rows: list[int], backs: list[int]) -> torch.Tensor:
    inputs = pad(contexts_of(sequences, as_of_ms=100, max_events=10), np.arange(32))
    item_BLD = model.table.rows(torch.from_numpy(inputs.slot_BL))
    with torch.no_grad():
        return model.encoder(inputs, item_BLD, torch.tensor(rows), torch.tensor(backs))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_padding_changes_nothing(heads, blocks):
    model = build_model(SasRecConfig(width=12, heads=heads, blocks=blocks), 10, 32, seed=3).eval()
    together = queries(model, SEQUENCES, [0, 1, 2, 3, 4], [0] * 5)
    for row, sequence in enumerate(SEQUENCES):
        alone = queries(model, [sequence], [0], [0])
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


def test_one_pass_and_prefixes_give_the_same_queries():
    model = make()
    sequence = [5, 1, 4, 4, 2, 8]
    one_pass = queries(model, [sequence, [3]], [0] * 7, list(range(7)))
    prefixes = [sequence[: len(sequence) - back] for back in range(7)]
    torch.testing.assert_close(one_pass, queries(model, prefixes, list(range(7)), [0] * 7), atol=1e-5, rtol=0)


def test_later_events_do_not_reach_earlier_queries():
    model = make()
    first = queries(model, [[1, 2, 3, 4]], [0, 0, 0], [1, 2, 3])
    other = queries(model, [[1, 2, 3, 9]], [0, 0, 0], [1, 2, 3])
    torch.testing.assert_close(first, other, atol=0, rtol=0)
    assert not torch.allclose(queries(model, [[1, 2, 3, 4]], [0], [0]), queries(model, [[1, 2, 3, 9]], [0], [0]))


def test_order_matters():
    model = make()
    assert not torch.allclose(queries(model, [[1, 2, 3]], [0], [0]), queries(model, [[2, 1, 3]], [0], [0]))


def test_rows_are_answered_as_asked():
    model = make()
    every = queries(model, SEQUENCES, [0, 1, 2, 3, 4], [0] * 5)
    torch.testing.assert_close(queries(model, SEQUENCES, [4, 1, 1], [0] * 3), every[[4, 1, 1]])


def test_nothing_but_empty_contexts_is_finite_and_all_alike():
    vectors = queries(make(), [[], []], [0, 1], [0, 0])
    assert torch.isfinite(vectors).all()
    assert torch.equal(vectors[0], vectors[1])


def test_a_context_that_is_too_long_is_refused_in_words():
    model = make()
    inputs = pad(contexts_of([list(range(12))], 100, 12), np.arange(32))
    with pytest.raises(ValueError, match=r"inputs\.max_events = 10"):
        model.encoder(inputs, model.table.rows(torch.from_numpy(inputs.slot_BL)), torch.tensor([0]), torch.tensor([0]))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"model\.heads"):
        build_model(SasRecConfig(width=10, heads=3), 10, 32, seed=3)


def test_gradients_are_finite_under_bfloat16_with_padding_and_empty_rows():
    model = make().train()
    inputs = pad(contexts_of(SEQUENCES, 100, 10), np.arange(32))
    item_BLD = model.table.rows(torch.from_numpy(inputs.slot_BL))
    with torch.autocast("cpu", torch.bfloat16):
        vectors = model.encoder(inputs, item_BLD, torch.arange(5), torch.zeros(5, dtype=torch.long))
    assert vectors.dtype == torch.float32
    vectors.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_cosine_scores_lie_within_the_temperature():
    model = make(scores="cosine", temperature=0.5)
    logits = model.logits(queries(model, SEQUENCES, [0, 1], [0, 0]), model.table.vectors(torch.arange(32)))
    assert logits.abs().max() <= 2.0 + 1e-6
    own = model.logits(model.table.weight[:4], model.table.weight[:4])
    torch.testing.assert_close(own.diagonal(), torch.full((4,), 2.0))
