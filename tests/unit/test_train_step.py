"""One optimizer problem over ranks, growth and restarts: the sums must come out the same."""

import numpy as np
import pytest
import torch
from step_kit import MODEL, NUM_ITEMS, PairRank, batch_of, fingerprint, make_examples, make_step, on_both, passes

from headrace.catalogue.eligible import Eligible
from headrace.config.methods import OnlineConfig
from headrace.config.models import SasRecConfig, SoftmaxConfig
from headrace.errors import TrainingError
from headrace.inputs.contexts import contexts_of, pad
from headrace.inputs.examples import Examples
from headrace.methods.base import Method
from headrace.methods.build import build_methods
from headrace.models.build import build_model, load_model, model_parts
from headrace.objectives.softmax import build_objective
from headrace.store.arrays import dump_arrays
from headrace.train.group import Group, Solo
from headrace.train.passes import PassStats, train_passes
from headrace.train.step import StepBatch, TrainStep

torch.set_num_threads(1)  # tiny products: more threads only wait for one another


def test_two_ranks_are_one_with_twice_the_batch():
    examples = make_examples(1, 160)
    slot_E = torch.arange(NUM_ITEMS)

    def totals(number: int) -> float:
        return float(examples.weight_T[8 * number : 8 * number + 8].astype(np.float64).sum())

    def half(group: PairRank) -> TrainStep:
        step = make_step(group, torch.float64)
        step.begin_increment(NUM_ITEMS, 0)
        for number in range(20):
            first = 8 * number + 4 * group.rank
            step.run(batch_of(examples, range(first, first + 4)), totals(number), slot_E)
        assert group.num_sums == 20  # one all-reduce a step
        return step

    whole = make_step(dtype=torch.float64)
    whole.begin_increment(NUM_ITEMS, 0)
    for number in range(20):
        whole.run(batch_of(examples, range(8 * number, 8 * number + 8)), totals(number), slot_E)
    first, second = on_both(half)
    assert fingerprint(first) == fingerprint(second)
    for ours, theirs in zip(first.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_gradients_are_those_of_plain_autograd():
    examples = make_examples(2, 8)
    step = make_step(dtype=torch.float64, methods=[])
    step.begin_increment(NUM_ITEMS, 0)
    step.run(batch_of(examples, range(8)), 3.0, torch.arange(NUM_ITEMS))
    plain = make_step(dtype=torch.float64).model
    plain.table.grow(NUM_ITEMS)
    inputs = pad(examples.contexts, np.arange(NUM_ITEMS))
    item_BLD = plain.table.rows(torch.from_numpy(inputs.slot_BL))
    query_PD = plain.encoder(inputs, item_BLD, torch.arange(8), torch.zeros(8, dtype=torch.long))
    log_PE = torch.log_softmax(plain.logits(query_PD, plain.table.weight[:NUM_ITEMS]), 1)
    picked_T = log_PE[torch.arange(8), torch.from_numpy(examples.target_T)]
    (-(picked_T * torch.from_numpy(examples.weight_T)).sum() / 3.0).backward()
    parameters = list(plain.encoder.parameters())
    wanted = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    wanted = torch.cat([part.flatten() for part in [*wanted, plain.table.weight.grad[:NUM_ITEMS]]])
    torch.testing.assert_close(step.flat_gradient, wanted, atol=1e-12, rtol=1e-9)


def test_ranks_of_unequal_length_agree_through_passes():
    def work(group: PairRank) -> tuple[PassStats, dict[str, bytes]]:
        step = make_step(group)
        stats = passes(step, make_examples(3 + group.rank, 30 if group.rank else 0))
        return stats, fingerprint(step)

    (stats, first), (_, second) = on_both(work)
    assert first == second
    assert stats.targets == 30
    assert stats.steps == 2 * 8  # 30 examples, 4 a step, two epochs


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_seed_same_bytes(precision):
    def once(seed_of_torch: int) -> dict[str, bytes]:
        torch.manual_seed(seed_of_torch)
        step = make_step(model=SasRecConfig(width=8, dropout=0.5), precision=precision)
        passes(step, make_examples(4, 50))
        return fingerprint(step)

    assert once(1) == once(2)


def test_a_restart_goes_on_to_the_same_bytes_through_growth():
    config = SasRecConfig(width=8, dropout=0.5)
    whole = make_step(model=config)
    passes(whole, make_examples(5, 40, 12), 0, 12)
    parts, optimizer = model_parts(whole.model), whole.state()
    passes(whole, make_examples(6, 40), 1)

    again = make_step(model=config)
    again.model = load_model(config, 10, parts)
    again.load(optimizer)
    assert {k: dump_arrays(v) for k, v in again.state().items()} == {k: dump_arrays(v) for k, v in optimizer.items()}
    passes(again, make_examples(6, 40), 1)
    assert again.steps_since_fresh == whole.steps_since_fresh
    assert fingerprint(again) == fingerprint(whole)


def test_growth_keeps_moments_and_starts_new_rows_at_zero():
    step = make_step()
    passes(step, make_examples(7, 40, 12), 0, 12)
    before = step.state()
    step.begin_increment(NUM_ITEMS, 1)
    after = step.state()
    assert after["optimizer/encoder"].keys() == before["optimizer/encoder"].keys()
    for name, array in before["optimizer/encoder"].items():
        assert np.array_equal(after["optimizer/encoder"][name], array)
    for key in ("exp_avg", "exp_avg_sq"):
        grown = after["optimizer/table/00000"][key]
        assert grown.shape == (NUM_ITEMS, 8)
        assert np.array_equal(grown[:12], before["optimizer/table/00000"][key])
        assert before["optimizer/table/00000"][key].any()
        assert not grown[12:].any()


def test_rows_that_no_target_could_be_keep_their_start():
    step = make_step()
    fresh = build_model(MODEL, 10, 16, seed=5)
    fresh.table.grow(NUM_ITEMS)
    passes(step, make_examples(8, 40, 12), 0, 12)
    assert torch.equal(step.model.table.weight[12:16], fresh.table.weight[12:16])
    assert not torch.equal(step.model.table.weight[:12], fresh.table.weight[:12])


def test_the_guard_bounds_the_summed_gradient():
    norms = []
    for bound in (1e-3, None):
        step = make_step(methods=build_methods([OnlineConfig(max_gradient_norm=bound, warmup_steps=0)]))
        step.begin_increment(NUM_ITEMS, 0)
        step.run(batch_of(make_examples(9, 8), range(8)), 1.0, torch.arange(NUM_ITEMS))
        norms.append(float(step.flat_gradient.norm()))
    assert norms[0] == pytest.approx(1e-3, rel=1e-4)
    assert norms[1] > 1e-2


def test_warm_up_counts_from_the_optimizers_birth_not_the_increments():
    seen = []

    class Watch(Method):
        def learning_rate_scale(self, steps_since_fresh: int) -> float:
            seen.append(steps_since_fresh)
            return 1.0

    step = make_step(methods=[Watch()])
    for increment in range(2):
        passes(step, make_examples(10, 16), increment, epochs=1)
    assert seen == [0, 1, 2, 3]
    again = make_step(methods=[Watch()])
    again.load(step.state())
    passes(again, make_examples(10, 16), 2, epochs=1)
    assert seen[4:] == [4, 5]


def test_penalties_reach_encoder_and_table_once_whatever_the_world():
    class Pull(Method):
        def penalties(self, model):
            return {"pull": model.table.weight.square().sum() + model.encoder.start.sum()}

    def work(group: Group) -> torch.Tensor:
        step = make_step(group, torch.float64, methods=[Pull()])
        step.begin_increment(12, 0)
        rows = step.model.table.weight.detach()[:12].clone()
        step.run(None, 1.0, torch.arange(12))
        torch.testing.assert_close(step.flat_gradient[-12 * 8 :].view(12, 8), 2.0 * rows)
        return step.flat_gradient

    solo = work(Solo())
    for flat in on_both(work):
        torch.testing.assert_close(flat, solo)


def test_targets_outside_are_counted_and_a_step_without_any_is_passed_over():
    step = make_step()
    step.begin_increment(NUM_ITEMS, 0)
    examples = make_examples(11, 16, 20)
    before = fingerprint(step)
    nobody = Eligible(np.arange(20, NUM_ITEMS))
    stats = train_passes(step, examples, nobody, np.arange(NUM_ITEMS), epochs=1, seed=9, increment=0)
    assert (stats.steps, stats.targets, stats.targets_outside) == (0, 0, 16)
    assert fingerprint(step) == before


def test_the_eligible_need_not_be_a_prefix():
    step = make_step()
    step.begin_increment(NUM_ITEMS, 0)
    eligible = Eligible(np.arange(5, NUM_ITEMS, 2))
    stats = train_passes(step, make_examples(12, 32), eligible, np.arange(NUM_ITEMS), epochs=1, seed=9, increment=0)
    assert stats.targets + stats.targets_outside == 32
    assert stats.targets == int((eligible.column_of(make_examples(12, 32).target_T) >= 0).sum())


def test_whole_sessions_and_prefixes_give_the_same_gradient():
    sequence, targets = [3, 7, 1, 9], [7, 1, 9, 2]
    ones, zeros = np.ones(4, dtype=np.float32), np.zeros(4, dtype=np.int64)
    back = np.array([3, 2, 1, 0])
    session = Examples(contexts_of([sequence], 100, 10), zeros, back, np.array(targets), ones, zeros, zeros, zeros)
    prefixes = Examples(
        contexts_of([sequence[:n] for n in (1, 2, 3, 4)], 100, 10),
        np.arange(4), zeros, np.array(targets), ones, zeros, zeros, zeros,
    )  # fmt: skip
    gradients = []
    for examples in (session, prefixes):
        step = make_step(dtype=torch.float64, methods=[])
        stats = passes(step, examples, epochs=1)
        assert (stats.steps, stats.targets) == (1, 4)
        gradients.append(step.flat_gradient)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=1e-9)


def test_targets_of_one_query_and_of_empty_contexts_share_a_row():
    widths = []
    objective = build_objective(SoftmaxConfig())

    class Watch:
        def loss(self, query_PD, *rest):
            widths.append(len(query_PD))
            return objective.loss(query_PD, *rest)

    sequence_T = np.array([0, 0, 0, 1, 2, 3])
    zeros, ones = np.zeros(6, dtype=np.int64), np.ones(6, dtype=np.float32)
    examples = Examples(
        contexts_of([[1, 2], [3], [], []], 100, 10), sequence_T, zeros, sequence_T + 4, ones, zeros, zeros, zeros
    )
    step = make_step(dtype=torch.float64, methods=[])
    step.objective = Watch()
    stats = passes(step, examples, epochs=1)
    assert (stats.targets, widths) == (6, [3])

    apart = make_step(dtype=torch.float64, methods=[])
    apart.begin_increment(NUM_ITEMS, 0)
    inputs = pad(examples.contexts, np.arange(NUM_ITEMS))
    batch = StepBatch(inputs, sequence_T, zeros, np.arange(6), sequence_T + 4, ones)
    apart.run(batch, 6.0, torch.arange(NUM_ITEMS))
    torch.testing.assert_close(step.flat_gradient, apart.flat_gradient, atol=1e-12, rtol=1e-9)


def test_it_learns():
    step = make_step()
    count = 256
    items = np.arange(count) % NUM_ITEMS
    zeros = np.zeros(count, dtype=np.int64)
    examples = Examples(
        contexts_of([[item] for item in items.tolist()], 100, 10),
        np.arange(count), zeros, (items + 1) % NUM_ITEMS, np.ones(count, dtype=np.float32), zeros, zeros, zeros,
    )  # fmt: skip
    losses = passes(step, examples, epochs=10).loss_per_epoch
    assert losses[0] > 3.0
    assert losses[-1] < 0.5


def test_extremes_see_what_is_not_a_number():
    step = make_step()
    passes(step, make_examples(13, 16))
    finite, largest = step.extremes()
    assert finite
    assert 0.0 < largest < 100.0
    with torch.no_grad():
        step.model.table.weight[3, 3] = float("nan")
    assert not step.extremes()[0]


def test_a_step_before_the_first_increment_is_refused():
    with pytest.raises(TrainingError, match="begin_increment"):
        make_step().run(None, 1.0, torch.arange(4))


@pytest.mark.parametrize(("batch", "share"), [(2, 1.0), (4, 10 / 16)])
def test_tokens_that_are_no_padding_by_hand(batch, share):
    zeros, weight = np.zeros(4, dtype=np.int64), np.ones(4, dtype=np.float32)
    asked = contexts_of([[1], [2], [1, 2, 3, 4], [5, 6, 7, 8]], 100, 10)
    examples = Examples(asked, np.arange(4), zeros, zeros, weight, zeros, zeros, zeros)
    assert passes(make_step(batch=batch), examples).useful_tokens == share
    assert passes(make_step(batch=batch), examples, epochs=0).useful_tokens is None
