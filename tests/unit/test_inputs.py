import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.inputs.contexts import Contexts, EventLog, build_contexts, contexts_of, offsets, pad, ranges
from headrace.inputs.examples import Examples, plan_batches
from headrace.records import generator

_EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 9)), max_size=40)
_QUESTIONS = st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 10)), max_size=12)


def _log(events):
    """Events (key, ts, item) in order of arrival, as a sorted log."""
    ordered = sorted(enumerate(events), key=lambda pair: (pair[1][0], pair[1][1], pair[0]))
    key, ts, item = ([event[column] for _, event in ordered] for column in range(3))
    kind = [index % 3 for index, _ in ordered]
    return EventLog(
        np.array(key, np.uint64), np.array(ts, np.int64), np.array(item, np.int64), np.array(kind, np.int16)
    )


def _build(events, questions, max_events):
    key, as_of = ([question[column] for question in questions] for column in range(2))
    session = np.arange(len(questions), dtype=np.uint64)
    return build_contexts(_log(events), np.array(key, np.uint64), np.array(as_of, np.int64), session, max_events)


def _lists(contexts, column="item_T"):
    values, offset = getattr(contexts, column).tolist(), contexts.offset_R.tolist()
    return [values[start:stop] for start, stop in itertools.pairwise(offset)]


def _contexts(sequences):
    return contexts_of(sequences, 1000, 50)


@given(_EVENTS, _QUESTIONS, st.integers(1, 6))
def test_a_context_is_the_newest_strictly_earlier_events_of_its_key(events, questions, max_events):
    contexts = _build(events, questions, max_events)
    for column, source in (("item_T", 2), ("ts_T", 1)):
        expected = []
        for key, as_of in questions:
            earlier = sorted((event for event in events if event[0] == key and event[1] < as_of), key=lambda e: e[1])
            expected.append([event[source] for event in earlier][-max_events:])
        assert _lists(contexts, column) == expected
    assert contexts.as_of_Q.tolist() == [as_of for _, as_of in questions]
    assert len(contexts.kind_T) == len(contexts.item_T)


def test_members_of_a_set_are_not_context_for_one_another():
    basket = [(1, 10, 7), (1, 10, 8), (1, 10, 9)]
    assert _lists(_build([(1, 5, 3), *basket], [(1, 10)], 50)) == [[3]]
    assert _lists(_build([(1, 5, 3), *basket], [(1, 11)], 50)) == [[3, 7, 8, 9]]


def test_no_events_and_no_questions():
    assert _lists(_build([], [(1, 5)], 3)) == [[]]
    assert len(_build([(1, 2, 3)], [], 3)) == 0
    assert len(_build([], [], 3)) == 0


@given(_EVENTS, _QUESTIONS, st.data())
def test_taking_contexts_is_taking_their_lists(events, questions, data):
    contexts = _build(events, questions, 4)
    index = data.draw(st.lists(st.integers(0, len(questions) - 1), max_size=8)) if questions else []
    taken = contexts.take(np.array(index, dtype=np.int64))
    for column in ("item_T", "ts_T", "kind_T"):
        assert _lists(taken, column) == [_lists(contexts, column)[place] for place in index]
    assert taken.session_Q.tolist() == [contexts.session_Q[place] for place in index]


@given(st.lists(st.lists(st.integers(-1, 9), max_size=6), max_size=6), st.lists(st.booleans(), max_size=11))
def test_items_without_a_row_leave_the_context_and_nothing_else_does(sequences, has_row):
    contexts = _contexts(sequences)
    known = contexts.known(np.where(np.array(has_row, dtype=bool), 3, -1))
    held = {item for item, holds in enumerate(has_row) if holds}
    assert _lists(known) == [[item for item in sequence if item in held] for sequence in sequences]
    assert len(known) == len(sequences)
    assert len(known.ts_T) == len(known.kind_T) == len(known.item_T)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6))
def test_padding_is_on_the_left_and_the_newest_event_in_the_last_column(sequences):
    contexts = _contexts(sequences)
    slot_I = np.arange(10)[::-1].copy()
    inputs = pad(contexts, slot_I)
    width = max([1, *map(len, sequences)])
    assert inputs.slot_BL.shape == (len(sequences), width)
    for row, sequence in enumerate(sequences):
        assert inputs.slot_BL[row].tolist() == [-1] * (width - len(sequence)) + [9 - item for item in sequence]
    assert (inputs.ts_BL[inputs.slot_BL >= 0] == 999).all()
    assert inputs.as_of_B.tolist() == [1000] * len(sequences)


def test_a_request_is_cut_to_its_newest_events():
    contexts = contexts_of([[1, 2, 3], []], 500, 2, session=9)
    assert _lists(contexts) == [[2, 3], []]
    assert contexts.session_Q.tolist() == [9, 9]
    assert (contexts.ts_T < 500).all()


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=10))
def test_ranges_and_offsets(pairs):
    start, length = (np.array([pair[column] for pair in pairs], dtype=np.int64) for column in range(2))
    expected = [value for first, count in pairs for value in range(first, first + count)]
    assert ranges(start, length).tolist() == expected
    assert offsets(length).tolist() == [sum(count for _, count in pairs[:index]) for index in range(len(pairs) + 1)]


def _examples(counts):
    """Sequence s holds the items [s] and counts[s] targets, which number themselves."""
    total = sum(counts)
    sequence_T = np.repeat(np.arange(len(counts)), counts)
    number_T = np.arange(total)
    return Examples(
        _contexts([[index] for index in range(len(counts))]),
        sequence_T,
        number_T % 2,
        number_T,
        number_T.astype(np.float32),
        number_T * 10,
        number_T * 100,
        number_T * 1000,
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_taken_examples_bring_their_targets(counts, data):
    examples = _examples(counts)
    index = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=8))
    taken = examples.take(np.array(index, dtype=np.int64))
    assert len(taken) == len(index)
    assert _lists(taken.contexts) == [[place] for place in index]
    expected = [(new, target) for new, old in enumerate(index) for target in np.flatnonzero(examples.sequence_T == old)]
    assert list(zip(taken.sequence_T.tolist(), taken.target_T.tolist(), strict=True)) == expected
    assert (taken.ts_T == taken.target_T * 10).all()
    assert (taken.shard_T == taken.target_T * 100).all()
    assert (taken.row_T == taken.target_T * 1000).all()
    assert (taken.position_T == taken.target_T % 2).all()


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 16), st.integers(0, 5))
def test_a_pass_reads_every_example_once(lengths, batch, seed):
    batches = plan_batches(np.array(lengths, dtype=np.int64), batch, generator(seed, "plan"))
    assert sorted(index for members in batches for index in members.tolist()) == list(range(len(lengths)))
    assert all(0 < len(members) <= batch for members in batches)
    assert len(batches) == -(-len(lengths) // batch)


def test_batches_hold_like_lengths_and_come_in_drawn_order():
    lengths = np.tile(np.arange(1, 21), 20)
    batches = plan_batches(lengths, 20, generator(1, "plan"))
    assert all(len(np.unique(lengths[members])) == 1 for members in batches)
    order = [int(lengths[members[0]]) for members in batches]
    assert order != sorted(order)
    again = plan_batches(lengths, 20, generator(1, "plan"))
    assert all((one == two).all() for one, two in zip(batches, again, strict=True))


@pytest.mark.parametrize("max_events", [1, 3])
def test_a_prefix_built_from_the_log_equals_the_request_that_a_client_would_send(max_events):
    events = [(1, 10 * step, step) for step in range(5)]
    built = _build(events, [(1, 50)], max_events)
    sent = contexts_of([list(range(5))], 50, max_events)
    assert _lists(built) == _lists(sent)
    assert isinstance(built, Contexts)


def test_examples_pass_over_context_items_without_a_row_and_keep_their_place():
    contexts = _contexts([[0, 1, 2], [1], [0, 2]])
    zero = np.zeros(6, dtype=np.int64)
    made = Examples(
        contexts,
        np.array([0, 0, 0, 0, 1, 2]),
        np.array([2, 1, 0, 3, 0, 0]),
        np.arange(6),
        np.ones(6, dtype=np.float32),
        zero,
        zero,
        np.arange(6),
    )
    assert made.known(np.array([5, 6, 7])) is made
    known = made.known(np.array([5, -1, 7]))
    assert _lists(known.contexts) == [[0, 2], [0, 2]]
    assert known.sequence_T.tolist() == [0, 0, 0, 0, 1]
    assert known.target_T.tolist() == [0, 1, 2, 3, 5]
    assert known.position_T.tolist() == [1, 1, 0, 2, 0], "after 0; after 0 (1 is passed over); after 2; before all"


def test_questions_within_contexts_are_contexts_of_their_own():
    whole = contexts_of([[1, 2, 3], [], [4, 5]], as_of_ms=100, max_events=10)
    times = replace(whole, ts_T=np.array([10, 20, 30, 40, 50]))
    before = times.before(np.array([0, 0, 1, 2, 2]), np.array([0, 2, 0, 1, 5]))
    assert [before.item_T[a:b].tolist() for a, b in itertools.pairwise(before.offset_R)] == [
        [1, 2, 3],
        [1],
        [],
        [4],
        [],
    ]
    assert before.as_of_Q.tolist() == [100, 20, 100, 50, 40]
    assert times.before(np.arange(3), np.zeros(3, dtype=np.int64)) is times
