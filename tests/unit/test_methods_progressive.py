"""Progressive columns: what is frozen does not move, a birth changes nothing, and columns come back into one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loop_kit import Stream, changing_stream, lawful, poisoned_stream
from pydantic import ValidationError
from step_kit import make_examples, make_step, passes
from torch import Tensor

from headrace.bundles.bundle import bundle_of, load_bundle
from headrace.commit.chain import Chain
from headrace.config.methods import EwcConfig, OnlineConfig, ProgressiveConfig
from headrace.config.models import SasRecConfig
from headrace.config.recipe import Recipe
from headrace.inputs.contexts import contexts_of, pad
from headrace.methods.base import Answered
from headrace.methods.build import build_methods
from headrace.methods.drift import Drift
from headrace.methods.progressive import Progressive
from headrace.models.base import RecallModel
from headrace.models.columns import Columns, merged, num_columns, old_models
from headrace.recommend.encode import answering, encode
from headrace.train.state import LearnerState
from headrace.train.step import TrainStep

OLD = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9], [3, 3]]
"""Contexts of items that are there from the beginning."""
GROWING = (20, 30, 40, 40, 40)
"""Items in each increment."""


def ask(model: RecallModel, sequences: list[list[int]], back: int = 0) -> Tensor:
    """The query vectors at the newest event of each, or one before it."""
    inputs = pad(contexts_of(sequences, 100, 10), np.arange(max(GROWING)))
    row_P = torch.arange(len(sequences))
    with answering(model):
        slot_BL = torch.from_numpy(inputs.slot_BL)
        item_BLD = model.table.rows(slot_BL.where(slot_BL < model.table.capacity, -1))
        return model.encoder(inputs, item_BLD, row_P, torch.full_like(row_P, back)).clone()


def stepped(**config) -> TrainStep:
    chosen = build_methods([OnlineConfig(warmup_steps=5), ProgressiveConfig(**{"every": 1, **config})])
    return make_step(methods=chosen, model=SasRecConfig(width=8, dropout=0.2))


def increment(step: TrainStep, number: int) -> None:
    num_items = GROWING[number]
    examples = make_examples(number, 64, num_items)
    passes(step, examples, number, num_items)
    step.end_increment(examples, np.arange(num_items), np.arange(num_items))


def of(step: TrainStep) -> Progressive:
    (found,) = (method for method in step.methods if isinstance(method, Progressive))
    return found


def test_a_new_column_answers_as_the_model_did():
    step = stepped()
    increment(step, 0)
    for back in (0, 1):
        before = ask(step.model, OLD, back)
        step.begin_increment(GROWING[1], 1)
        assert num_columns(step.model.encoder) == 2
        assert torch.equal(ask(step.model, OLD, back), before)
        step = stepped()
        increment(step, 0)
    increment(step, 1)
    before = ask(step.model, OLD)
    step.begin_increment(GROWING[2], 2)
    assert num_columns(step.model.encoder) == 3
    assert torch.equal(ask(step.model, OLD), before)


def test_an_old_column_answers_to_the_bit_as_it_did_whatever_is_learned_later():
    step = stepped(max_columns=9)
    increment(step, 0)
    answers = {"1": ask(step.model, OLD)}
    increment(step, 1)
    answers["2"] = ask(step.model, OLD)
    increment(step, 2)
    assert step.model.table.capacity > 20
    old = old_models(step.model)
    assert list(old) == ["1", "2"]
    for name, before in answers.items():
        assert torch.equal(ask(old[name], OLD), before)
        assert not torch.equal(ask(step.model, OLD), before)
    assert all(not value.requires_grad for name, value in step.model.encoder.state_dict().items() if "older" in name)
    assert not any(name.startswith("older") for name, _ in step.model.encoder.named_parameters())


def test_an_old_column_passes_over_items_that_it_does_not_know():
    """Younger ones, and rows that belong to other items by now."""
    step = stepped()
    increment(step, 0)
    increment(step, 1)
    (old,) = old_models(step.model).values()
    assert torch.equal(ask(old, [[1, 22, 2], [4, 5]]), ask(old, [[-1, 1, 2], [4, 5]]))
    assert not torch.equal(ask(old, [[1, 3, 2], [4, 5]]), ask(old, [[-1, 1, 2], [4, 5]]))
    step.reset_rows(np.array([3, 22]))
    assert torch.equal(ask(old, [[1, 3, 2], [4, 5]]), ask(old, [[-1, 1, 2], [4, 5]]))


def test_where_an_old_column_knows_nothing_it_says_nothing():
    step = stepped(share=0.9)
    increment(step, 0)
    step.begin_increment(GROWING[1], 1)
    new = [[25, 26], [27]]
    alone = ask(step.model, new)
    for lateral in step.model.encoder.get_submodule("laterals").children():
        assert lateral.share == pytest.approx(0.9)
        lateral.share.zero_()
    assert torch.equal(ask(step.model, new), alone)


def test_adapters_read_the_states_at_the_events_that_both_know():
    """Two columns of equal weights: with the unknown event left out, what is added is what the old one had there."""
    step = stepped(share=0.0)
    increment(step, 0)
    step.begin_increment(GROWING[1], 1)
    columns = step.model.encoder
    assert isinstance(columns, Columns)
    inputs = pad(contexts_of([[1, 2, 25, 3], [25, 1, 26, 2]], 100, 10), np.arange(40))
    row_P, back_P = torch.arange(2), torch.ones(2, dtype=torch.int64)  # so that every position is computed
    with answering(columns):
        reading = columns.readings(inputs, row_P, back_P)["1"]
        states_BLD, there_BL1 = reading.states(1, inputs)
    at_BLD = reading.at[1]
    assert there_BL1 is not None
    assert there_BL1[:, :, 0].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    # the old column reads (-, 1, 2, 3) and (-, -, 1, 2)
    assert torch.equal(states_BLD[0], at_BLD[0, [1, 2, 2, 3]])
    assert torch.equal(states_BLD[1, 1:], at_BLD[1, [2, 2, 3]])


def test_adapters_learn_and_moments_of_the_column_go_on():
    step = stepped()
    increment(step, 0)
    before = step.state()["optimizer/encoder"]
    step.begin_increment(GROWING[1], 1)
    born = step.state()["optimizer/encoder"]
    for name, moment in before.items():
        np.testing.assert_array_equal(born[name], moment)
    added = set(born) - set(before)
    assert added
    assert all("laterals.1." in name and not born[name].any() for name in added)
    increment(step, 1)
    wide = [value for name, value in step.model.encoder.named_parameters() if name.endswith("wide.weight")]
    assert len(wide) == 2
    assert all(value.abs().sum() > 0.0 for value in wide)


def test_consolidation_bounds_the_columns_and_says_what_it_lost():
    step = stepped(every=2, max_columns=2, consolidate_steps=30, consolidate_learning_rate=3e-3)
    counts = []
    for number in range(5):
        increment(step, number)
        counts.append(num_columns(step.model.encoder))
        facts = of(step).facts()
        assert facts["columns"] == counts[-1]
        assert ("consolidation_loss" in facts) == (number == 3)
        if number == 3:
            assert 0.0 < facts["consolidation_loss"] < 0.7 * facts["consolidation_loss_before"]
            assert facts["consolidation_steps"] == 30
    assert counts == [1, 1, 2, 1, 2]
    assert of(step).facts()["born"] == 1.0


def test_consolidation_moves_the_answers_of_one_column_towards_those_of_all():
    step = stepped(max_columns=2, consolidate_steps=30, consolidate_learning_rate=3e-3)
    increment(step, 0)
    examples = make_examples(1, 64, GROWING[1])
    passes(step, examples, 1, GROWING[1])
    asked, rows = examples.contexts, np.arange(GROWING[1])

    def answers(encoder) -> Tensor:
        with answering(step.model):
            return encode(RecallModel(encoder, step.model.table, None).eval(), asked, rows, 10)

    told, table = answers(step.model.encoder), step.model.table.weight.detach().clone()
    mixed = answers(merged(step.model.encoder))
    step.end_increment(examples, rows, rows)
    assert num_columns(step.model.encoder) == 1
    left = answers(step.model.encoder)
    assert (left - told).square().sum() < 0.7 * (mixed - told).square().sum()
    assert torch.equal(step.model.table.weight, table)


def test_columns_are_consolidated_when_it_is_time():
    step = stepped(every=2, consolidate_every=1, consolidate_steps=2)
    counts = []
    for number in range(5):
        increment(step, number)
        counts.append((of(step).facts()["born"], num_columns(step.model.encoder)))
    assert counts == [(0, 1), (0, 1), (1, 1), (0, 1), (1, 1)]


def test_drift_is_a_fall_below_what_is_usual():
    drift = Drift()
    for recall in (0.5, 0.52, 0.48, 0.51, 0.49, 0.5):
        assert abs(drift.deviations(recall, 1000)) < 4.0
        drift.add(recall)
    assert drift.deviations(0.4, 1000) > 4.0
    assert drift.deviations(0.6, 1000) < -4.0
    assert drift.deviations(0.4, 10) < 1.0  # so few queries say nothing
    drift.forget()
    assert drift.deviations(0.1, 1000) == 0.0


def test_drift_asks_for_a_column_and_its_state_survives():
    step = stepped(every=None)
    method = of(step)
    increment(step, 0)
    for recall in (0.5, 0.52, 0.48, 0.51, 0.49):
        method.observe(Answered(1000, recall))
    step.begin_increment(GROWING[1], 1)
    assert num_columns(step.model.encoder) == 1
    method.observe(Answered(1000, 0.3))
    again = Progressive(method.config)
    again.load_state_dict(method.state_dict())
    for either in (again, method):
        either.begin_increment(step.model, 2)
        assert num_columns(step.model.encoder) == 2
        step.model.encoder = merged(step.model.encoder)


def test_recipes_refuse_what_does_not_go_together():
    with pytest.raises(ValidationError, match='"progressive" and "ewc" exclude'):
        Recipe(methods=(OnlineConfig(), ProgressiveConfig(), EwcConfig()))
    with pytest.raises(ValidationError, match="set every, or a drift"):
        ProgressiveConfig(drift=0.0)


PROGRESSIVE = '{kind="progressive",every=2,max_columns=2,consolidate_steps=10}'
METHODS = f'methods=[{{kind="online"}},{{kind="replay",ratio=0.5}},{PROGRESSIVE}]'


def stream_of(folder: Path, *overrides: str) -> Stream:
    return changing_stream(folder, METHODS, *overrides, shards=5)


def test_two_ranks_stopped_halfway_end_with_the_same_state(tmp_path: Path) -> None:
    undisturbed = stream_of(tmp_path / "a").advance_pair()
    disturbed = stream_of(tmp_path / "b")
    for until in (1, 2, None):
        again = disturbed.advance_pair(until=until)
    assert again[-1].state_digest == undisturbed[-1].state_digest
    assert lawful(undisturbed[-1])
    said = [manifest.facts["training"]["methods"]["progressive"] for manifest in undisturbed]
    assert [facts["columns"] for facts in said] == [1, 1, 2, 1, 2]
    consolidated = undisturbed[3]
    assert consolidated.envelope.seconds["consolidate"] > 0.0
    assert said[3]["consolidation_loss"] < said[3]["consolidation_loss_before"]
    assert "model/columns/2/rows/00000" in undisturbed[2].parts
    assert "model/columns/2/rows/00000" not in undisturbed[3].parts


def test_frozen_columns_are_stored_once_and_a_bundle_answers_as_the_learner_did(tmp_path: Path) -> None:
    words = (METHODS.replace("every=2,max_columns=2", "every=1,max_columns=6,drift=0"), "gate.window=0")
    stream = stream_of(tmp_path, *words)
    states: list[LearnerState] = []
    manifests = stream.advance(change=states.append)
    newest = manifests[-1]
    names = sorted(name for name in newest.parts if name.startswith("model/columns/"))
    assert {name.split("/")[2] for name in names} == {"1", "2", "3", "4"}
    for name in names:
        if not name.endswith("/known"):
            assert newest.parts[name] == manifests[int(name.split("/")[2])].parts[name]
    loaded = load_bundle(stream.store, bundle_of(newest))
    assert num_columns(loaded.recommender.model.encoder) == 5
    assert states[0].learner is not None
    asked = contexts_of([[1, 2], [101, 102, 3]], 10**9, 10)
    answered, told = loaded.recommender.top(asked, 20), states[0].learner.top(asked, 20)
    np.testing.assert_array_equal(answered.number_QK, told.number_QK)
    np.testing.assert_array_equal(answered.score_QK, told.score_QK)


def test_a_roll_back_to_fewer_columns_restarts_to_the_same_bytes(tmp_path: Path) -> None:
    words = (METHODS.replace('{kind="replay",ratio=0.5},', "").replace("max_columns=2", "max_columns=4,share=0.0"),)
    undisturbed = poisoned_stream(tmp_path / "a", *words).advance()
    columns = [manifest.facts["training"]["methods"]["progressive"]["columns"] for manifest in undisturbed]
    back = next(place for place, m in enumerate(undisturbed) if m.facts["review"]["rolled_back_to"])
    assert columns[back] <= columns[back - 1]
    disturbed = poisoned_stream(tmp_path / "b", *words)
    for until in (back - 1, back, None):
        disturbed.advance(until=until)
    latest = Chain(disturbed.store).latest()
    assert latest is not None
    assert latest.state_digest == undisturbed[-1].state_digest
