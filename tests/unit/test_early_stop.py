"""Early stop: who validates, what is measured, when it ends, and that the best pass is what is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_kit import Stream, events, recipe
from step_kit import NUM_ITEMS, PairRank, fingerprint, make_step, on_both, passes

from headrace.config.methods import EarlyStopConfig, RowAdagradConfig
from headrace.config.models import SampledSoftmaxConfig, SasRecConfig
from headrace.inputs.contexts import contexts_of, pad
from headrace.inputs.examples import Examples
from headrace.train.early_stop import hold_out, validation
from headrace.train.step import TrainStep

DROPOUT = SasRecConfig(width=8, dropout=0.3)
SAMPLED = SampledSoftmaxConfig(negatives=16, draw="frequency")
SOON = EarlyStopConfig(share=0.3, patience=2, max_epochs=12)
MODES: list[dict[str, Any]] = [{}, {"objective": SAMPLED}, {"objective": SAMPLED, "optimizer": RowAdagradConfig()}]


def walks(seed: int, count: int, num_items: int = NUM_ITEMS) -> Examples:
    """Prefixes of four clicks around a ring, three to a session: what comes next can be learned."""
    draw = np.random.default_rng(seed)
    start = np.repeat(draw.integers(num_items, size=count // 3), 3)
    length = np.tile([1, 2, 3], count // 3)
    sequences = [((s + np.arange(n)) % num_items).tolist() for s, n in zip(start, length, strict=True)]
    place = np.arange(len(start))
    contexts = replace(contexts_of(sequences, 100, 10), session_Q=(1 + place // 3 + 1000 * seed).astype(np.uint64))
    zeros = np.zeros(len(start), dtype=np.int64)
    noise = np.where(draw.random(len(start)) < 0.3, draw.integers(num_items, size=len(start)), 0)
    target = (start + length + noise) % num_items
    return Examples(contexts, place, zeros, target, np.ones(len(start), dtype=np.float32), zeros, zeros + seed, place)


def test_a_session_validates_whole_or_not_at_all_and_keeps_its_side():
    examples = walks(1, 3000)
    kept, held = hold_out(examples, EarlyStopConfig(), 9)
    assert len(kept) + len(held) == len(examples)
    assert not set(kept.contexts.session_Q.tolist()) & set(held.contexts.session_Q.tolist())
    assert 0.07 < len(held) / len(examples) < 0.13
    later = replace(examples, shard_T=examples.shard_T + 1)
    assert set(hold_out(later, EarlyStopConfig(), 9)[1].row_T) == set(held.row_T)
    assert set(hold_out(examples, EarlyStopConfig(), 10)[1].row_T) != set(held.row_T)


def test_a_prefix_validates_beside_others_of_its_session():
    kept, held = hold_out(walks(1, 3000), EarlyStopConfig(split="prefix"), 9)
    shared = set(kept.contexts.session_Q.tolist()) & set(held.contexts.session_Q.tolist())
    assert len(shared) > 0.8 * len(set(held.contexts.session_Q.tolist()))
    assert 0.07 < len(held) / 3000 < 0.13
    other = replace(walks(1, 3000), shard_T=np.full(3000, 7))
    assert set(hold_out(other, EarlyStopConfig(split="prefix"), 9)[1].row_T) != set(held.row_T)


def test_recall_is_that_of_the_definition():
    step = make_step()
    passes(step, walks(2, 90))
    contexts = contexts_of([[1, 2, 3], [4, 5], [6]], 100, 10)
    # the first is asked twice, at its end for two items; the last has a target that is not scored
    one_pass = Examples(
        contexts,
        np.array([0, 0, 0, 1, 2]),
        np.array([1, 0, 0, 0, 0]),
        np.array([3, 4, 30, 6, 39]),
        *(np.ones(5, dtype=dtype) for dtype in (np.float32, np.int64, np.int64)),
        np.arange(5),
    )
    slots = torch.arange(38)
    column_T = np.where(one_pass.target_T < 38, one_pass.target_T, -1)
    asked = validation(one_pass, column_T, np.arange(NUM_ITEMS), slots, None)
    assert len(asked.contexts) == 4
    model = step.model.eval()
    hits = []
    for events_before, targets in (([1, 2], [3]), ([1, 2, 3], [4, 30]), ([4, 5], [6]), ([6], [])):
        inputs = pad(contexts_of([events_before], 100, 10), np.arange(NUM_ITEMS))
        zero = torch.zeros(1, dtype=torch.int64)
        with torch.no_grad():
            query = model.encoder(inputs, model.table.rows(torch.from_numpy(inputs.slot_BL)), zero, zero)
            score_E = model.logits(query, model.table.weight[:38])[0]
        hits.append(np.mean([float((score_E >= score_E[t]).sum()) <= 20 for t in targets]) if targets else 0.0)
    assert asked.recall_sum(model) == pytest.approx(sum(hits))
    assert 0.0 < sum(hits) < 4.0


@pytest.mark.parametrize("mode", MODES, ids=["dense", "sampled", "row_adagrad"])
def test_the_best_pass_is_kept_with_its_optimizer(mode):
    def trained(examples: Examples, **options: Any) -> tuple[TrainStep, Any]:
        step = make_step(model=DROPOUT, learning_rate=3e-2, **mode)
        return step, passes(step, examples, **options)

    examples = walks(3, 120)
    step, stats = trained(examples, early_stop=SOON)
    recalls = stats.recall_per_epoch
    assert stats.best_epoch == 1 + recalls.index(max(recalls))
    assert 1 < stats.best_epoch < len(recalls), "else the rest of this test says nothing"
    assert len(recalls) == len(stats.loss_per_epoch) == min(12, stats.best_epoch + 2)
    kept, held = hold_out(examples, SOON, 9)
    assert stats.validated == len(held)
    plain, plain_stats = trained(kept, epochs=stats.best_epoch)
    assert fingerprint(step) == fingerprint(plain)
    assert (stats.steps, stats.last_gradient_norm) == (plain_stats.steps, plain_stats.last_gradient_norm)
    assert stats.loss_per_epoch[: stats.best_epoch] == plain_stats.loss_per_epoch
    for each in (step, plain):
        passes(each, walks(4, 60), 1)
    assert fingerprint(step) == fingerprint(plain), "the next increment goes on from the best pass"


@pytest.mark.parametrize("split", ["session", "prefix"])
def test_two_ranks_decide_alike(split):
    def work(group: PairRank) -> tuple[Any, dict[str, bytes]]:
        step = make_step(group, learning_rate=3e-2)
        mine = walks(5 + group.rank, 90 if group.rank else 30)
        return passes(step, mine, early_stop=SOON.model_copy(update={"split": split})), fingerprint(step)

    (one, first), (other, second) = on_both(work)
    assert first == second
    assert (one.recall_per_epoch, one.best_epoch, one.steps) == (other.recall_per_epoch, other.best_epoch, other.steps)
    assert one.validated == other.validated > 0


def test_where_nothing_validates_the_passes_are_those_of_the_recipe():
    nobody = SOON.model_copy(update={"share": 1e-9})
    steps = [make_step(model=DROPOUT), make_step(model=DROPOUT)]
    stats = [passes(steps[0], walks(6, 60), early_stop=nobody), passes(steps[1], walks(6, 60))]
    assert fingerprint(steps[0]) == fingerprint(steps[1])
    assert [s.validated for s in stats] == [0, 0]
    none = passes(make_step(), walks(6, 60), epochs=0, early_stop=SOON)
    assert (none.steps, none.recall_per_epoch) == (0, ())


def test_it_ends_at_most_epochs():
    stats = passes(make_step(), walks(7, 60), early_stop=SOON.model_copy(update={"max_epochs": 2}))
    assert len(stats.recall_per_epoch) == 2


def test_commits_say_what_was_decided_and_two_runs_are_equal(tmp_path: Path) -> None:
    words = ['train.budget={kind="early_stop", share=0.3, patience=1, max_epochs=4}']
    made = []
    for name in ("a", "b"):
        stream = Stream(tmp_path / name, recipe(*words))
        for index in range(3):
            stream.land(events(300 if index == 0 else 80, seed=index, start_ms=index * 3_600_000))
        made.append(stream.advance())
    assert [m.state_digest for m in made[0]] == [m.state_digest for m in made[1]]
    for manifest in made[0]:
        facts = manifest.facts["training"]
        assert 1 <= facts["best_epoch"] <= facts["epochs"] <= 4
        assert len(facts["recall_per_epoch"]) == len(facts["loss_per_epoch"]) == facts["epochs"]
        assert facts["validated"] > 0
