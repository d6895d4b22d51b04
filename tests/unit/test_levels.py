"""Levels and scenes: which rows are targets, who is held against whom, what it costs, and that none of it is lost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from loop_kit import Pair, Stream, recipe
from step_kit import NUM_ITEMS, fingerprint, make_step, passes

from headrace.catalogue.ids import Catalogue
from headrace.commit.manifest import Manifest
from headrace.config.load import load_recipe
from headrace.config.methods import DistillConfig, EarlyStopConfig, ReplayMethodConfig
from headrace.config.models import SampledSoftmaxConfig, SoftmaxConfig
from headrace.errors import ConfigError
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.rows import cut_rows
from headrace.history.past import history_columns
from headrace.history.segments import SegmentLog
from headrace.inputs.ahead import ahead, question_of
from headrace.inputs.contexts import contexts_of
from headrace.inputs.examples import Examples
from headrace.inputs.levels import level_of
from headrace.methods.build import build_methods
from headrace.models.offset import Offset
from headrace.objectives.levels import Contrasts, contrasts
from headrace.objectives.softmax import build_objective
from headrace.recommend.encode import answering, encode
from headrace.records import KEY_GROUPS, CutRows
from headrace.store.fence import take_epoch
from headrace.train import questions
from headrace.train.group import Group, Solo
from headrace.train.intake import Intake, take
from headrace.train.state import LearnerState
from headrace.train.targets import by_scene, targets

torch.set_num_threads(1)
MINUTE = 60_000
SETS = ("inputs.sessions=set", "inputs.context=user", "evaluation.eval_share=0")
LEVELS = 'objective.levels=["impression","click","long_view"]'
WORDS = (*SETS, 'columns.target_kinds=["click"]', 'columns.context=["tab","long_view"]', "columns.session_id=none")


def held(made: Contrasts | None) -> list[tuple[int, list[int]]]:
    """Each contrasted target with the members of its set."""
    assert made is not None
    sets = [made.member_M[made.set_M == place].tolist() for place in range(int(made.set_M.max()) + 1)]
    pairs = zip(made.target_K.tolist(), made.set_K.tolist(), strict=True)
    return sorted((target, sorted(sets[place])) for target, place in pairs)


def test_who_is_held_against_whom_by_hand():
    question_T = np.array([7, 7, 7, 7, 3, 3, 3, 5, 7, 7])
    level_T = np.array([0, 0, 1, 2, 0, 2, 2, 1, 1, 0], dtype=np.int8)
    weight_T = np.array([1, 1, 1, 1, 1, 1, 0, 1, 1, 0], dtype=np.float32)  # the seventh and the last weigh nothing
    # a click against what was only shown; a long view against that, and against what was only clicked
    wanted = [(2, [0, 1]), (3, [0, 1]), (3, [2, 8]), (5, [4]), (8, [0, 1])]
    made = contrasts(question_T, level_T, weight_T)
    assert held(made) == wanted
    kept = np.array([0, 1, 2, 3, 4, 5, 7, 8])
    assert held(made.within(kept)) == [(2, [0, 1]), (3, [0, 1]), (3, [2, 7]), (5, [4]), (7, [0, 1])]
    assert contrasts(question_T, np.zeros(10, dtype=np.int8), weight_T) is None
    assert contrasts(np.arange(10), level_T, weight_T) is None


def case(seed: int) -> tuple[torch.Tensor, ...]:
    """Five queries over nine items, 24 targets of three levels; some columns are outside and weigh nothing."""
    draw = torch.Generator().manual_seed(seed)
    query_PD = torch.randn(5, 4, dtype=torch.float64, generator=draw, requires_grad=True)
    vectors_ED = torch.randn(9, 4, dtype=torch.float64, generator=draw, requires_grad=True)
    query_T = torch.randint(5, (24,), generator=draw)
    column_T = torch.randint(-1, 9, (24,), generator=draw)
    weight_T = torch.rand(24, dtype=torch.float64, generator=draw) + 0.1
    return query_PD, vectors_ED, query_T, column_T, weight_T * (column_T >= 0)


def naive(logit_PE, query_T, column_T, weight_T, question_T, level_T) -> torch.Tensor:
    """The contrasts by their definition, one by one."""
    total = torch.zeros((), dtype=torch.float64)
    for target in range(len(query_T)):
        for level in range(1, int(level_T[target]) + 1):
            others = [
                other
                for other in range(len(query_T))
                if question_T[other] == question_T[target] and level_T[other] == level - 1 and weight_T[other] > 0
            ]
            if others and weight_T[target] > 0:
                logits = torch.stack([logit_PE[query_T[t], column_T[t]] for t in [target, *others]])
                total = total - torch.log_softmax(logits, 0)[0] * weight_T[target]
    return total


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_loss_and_gradient_are_those_of_the_definition(with_prior, weight):
    query_PD, vectors_ED, query_T, column_T, weight_T = case(1)
    question_T, level_T = query_T.numpy() * 2 + np.arange(24) % 2, (np.arange(24) % 3).astype(np.int8)
    logit_PE, offset = query_PD @ vectors_ED.T, None
    if with_prior:
        draw = torch.Generator().manual_seed(2)
        row_N, column_N = torch.randint(5, (40,), generator=draw).sort()[0], torch.randint(9, (40,), generator=draw)
        shared_E, added_N = (torch.randn(n, dtype=torch.float64, generator=draw) for n in (9, 40))
        offset = Offset(shared_E, row_N, column_N, added_N)
        logit_PE = logit_PE + torch.zeros(5, 9, dtype=torch.float64).index_put((row_N, column_N), added_N, True)
        logit_PE = logit_PE + shared_E
    log_T = torch.log_softmax(logit_PE, 1)[query_T, column_T.clamp(min=0)]
    told = naive(logit_PE, query_T, column_T, weight_T, question_T, level_T)
    plain = -(log_T * weight_T).sum() + weight * told
    made = contrasts(question_T, level_T, weight_T.numpy())
    ours = build_objective(SoftmaxConfig(level_weight=weight)).loss(
        query_PD, vectors_ED, query_T, column_T, weight_T, None, offset, made
    )
    assert float(told.detach()) > 1.0
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    of = (query_PD, vectors_ED)
    torch.testing.assert_close(torch.autograd.grad(ours, of), torch.autograd.grad(plain, of), rtol=1e-9, atol=1e-12)


def test_a_sampled_objective_adds_the_same():
    query_PD, vectors_ED, query_T, column_T, weight_T = case(3)
    level_T = (np.arange(24) % 3).astype(np.int8)
    objective = build_objective(SampledSoftmaxConfig(level_weight=0.5))
    correction_E = torch.linspace(-1.0, 2.0, 9, dtype=torch.float64)
    given = (query_PD, vectors_ED, query_T, column_T, weight_T, correction_E)
    plain = objective.loss(*given) + 0.5 * naive(
        query_PD @ vectors_ED.T, query_T, column_T, weight_T, query_T.numpy(), level_T
    )
    ours = objective.loss(*given, None, contrasts(query_T.numpy(), level_T, weight_T.numpy()))
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    of = (query_PD, vectors_ED)
    torch.testing.assert_close(torch.autograd.grad(ours, of), torch.autograd.grad(plain, of), rtol=1e-9, atol=1e-12)


def test_extreme_logits_stay_finite():
    query_PD = torch.tensor([[300.0]], requires_grad=True)
    vectors_ED = torch.tensor([[1.0], [-1.0], [1.0]], requires_grad=True)
    made = contrasts(np.zeros(3, dtype=int), np.array([0, 1, 0], dtype=np.int8), np.ones(3, dtype=np.float32))
    loss = build_objective(SoftmaxConfig()).loss(
        query_PD, vectors_ED, torch.tensor([0, 0, 0]), torch.arange(3), torch.tensor([0.0, 1.0, 0.0]), None, None, made
    )
    loss.backward()
    assert 600.0 < float(loss.detach()) < 1300.0
    assert torch.isfinite(query_PD.grad).all()
    assert torch.isfinite(vectors_ED.grad).all()


def test_the_offset_at_a_few_places_is_the_offset():
    offset = Offset(torch.arange(3.0), torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0]), torch.tensor([5.0, 7.0, 1.0]))
    query_T, column_T = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([2, 1, 0, 2, 2])
    whole_PE = offset.add_(torch.zeros(2, 3))
    assert torch.equal(offset.at(query_T, column_T), whole_PE[query_T, column_T])


def log(rows: list[tuple[int, int, int, str, int]]) -> pa.Table:
    """``rows`` are (user, item, minute, kind, whether it is a long view); the tab is the user's."""
    user, item, minute, kind, long_view = (list(column) for column in zip(*rows, strict=True))
    columns = {"user_id": user, "item_id": item, "ts": [round(m * MINUTE) for m in minute], "event": kind}
    return pa.table({**columns, "long_view": pa.array(long_view, pa.int8()), "tab": user})


def intake(folder: Path, table: pa.Table, *overrides: str) -> tuple[Intake, CutRows, Stream]:
    made = Stream(folder, recipe(*WORDS, *overrides))
    made.land(table)
    (cut,) = made.cuts(LedgerWriter.open(made.store, take_epoch(made.store)))
    part = cut_rows(LedgerReader(made.store), cut, made.recipe.columns, range(KEY_GROUPS))
    catalogue = Catalogue()
    catalogue.admit(part.item_I)
    return take(part.rows, catalogue, SegmentLog(history_columns(0), 50, 10**6), None, made.recipe), part, made


ROWS = [
    (1, 10, 0, "impression", 0),
    # an hour later: 11 is shown and clicked, 12 only shown, 13 clicked and viewed; 14 is no listed behaviour
    (1, 11, 60, "impression", 0),
    (1, 12, 60, "impression", 0),
    (1, 13, 61, "click", 1),
    (1, 11, 62, "click", 0),
    (1, 14, 62, "like", 0),
    (1, 12, 63, "impression", 0),
]


@pytest.mark.parametrize("shape", ["prefixes", "sessions"])
def test_targets_are_rows_of_every_level_and_a_row_that_shows_less_of_its_item_is_none(tmp_path, shape):
    taken, part, made = intake(tmp_path, log(ROWS), LEVELS, f"objective.examples={shape}")
    level_N = level_of(part.rows, made.recipe.objective.levels, made.recipe.columns.context)
    assert level_N.tolist() == [0, 0, 0, 2, 1, -1, 0]
    examples = targets(taken, made.recipe, Solo(), reads_empty=False)
    assert examples.level_T is not None
    told = sorted(zip(examples.row_T.tolist(), examples.level_T.tolist(), strict=True))
    assert told == [(2, 0), (3, 2), (4, 1), (6, 0)]
    # all are asked for where the session began, though the row that began it is no target
    at = examples.contexts_of(np.arange(4))
    assert [context.tolist() for context in np.split(at.item_T, at.offset_R[1:-1])] == [[0]] * 4
    # what is asked, and counted, stays what it was
    asked = questions.queries(taken, made.recipe.inputs)
    assert asked.target_T.tolist() == [3, 1]
    assert questions.counted(taken, made.recipe.inputs).number_N.tolist() == [3, 1]


def test_truth_has_many_names(tmp_path):
    _, part, _ = intake(tmp_path, log(ROWS[:5]))
    for values in (
        np.array([0.0, np.nan, 1.0, 2.0, 0.0]),
        np.array([None, False, True, True, "no"], dtype=object),
        np.array(["", "0", "true", "1", "false"], dtype=object),
    ):
        rows = replace(part.rows, context={"long_view": values})
        assert level_of(rows, ("long_view",), ("long_view",)).tolist() == [-1, -1, 0, 0, -1]
    assert level_of(replace(part.rows, context={}), ("long_view",), ("long_view",)).tolist() == [-1] * 5


def test_sessions_ahead_are_held_apart():
    zeros, ones = np.zeros(4, dtype=np.int64), np.ones(4, dtype=np.float32)
    contexts = replace(contexts_of([[1, 2, 3]], 10_000_000, 10), ts_T=np.array([0, 2_000_000, 4_000_000]))
    level_T = np.array([1, 0, 1, 0], dtype=np.int8)
    position_T, row_T = np.array([0, 0, 1, 1]), np.arange(4)
    one = Examples(contexts, zeros, position_T, np.array([5, 6, 7, 8]), ones, zeros, zeros, row_T, level_T)
    made = ahead(one, 2, 0.5, 60)
    assert made.level_T is not None
    sets = held(contrasts(question_of(made), made.level_T, made.weight_T))
    told = [(made.row_T[target], made.row_T[members].tolist(), made.position_T[target]) for target, members in sets]
    assert sorted(told) == [(0, [1], 0), (0, [1], 1), (2, [3], 1), (2, [3], 2)]


def scenes(folder: Path, *overrides: str) -> tuple[Intake, CutRows, Stream]:
    visits = [(user, 10 + item, 600 * day, "click", 0) for user in range(6) for day in range(2) for item in range(user)]
    return intake(folder, log(visits), "columns.target_kinds=[]", *overrides)


def test_every_scene_weighs_the_same_and_all_of_them_what_they_did(tmp_path):
    taken, part, made = scenes(tmp_path, "objective.scene=tab", LEVELS)
    plain = targets(taken, made.recipe.model_copy(update={"objective": SoftmaxConfig()}), Solo(), reads_empty=False)
    told = targets(taken, made.recipe, Solo(), reads_empty=False)
    assert told.row_T.tolist() == plain.row_T.tolist()
    tab_T = part.rows.context["tab"][told.row_T]
    weights = [float(told.weight_T[tab_T == tab].sum()) for tab in np.unique(tab_T)]
    assert len(weights) == 5
    np.testing.assert_allclose(weights, plain.weight_T.sum() / 5, rtol=1e-6)
    assert np.bincount(tab_T)[1:].tolist() == [1, 2, 3, 4, 5]

    def half(group: Group) -> Examples:
        mine = np.flatnonzero(plain.row_T[np.searchsorted(plain.sequence_T, np.arange(len(plain)))] % 2 == group.rank)
        return by_scene(plain.take(mine), part.rows, "tab", group)

    parts = Pair().run(half)
    by_row = {row: weight for part in parts for row, weight in zip(part.row_T, part.weight_T, strict=True)}
    np.testing.assert_allclose([by_row[row] for row in told.row_T], told.weight_T, rtol=1e-6)


def with_levels(seed: int, sessions: int = 48) -> Examples:
    """Sessions of four targets: which of them are clicked is told by the item, and by nothing else."""
    draw = np.random.default_rng(seed)
    contexts = contexts_of(draw.integers(NUM_ITEMS, size=(sessions, 3)).tolist(), 100, 10)
    contexts = replace(contexts, session_Q=np.arange(sessions).astype(np.uint64) + 1000 * seed)
    target_T = draw.integers(NUM_ITEMS, size=4 * sessions)
    zeros, row_T = np.zeros(4 * sessions, dtype=np.int64), np.arange(4 * sessions)
    ones = np.ones(4 * sessions, dtype=np.float32)
    session_T = np.repeat(np.arange(sessions), 4)
    return Examples(contexts, session_T, zeros, target_T, ones, zeros, zeros, row_T, (target_T % 3).astype(np.int8))


@pytest.mark.parametrize("objective", [SoftmaxConfig, SampledSoftmaxConfig])
def test_what_is_clicked_comes_before_what_is_only_shown(objective):
    gaps = []
    for weight in (0.0, 1.0):
        step = make_step(objective=objective(level_weight=weight), learning_rate=3e-2)
        passes(step, with_levels(1), epochs=6)
        score_QV = asked(step, with_levels(2).contexts) @ step.model.table.weight.detach()[:NUM_ITEMS].T
        shown, viewed = (score_QV[:, torch.arange(NUM_ITEMS) % 3 == level].mean() for level in (0, 2))
        gaps.append(float(viewed - shown))
    assert gaps[1] > 0.4 + abs(gaps[0])


def asked(step, contexts) -> torch.Tensor:
    with answering(step.model):
        return step.model.query_side(encode(step.model, contexts, np.arange(NUM_ITEMS), 10))


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_replayed_targets_whose_own_word_is_not_heard_are_held_against_nobody(own):
    old, made = with_levels(3), []
    for level_T in (old.level_T, np.zeros_like(old.level_T)):
        step = make_step(methods=build_methods([ReplayMethodConfig(), DistillConfig(own_targets=own)]))
        passes(step, with_levels(1), epochs=1)
        passes(step, with_levels(2), 1, replayed=replace(old, level_T=level_T), epochs=1)
        made.append(fingerprint(step))
    assert (made[0] == made[1]) == (own == 0.0)


def test_early_stop_asks_for_what_is_asked():
    one = EarlyStopConfig(share=0.4, max_epochs=1)
    examples = with_levels(4)
    every = passes(make_step(), examples, early_stop=one)
    asked = passes(make_step(), examples, early_stop=one, asked_level=1)
    clicked = replace(examples, level_T=None).targets(np.flatnonzero(examples.level_T >= 1))
    assert every.recall_per_epoch != asked.recall_per_epoch
    assert 0 < asked.validated == passes(make_step(), clicked, early_stop=one).validated


CONFIG = ("columns.event=event", 'columns.context=["long_view","tab"]', *SETS, "columns.user_id=user_id")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((LEVELS, "inputs.sessions=sequence"), r'inputs\.sessions = "set"'),
        (('objective.levels=["click","click"]',), "none may stand there twice"),
        ((LEVELS, "columns.event=none"), r"names \['impression', 'click'\].*columns\.event"),
        (('objective.levels=["long_view"]', 'columns.target_kinds=["click"]'), r"\['click'\], is what is asked for"),
        ((LEVELS, 'methods=[{kind="ewc"}]'), 'the method "ewc"'),
        (("objective.scene=page",), r"objective\.scene is 'page'.*columns\.context, \['long_view', 'tab'\]"),
        (("objective.level_weight=-1",), r"^objective: .*\(received -1\)"),
        (("objective.levels=click",), r"^objective: .*\(received 'click'\)"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(words, said):
    assert load_recipe((), [*CONFIG, LEVELS, "objective.scene=tab"]).objective.levels[2] == "long_view"
    with pytest.raises(ConfigError, match=said):
        load_recipe((), [*CONFIG, *words])


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (('objective.levels=["impresion","click","long_view"]',), r"\['impresion'\]"),
        ((LEVELS, 'columns.context=["tab"]'), r"\['long_view'\]"),
        (("objective.scene=page", 'columns.context=["page"]'), r"\['page'\]"),
    ],
)
def test_what_no_row_of_the_warm_up_has_is_refused_in_words(tmp_path, words, missing):
    stream = shown(tmp_path, *words, shards=1)
    with pytest.raises(ConfigError, match=f"objective names {missing}, and no row of the warm-up has it"):
        stream.advance()


def visits(day: int, num_users: int = 40) -> pa.Table:
    """A visit a user and day of five items of a shelf, in the order shown; the item tells what becomes of it."""
    draw = np.random.default_rng(day)
    user = np.repeat(np.arange(num_users), 5)
    item = 10 * (user % 4) + draw.permuted(np.tile(np.arange(10), (num_users, 1)), axis=1)[:, :5].reshape(-1)
    minute = 1440 * day + user % 60 + 0.1 * np.tile(np.arange(5), num_users)
    rows = zip(user, item, minute, item % 3, strict=True)
    return log([(u, i, m, "impression" if show == 0 else "click", int(show == 2)) for u, i, m, show in rows])


def shown(folder: Path, *overrides: str, shards: int = 4) -> Stream:
    words = ("model.dropout=0.0", "train.learning_rate=0.01", "train.warmup_epochs=4", "replay.max_bytes=65536")
    stream = Stream(folder, recipe(*WORDS, *words, "replay.segment_bytes=8192", *overrides))
    for shard in range(shards):
        stream.land(visits(shard + 3) if shard else pa.concat_tables([visits(day) for day in range(4)]))
    return stream


NSP = ("model.kind=nsp", "objective.examples=sessions", 'methods=[{kind="online"},{kind="replay"}]')


def model_of(manifest: Manifest) -> dict[str, str]:
    return {name: ref.sha256 for name, ref in manifest.parts.items() if name.startswith(("model/", "optimizer/"))}


@pytest.mark.parametrize(
    "words",
    [
        (),
        ('objective.kind="sampled_softmax"', "objective.negatives=16"),
        ('experts=[{kind="popular"}]', 'model.prior={experts=["popular"]}'),
    ],
    ids=["softmax", "sampled", "prior"],
)
def test_a_run_with_levels_is_the_same_wherever_it_stops_and_on_two_ranks(tmp_path, words):
    told = (*NSP, LEVELS, "objective.scene=tab", *words)
    undisturbed = shown(tmp_path / "a", *told).advance()
    disturbed = shown(tmp_path / "b", *told)
    for cut in range(4):
        last = disturbed.advance(until=cut)
    assert last[-1].state_digest == undisturbed[-1].state_digest
    training = [manifest.facts["training"] for manifest in undisturbed]
    assert training[0]["loss_per_epoch"][-1] < training[0]["loss_per_epoch"][0]
    assert all(facts["replayed"] for facts in training[1:])
    two = shown(tmp_path / "c", *told).advance_pair()
    again = shown(tmp_path / "d", *told)
    again.advance_pair(until=1)
    assert again.advance_pair()[-1].state_digest == two[-1].state_digest
    assert two[0].facts["training"]["targets"] == training[0]["targets"] > 0


def test_replayed_targets_keep_their_levels_over_a_restart_and_another_rank_count(tmp_path):
    drawn: list[tuple[int, int]] = []

    def look(state: LearnerState) -> None:
        assert state.replay is not None
        (batch,) = state.replay.batches(9, [200])
        assert batch.level_T is not None
        number_of = {
            number: item for item, number in zip(range(40), state.catalogue.numbers(np.arange(40)), strict=True)
        }
        drawn.extend((number_of[number], level) for number, level in zip(batch.target_T, batch.level_T, strict=True))

    stream = shown(tmp_path, *NSP, LEVELS)
    stream.advance_pair(until=2)
    stream.advance(change=look)
    assert {level for _, level in drawn} == {0, 1, 2}
    assert all(level == item % 3 for item, level in drawn)


def test_levels_without_weight_are_targets_like_any_other_to_the_bit(tmp_path):
    words = (*NSP[:2], "columns.target_kinds=[]")
    plain = shown(tmp_path / "a", *words).advance()
    for_all = shown(tmp_path / "b", *words, LEVELS, "objective.level_weight=0").advance()
    assert model_of(plain[-1]) == model_of(for_all[-1])
    weighed = shown(tmp_path / "c", *words, LEVELS).advance()
    assert model_of(weighed[-1]) != model_of(plain[-1])
