"""The prior: by hand, in the losses, and the same in training, in evaluation and in what is served."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from loop_kit import Stream, events, recipe
from pydantic import ValidationError

from headrace.bundles.bundle import bundle_of, load_bundle
from headrace.config.answers import EncodingsConfig, PopularConfig
from headrace.config.models import PriorConfig, SampledSoftmaxConfig, SasRecConfig
from headrace.config.recipe import Recipe
from headrace.experts.base import Shared, Sparse
from headrace.inputs.contexts import contexts_of
from headrace.models.offset import Offset
from headrace.objectives.soft import soft_loss
from headrace.objectives.softmax import Softmax
from headrace.recommend.encode import answering, encode
from headrace.recommend.prior import Prior, offset_of
from headrace.train.state import LearnerState

CPU = torch.device("cpu")
CONFIG = PriorConfig(experts=("shared", "sparse"), floor=0.2)


def dense(offset: Offset, num_queries: int) -> np.ndarray:
    return offset.add_(torch.zeros(num_queries, len(offset.shared_E))).numpy()


def heard(p_T: list[float]) -> dict[str, Shared | Sparse | None]:
    """Of four items: one vector for all; for the first query items 0 and 2, for the second nothing, then item 3."""
    shared = Shared(np.array([0.5, 0.5, 0.0, 0.0], dtype=np.float32))
    offset_R, column_T = np.array([0, 2, 2, 3]), np.array([0, 2, 3])
    return {"shared": shared, "sparse": Sparse(offset_R, column_T, np.array(p_T, dtype=np.float32)), "other": None}


def test_by_hand():
    found = dense(offset_of(CONFIG, heard([0.25, 0.75, 1.0]), 4, CPU), 3)
    even, half = 0.2 / 4, 0.4
    wanted = np.full((3, 4), even) + half * np.array([0.5, 0.5, 0.0, 0.0])
    wanted[0, 0] += half * 0.25
    wanted[0, 2] += half * 0.75
    wanted[2, 3] += half
    np.testing.assert_allclose(found, np.log(wanted), rtol=1e-5)


def test_what_is_no_probability_is_not_heard():
    found = dense(offset_of(CONFIG, {**heard([math.nan, 0.75, -1.0]), "shared": None}, 4, CPU), 3)
    wanted = np.full((3, 4), 0.05)
    wanted[0, 2] += 0.4 * 0.75
    np.testing.assert_allclose(found, np.log(wanted), rtol=1e-5)


def test_columns_follow_the_rows_of_the_table():
    place_E = np.array([2, 0, 3, 1])
    plain = dense(offset_of(CONFIG, heard([0.25, 0.75, 1.0]), 4, CPU), 3)
    moved = dense(offset_of(CONFIG, heard([0.25, 0.75, 1.0]), 4, CPU, place_E), 3)
    np.testing.assert_array_equal(moved[:, place_E], plain)


def random_offset(draw: torch.Generator, num_queries: int, num_items: int) -> tuple[Offset, torch.Tensor]:
    shared_E = torch.randn(num_items, dtype=torch.float64, generator=draw)
    row_N = torch.randint(num_queries, (30,), generator=draw).sort()[0]
    column_N = torch.randint(num_items, (30,), generator=draw)
    added_N = torch.rand(30, dtype=torch.float64, generator=draw)
    whole = torch.zeros(num_queries, num_items, dtype=torch.float64).index_put((row_N, column_N), added_N, True)
    return Offset(shared_E, row_N, column_N, added_N), whole + shared_E


def test_losses_and_their_gradients_with_an_offset():
    draw = torch.Generator().manual_seed(1)
    query_PD, told_PD = (torch.randn(7, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    vectors_ED, told_ED = (torch.randn(9, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    offset, whole_PE = random_offset(draw, 7, 9)
    query_PD.requires_grad_()
    vectors_ED.requires_grad_()
    query_T, column_T = torch.arange(7), torch.randint(9, (7,), generator=draw)
    weight_T = torch.rand(7, dtype=torch.float64, generator=draw)
    log_PE = torch.log_softmax(query_PD @ vectors_ED.T + whole_PE, 1)
    plain = -(log_PE[query_T, column_T] * weight_T).sum()
    ours = Softmax().loss(query_PD, vectors_ED, query_T, column_T, weight_T, offset=offset)
    assert_alike(ours, plain, query_PD, vectors_ED)

    told_PE = ((told_PD @ told_ED.T + whole_PE) / 2.0).softmax(1)
    log_PE = ((query_PD @ vectors_ED.T + whole_PE) / 2.0).log_softmax(1)
    plain = -4.0 * ((told_PE * log_PE).sum(1) * weight_T).sum()
    ours = soft_loss(query_PD, vectors_ED, told_PD, told_ED, weight_T, None, 2.0, offset)
    assert_alike(ours, plain, query_PD, vectors_ED)

    few = torch.tensor([5, 0, 3])
    assert torch.equal(offset.take(few, 7).add_(torch.zeros(3, 9, dtype=torch.float64)), whole_PE[few])


def assert_alike(ours: torch.Tensor, plain: torch.Tensor, *of: torch.Tensor) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(ours, of), torch.autograd.grad(plain, of), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": (PopularConfig(name="other"),)},
        {"experts": (EncodingsConfig(name="popular"),)},
        {"objective": SampledSoftmaxConfig()},
    ],
    ids=["unknown", "no counter", "sampled"],
)
def test_recipes_without_sense_are_refused(changes):
    model = SasRecConfig(prior=PriorConfig())
    Recipe(model=model)
    with pytest.raises(ValidationError, match=r"model\.prior"):
        Recipe(model=model, **changes)


WORDS = (
    'experts=[{kind="popular"},{kind="covisit"},{kind="own_items"}]',
    'model.prior={experts=["popular","covisit"],floor=0.2}',
    "model.dropout=0.0",
)


def stream_of(folder: Path, *overrides: str) -> Stream:
    stream = Stream(folder, recipe(*WORDS, *overrides))
    for index in range(3):
        stream.land(events(300 if index == 0 else 80, seed=index, start_ms=index * 3_600_000))
    return stream


def test_what_is_trained_is_what_is_scored_and_served(tmp_path: Path) -> None:
    stream, kept = stream_of(tmp_path), []
    manifest = stream.advance(change=kept.append)[-1]
    state: LearnerState = kept[0]
    config, catalogue = state.recipe.model.prior, state.catalogue
    assert config is not None
    asked = contexts_of([[1, 2], [3], [0, 4, 1]], 10**9, 10)
    prior = Prior(config, state.experts, state.eligible, catalogue.slot_I, CPU)  # as train_passes is given it
    with answering(state.model):
        query_QD = encode(state.model, asked, catalogue.slot_I, 10)
        slots = torch.from_numpy(np.sort(catalogue.slot_I[state.eligible.number_E]))
        logit_QE = state.model.logits(query_QD, state.model.table.vectors(slots))
        plain_QE = logit_QE.softmax(1)
        wanted_QE = prior(asked).add_(logit_QE).softmax(1)
    assert (wanted_QE - plain_QE).abs().max() > 0.01
    served = load_bundle(stream.store, bundle_of(manifest)).recommender
    for version in (state.recommender(), served):
        ((_, told),) = version.remixed(state.weights, {}).probabilities(asked)
        torch.testing.assert_close(told["neural"], wanted_QE, rtol=1e-4, atol=1e-6)


def test_the_warm_up_is_trained_beside_its_own_counters(tmp_path: Path) -> None:
    """There the prior already knows what is popular, so that the model begins at a loss that counters have."""

    def first_loss(*overrides: str) -> float:
        stream = stream_of(tmp_path / str(len(overrides)), "train.learning_rate=1e-6", *overrides)
        return float(stream.advance(until=0)[0].facts["training"]["loss_per_epoch"][0])

    assert first_loss() < first_loss("model.prior=none") - 0.3


def test_the_counters_of_before_are_asked_about_a_cut(tmp_path: Path) -> None:
    stream = stream_of(tmp_path)
    stream.advance(until=0)
    seen: list[np.ndarray] = []

    def listen(state: LearnerState) -> None:
        popular = state.experts[0]
        real = popular.probabilities
        popular.probabilities = lambda *rest: (seen.append(popular._count_I.sum()), real(*rest))[1]

    stream.advance(until=1, change=listen)
    counts = np.unique(np.array(seen))
    assert len(counts) == 2  # while scoring and training those of before; afterwards, of the candidate, those of now
    assert counts[0] == seen[0]
