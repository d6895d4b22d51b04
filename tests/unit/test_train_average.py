"""An increment leaves the mean of its weights over the steps of the last pass, and is otherwise what it was."""

import pytest
import torch
from pydantic import ValidationError
from step_kit import NUM_ITEMS, PairRank, fingerprint, make_examples, make_step, on_both, passes

from headrace.config.methods import EarlyStopConfig, TrainConfig
from headrace.config.models import ObjectiveConfig, SampledSoftmaxConfig, SoftmaxConfig
from headrace.train.step import TrainStep

torch.set_num_threads(1)  # tiny products: more threads only wait for one another
SPARSE = SampledSoftmaxConfig(negatives=4, draw="uniform")
OBJECTIVES = [pytest.param(SoftmaxConfig(), id="full"), pytest.param(SPARSE, id="sampled")]
LAST = "last_pass"


def weights(step: TrainStep) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in step.model.parameters()])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_left_is_the_mean_over_the_last_pass(objective: ObjectiveConfig, monkeypatch: pytest.MonkeyPatch):
    seen, run = [], TrainStep.run

    def recording(step: TrainStep, *arguments: object) -> float:
        loss = run(step, *arguments)
        seen.append(weights(step).double())
        return loss

    monkeypatch.setattr(TrainStep, "run", recording)
    step, plain = (make_step(objective=objective, average=how) for how in (LAST, "none"))
    passes(step, make_examples(1, 40), epochs=3)
    assert len(seen) == 15  # 40 examples, 8 a step
    last = torch.stack(seen[10:])
    torch.testing.assert_close(weights(step).double(), last.mean(0), atol=1e-6, rtol=1e-5)
    assert (last[-1] - last.mean(0)).abs().max() > 1e-3
    passes(plain, make_examples(1, 40), epochs=3)
    torch.testing.assert_close(weights(plain).double(), last[-1], atol=0, rtol=0)
    ours, theirs = step.state(), plain.state()
    assert all((ours[part][name] == theirs[part][name]).all() for part in theirs for name in theirs[part])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_that_no_step_touched_are_what_they_were(objective: ObjectiveConfig):
    step = make_step(objective=objective, average=LAST)
    passes(step, make_examples(1, 2), epochs=0)
    before = weights(step)
    passes(step, make_examples(1, 2).take(torch.zeros(0, dtype=torch.long).numpy()), increment=1, epochs=2)
    assert torch.equal(weights(step), before)
    if objective is SPARSE:
        table_VD = step.model.table.weight.detach().clone()
        passes(step, make_examples(1, 1), increment=2, epochs=2)
        same_V = (step.model.table.weight.detach() == table_VD).all(1)
        assert 0 < int((~same_V[:NUM_ITEMS]).sum()) < NUM_ITEMS


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_ranks_leave_the_same_bytes_and_go_on(objective: ObjectiveConfig):
    def work(group: PairRank) -> dict[str, bytes]:
        step = make_step(group, objective=objective, average=LAST)
        for increment in range(2):
            passes(step, make_examples(3 + group.rank, 20), increment=increment)
        return fingerprint(step)

    first, second = on_both(work)
    assert first == second


def test_with_early_stop_it_is_refused():
    with pytest.raises(ValidationError, match=r"last_pass.*early_stop"):
        TrainConfig(average=LAST, budget=EarlyStopConfig())
