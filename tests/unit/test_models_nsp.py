"""Next-session prediction: who sees whom, and what must not matter to a question."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from step_kit import make_step, passes

from headrace.config.models import NspConfig
from headrace.inputs.ahead import ahead
from headrace.inputs.contexts import Contexts, ModelInputs, offsets, pad
from headrace.inputs.examples import Examples
from headrace.models.base import RecallModel
from headrace.models.build import build_model, load_model, model_parts
from headrace.models.mixture import Mixture
from headrace.models.nsp import Block
from headrace.models.session_tokens import lay_out, packed
from headrace.recommend.encode import encode
from headrace.train.early_stop import validation

GAP_S = 60
HOUR_MS = 3_600_000
PARTS = [
    {},
    {"separate": False},
    {"rotary": "token"},
    {"rotary": "none"},
    {"session_mask": False},
    {"experts": 3},
    {"heads": 2},
    {"features": ("device",)},
]


def make(**changes: object) -> RecallModel:
    config = NspConfig(**({"width": 12, "dropout": 0.5, "session_gap_s": GAP_S} | changes))
    return build_model(config, max_events=10, capacity=32, seed=3).eval()


def contexts(*rows: list[list[int]]) -> Contexts:
    """Each row a list of sessions, an hour apart, asked an hour after the last; items within one a second apart."""
    item, ts, as_of = [], [], []
    for sessions in rows:
        for hour, session in enumerate(sessions):
            item += session
            ts += [hour * HOUR_MS + 1000 * second for second in range(len(session))]
        as_of.append(len(sessions) * HOUR_MS)
    length_Q = np.array([sum(len(session) for session in sessions) for sessions in rows])
    told_T, session_Q = np.array(item, dtype=np.int64) << 15, np.zeros(len(rows), dtype=np.uint64)
    ints = [np.array(values, dtype=np.int64) for values in (item, ts)]
    told_Q = np.arange(9, 9 + len(rows), dtype=np.int64) << 15
    return Contexts(*ints, told_T, offsets(length_Q), np.array(as_of, dtype=np.int64), session_Q, told_Q)


def batch(*rows: list[list[int]]) -> ModelInputs:
    return pad(contexts(*rows), np.arange(32))


def ask(model: RecallModel, inputs: ModelInputs, rows: list[int], backs: list[int]) -> torch.Tensor:
    item_BLD = model.table.rows(torch.from_numpy(inputs.slot_BL))
    with torch.no_grad():
        return model.encoder(inputs, item_BLD, torch.tensor(rows), torch.tensor(backs))


ROWS = [[[1, 2], [3], [4, 5, 6]], [[7]], [], [[1], [1]]]


def test_who_sees_whom_by_hand():
    tokens = lay_out(batch([[1, 2], [3]]), np.array([0]), np.array([0]), GAP_S)
    # tokens: the items 1 2 3, then the context tokens that open the first, the second and the coming session
    expected = [
        [1, 0, 0, 1, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    assert tokens.seen_GTT[0].astype(int).tolist() == expected
    assert tokens.place_GT[0].tolist() == [0, 0, 1, 0, 1, 2]
    assert tokens.silence_ms_BC[0].tolist() == [-1, HOUR_MS - 1000, HOUR_MS]
    assert tokens.opens_ms_BC[0].tolist() == [0, HOUR_MS, 2 * HOUR_MS]
    assert tokens.question_P.tolist() == [2]
    assert tokens.is_there_GT.all()


def test_a_question_within_a_session_stands_apart():
    tokens = lay_out(batch([[1, 2], [3]]), np.array([0, 0]), np.array([2, 0]), GAP_S)  # after item 1
    apart = 3 + int(tokens.question_P[0])
    assert tokens.seen_GTT[0, apart].tolist() == [
        True,
        False,
        False,
        True,
        *([False] * (apart - 4)),
        True,
        False,
        False,
    ]
    assert not tokens.seen_GTT[0, :, apart].any() or tokens.seen_GTT[0, :, apart].sum() == 1  # none but itself


def test_an_ablated_mask_is_causal_and_places_are_of_their_own():
    tokens = lay_out(batch([[1, 2], [3]]), np.array([0]), np.array([0]), GAP_S, "token", "earlier_items")
    assert tokens.seen_GTT[0, 1].tolist() == [True, True, False, True, False, False]
    assert tokens.place_GT[0].tolist() == [0, 1, 2, 0, 2, 3]


@pytest.mark.parametrize("changes", PARTS)
def test_padding_and_company_change_nothing(changes):
    model = make(**changes)
    together = ask(model, batch(*ROWS), [0, 1, 2, 3], [0] * 4)
    assert torch.isfinite(together).all()
    for row, sessions in enumerate(ROWS):
        torch.testing.assert_close(together[row], ask(model, batch(sessions), [0], [0])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", PARTS)
def test_one_pass_asks_for_each_session_as_if_it_were_the_next(changes):
    model = make(**changes)
    one_pass = ask(model, batch(ROWS[0]), [0] * 4, [0, 3, 4, 6])
    alone = [ask(model, batch(ROWS[0][:number]), [0], [0])[0] for number in (3, 2, 1)]
    empty = ask(model, replace(batch([]), as_of_B=np.zeros(1, dtype=np.int64)), [0], [0])[0]
    torch.testing.assert_close(one_pass, torch.stack([*alone, empty]), atol=1e-5, rtol=0)


LONG = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 1]]
BATCHES = {
    "uneven": ([*ROWS, [[2]], [[3]], [[4, 5]]], [0, 0, 1, 2, 3, 3, 4, 5, 6, 6], [0, 2, 0, 0, 0, 1, 0, 0, 0, 2]),
    "one row": ([LONG], [0, 0, 0], [0, 5, 7]),
    "all equal": ([[[1], [2]], [[3], [4]], [[5], [6]]], [0, 1, 2, 2], [0, 0, 0, 1]),
    "questions apart": ([LONG, [[1, 2]], [[3, 4, 5]], [[6, 7]]], [0, 0, 0, 1, 1, 2, 2, 3], [1, 2, 8, 1, 0, 1, 2, 1]),
    "empty": ([[], LONG, [], [[7]]], [0, 1, 2, 3], [0, 0, 0, 0]),
    "not all are asked": ([LONG, [[7]], [[8], [9]], []], [0, 2], [0, 1]),
}


def answers_and_gradients(model: RecallModel, name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rows, row, back = BATCHES[name]
    inputs = batch(*rows)
    item_BLD = model.table.rows(torch.from_numpy(inputs.slot_BL)).detach().requires_grad_()
    model.zero_grad()
    query_PD = model.encoder(inputs, item_BLD, torch.tensor(row), torch.tensor(back))
    weight_PD = torch.linspace(-1, 1, query_PD.numel()).view_as(query_PD)
    (query_PD * weight_PD).sum().backward()
    grads = {key: value.grad for key, value in model.encoder.named_parameters() if value.grad is not None}
    return query_PD.detach(), {"items": item_BLD.grad, **grads}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("changes", PARTS)
def test_joined_rows_answer_and_learn_as_padded_ones(changes, name):
    model = make(**changes, dropout=0.0)
    draw = torch.Generator().manual_seed(7)
    for table in (model.encoder.kind, model.encoder.hour, model.encoder.weekday, model.encoder.silence):
        torch.nn.init.normal_(table, std=0.3, generator=draw)
    padded, padded_grads = answers_and_gradients(model.eval(), name)
    joined, joined_grads = answers_and_gradients(model.train(), name)
    torch.testing.assert_close(joined, padded, atol=1e-5, rtol=0)
    assert joined_grads.keys() == padded_grads.keys()
    for key, gradient in padded_grads.items():
        torch.testing.assert_close(joined_grads[key], gradient, atol=1e-5, rtol=1e-5, msg=key)


def test_packed_by_hand():
    # three events in two sessions; one event; none: six tokens with the question, three, and one
    asked = (np.array([0, 1, 2]), np.array([0, 0, 0]))
    tokens = packed(lay_out(batch([[1, 2], [3]], [[4]], []), *asked, GAP_S))
    assert tokens.is_there_GT.tolist() == [[True] * 10]
    assert tokens.place_GT[0].tolist() == [0, 0, 1, 0, 1, 2, 0, 0, 1, 0]
    drawn = np.zeros((10, 10), dtype=int)
    drawn[:6, :6] = lay_out(batch([[1, 2], [3]]), np.array([0]), np.array([0]), GAP_S).seen_GTT[0]
    drawn[6:9, 6:9] = [[1, 1, 0], [0, 1, 0], [1, 1, 1]]
    drawn[9, 9] = 1
    assert tokens.seen_GTT[0].astype(int).tolist() == drawn.tolist()
    assert tokens.event_N.tolist() == [0, 1, 2, 5]
    assert tokens.event_at_N.tolist() == [0, 1, 2, 6]
    assert tokens.context_N.tolist() == [0, 1, 2, 3, 4, 6]
    assert tokens.context_at_N.tolist() == [3, 4, 5, 7, 8, 9]
    assert tokens.asking_GA.tolist() == [[5, 8, 9]]
    assert (tokens.row_P.tolist(), tokens.question_P.tolist()) == ([0, 0, 0], [0, 1, 2])
    asked = (np.array([0, 0, 0, 0, 1, 2, 0]), np.array([0, 1, 2, 2, 1, 0, 3]))  # ends, an inner place twice, and starts
    assert make().encoder.shapes(contexts([[1, 2], [3]], [[4]], []), *asked).tolist() == [7, 2, 1]


def test_bins_that_are_not_full_and_ask_for_different_numbers():
    # three rows of nine tokens, of which the first asks twice, and two of three
    rows = [[[1, 2, 3], [4], [5]]] * 3 + [[[6]], [[7]]]
    tokens = packed(lay_out(batch(*rows), np.array([0, 0, 1, 2, 3, 4]), np.array([0, 1, 0, 0, 0, 0]), GAP_S))
    assert tokens.is_there_GT.tolist() == [[True] * 9] * 3 + [[True] * 6 + [False] * 3]
    assert tokens.asking_GA.tolist() == [[7, 8], [8, 0], [8, 0], [2, 5]]
    assert (tokens.row_P.tolist(), tokens.question_P.tolist()) == ([0, 0, 1, 2, 3, 3], [1, 0, 0, 0, 0, 1])
    assert tokens.seen_GTT[3, 6:].astype(int).tolist() == np.eye(9, dtype=int)[6:].tolist()
    assert not tokens.seen_GTT[3, :3, 3:].any()
    assert not tokens.seen_GTT[3, 3:, :3].any()


@pytest.mark.parametrize("batch_size", [3, 32])
def test_the_figure_of_useful_tokens_is_what_blocks_compute(batch_size):
    draw = np.random.default_rng(3)
    rows = [np.split(draw.integers(0, 9, n), range(2, n, 2)) for n in draw.integers(1, 11, 20).tolist()]
    asked = contexts(*([session.tolist() for session in row] for row in rows))
    sequence_T = np.repeat(np.arange(20), 3)
    position_T = np.minimum(draw.integers(0, 11, 60), asked.length_Q[sequence_T] - 1)
    weight, zeros = np.ones(60, dtype=np.float32), np.zeros(60, dtype=np.int64)
    examples = Examples(asked, sequence_T, position_T, draw.integers(0, 9, 60), weight, zeros, zeros, zeros)
    step = make_step(batch=batch_size, model=NspConfig(width=12, session_gap_s=GAP_S))
    computed, useful = [], []

    def see(block: Block, inputs: tuple[torch.Tensor, ...]) -> None:
        computed.append(inputs[0].shape[0] * inputs[0].shape[1])
        useful.append(inputs[1].event_at_N.numel() + inputs[1].context_at_N.numel())

    step.model.encoder.blocks[0].register_forward_pre_hook(see)
    told = passes(step, examples, epochs=1).useful_tokens
    assert told == sum(useful) / sum(computed)
    assert told > 0.8


def test_the_order_within_a_session_does_not_matter_and_that_of_sessions_does():
    model = make()
    asked = ask(model, batch([[1, 2, 3], [4]], [[3, 1, 2], [4]], [[4, 2, 3], [1]]), [0, 1, 2], [0] * 3)
    torch.testing.assert_close(asked[0], asked[1], atol=1e-6, rtol=0)
    assert not torch.allclose(asked[0], asked[2])


def test_the_time_of_asking_matters_once_it_is_learned():
    model, inputs = make(), batch([[1, 2]])
    later = replace(inputs, as_of_B=inputs.as_of_B + 5 * HOUR_MS)
    assert torch.equal(ask(model, inputs, [0], [0]), ask(model, later, [0], [0]))
    torch.nn.init.normal_(model.encoder.hour)
    assert not torch.allclose(ask(model, inputs, [0], [0]), ask(model, later, [0], [0]))


@pytest.mark.parametrize("changes", PARTS)
def test_every_weight_learns_and_parts_go_back_and_forth(changes):
    model = make(**changes).train()
    inputs = batch(*ROWS)
    item_BLD = model.table.rows(torch.from_numpy(inputs.slot_BL))
    with torch.autocast("cpu", torch.bfloat16):
        vectors = model.encoder(inputs, item_BLD, torch.arange(4), torch.zeros(4, dtype=torch.long))
    assert vectors.dtype == torch.float32
    vectors.square().sum().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    config = NspConfig(**({"width": 12, "dropout": 0.5, "session_gap_s": GAP_S} | changes))
    again = load_model(config, 10, model_parts(model)).eval()
    assert torch.equal(ask(again, inputs, [0, 3], [0, 0]), ask(model.eval(), inputs, [0, 3], [0, 0]))


def test_a_mixture_with_two_experts_is_the_weighted_sum_of_all():
    torch.manual_seed(0)
    mixture, x = Mixture(4, 2, 0.0), torch.randn(5, 4)
    share = mixture.gate(x).softmax(-1)
    expected = mixture.shared(x) + sum(share[:, [e]] * expert(x) for e, expert in enumerate(mixture.experts))
    torch.testing.assert_close(mixture(x), expected)


def test_heads_must_halve_into_the_width():
    with pytest.raises(ValueError, match=r"model\.heads"):
        make(width=10, heads=2)


def three_users() -> Examples:
    asked = contexts([[1, 2], [3], [4]], [[5]], [[6, 7]])
    target_T = np.array([10, 11, 12, 13])
    return Examples(
        asked,
        np.array([0, 0, 1, 2]),
        np.array([0, 1, 0, 0]),  # after all of it, and at the start of its last session
        target_T,
        np.ones(4, dtype=np.float32),
        *(np.arange(4) for _ in range(3)),
    )


def test_company_does_not_change_a_bit_of_an_answer():
    model = make()
    asked = contexts(*ROWS, [[1, 2, 3, 4, 5, 6]], [[1], [2], [3], [4], [5], [6]], [[6, 5], [4, 3], [2, 1]])
    together = encode(model, asked, np.arange(32), 10)
    for row in range(len(asked)):
        assert torch.equal(together[row], encode(model, asked.take(np.array([row])), np.arange(32), 10)[0])


def test_sessions_ahead_by_hand():
    made, target_T = three_users(), np.array([10, 11, 12, 13])
    assert ahead(made, 1, 0.5, GAP_S).target_T.tolist() == target_T.tolist()
    further = ahead(made, 3, 0.5, GAP_S)
    told = sorted(zip(further.target_T.tolist(), further.position_T.tolist(), further.weight_T.tolist(), strict=True))
    # four events: the third session begins one back, the second two; where nothing had happened nothing is asked
    assert told == [(10, 0, 1.0), (10, 1, 0.5), (10, 2, 0.25), (11, 1, 1.0), (11, 2, 0.5), (12, 0, 1.0), (13, 0, 1.0)]
    assert (np.diff(further.sequence_T) >= 0).all()


def test_the_page_draws_the_mask_that_the_model_uses():
    page = (Path(__file__).resolve().parents[2] / "docs" / "next-session.md").read_text()
    names = ["a", "b", "c", "C1", "C2", "C?"]
    words = [line.split() for line in page.splitlines() if line.startswith("    ")]
    drawn = {row[0]: row[1:] for row in words if row[1:] and {*row[1:]} <= {"x", "."}}
    tokens = lay_out(batch([[1, 2], [3]]), np.array([0]), np.array([0]), GAP_S)
    seen = {name: ["x" if sees else "." for sees in row] for name, row in zip(names, tokens.seen_GTT[0], strict=True)}
    assert drawn == seen


def test_validation_asks_for_each_session_once_and_when_it_would_be_asked():
    further = ahead(three_users(), 3, 0.5, GAP_S)
    made = validation(further, further.target_T - 10, np.arange(32), torch.arange(4), None)
    assert made.contexts.length_Q.tolist() == [4, 3, 1, 2]
    assert made.contexts.as_of_Q.tolist() == [3 * HOUR_MS, 2 * HOUR_MS, HOUR_MS, HOUR_MS]
    assert made.column_T.tolist() == [0, 1, 2, 3]
    assert np.diff(made.offset_R).tolist() == [1, 1, 1, 1]
    at_the_end = (np.arange(9, 12) << 15).tolist()
    assert made.contexts.told_Q.tolist() == [at_the_end[0], 4 << 15, *at_the_end[1:]], "as in training"


def test_first_sessions_validate_where_they_are_answered():
    first = replace(three_users(), position_T=np.array([0, 4, 0, 0]))
    for reads_empty, lengths in ((False, [4, 1, 2]), (True, [4, 0, 1, 2])):
        made = validation(first, first.target_T - 10, np.arange(32), torch.arange(4), None, reads_empty)
        assert made.contexts.length_Q.tolist() == lengths
        assert np.isfinite(made.recall_sum(make()))


def test_some_targets_of_examples_keep_their_questions():
    made = three_users().targets(np.array([1, 3]))
    assert made.target_T.tolist() == [11, 13]
    assert made.sequence_T.tolist() == [0, 1]
    assert made.position_T.tolist() == [1, 0]
    assert made.contexts.length_Q.tolist() == [4, 2]


def test_a_context_token_is_told_what_opens_its_session_and_nothing_within_one():
    model = make(features=("device",))
    torch.nn.init.normal_(model.encoder.request.value_FVD)
    whole = batch([[1, 2], [3], [4, 5]])
    opening = replace(batch([[1, 2], [3]]), told_B=np.array([4 << 15]))
    torch.testing.assert_close(ask(model, whole, [0], [2]), ask(model, opening, [0], [0]), atol=1e-5, rtol=0)
    other = replace(opening, told_B=np.array([6 << 15]))
    assert not torch.allclose(ask(model, opening, [0], [0]), ask(model, other, [0], [0]))
    tokens = lay_out(whole, np.array([0, 0, 0]), np.array([0, 1, 4]), GAP_S)
    at_the_end, within = 9 << 15, 0
    assert tokens.told_BC.tolist() == [[1 << 15, within, 3 << 15, 4 << 15, within, at_the_end]]
