"""What every expert promises, whichever kind it is: a new one joins by its config."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from headrace.catalogue.eligible import Eligible
from headrace.config.answers import CovisitConfig, EncodingsConfig, OwnItemsConfig, PopularConfig, SimilarSessionsConfig
from headrace.experts.base import Counted, Encoding, Shared, Sparse
from headrace.experts.build import build_expert, load_experts, read_configs, save_experts
from headrace.inputs.contexts import EventLog, build_contexts
from headrace.store.arrays import dump_arrays, load_arrays

CONFIGS = (
    PopularConfig(),
    PopularConfig(name="fading", half_life_s=600),
    CovisitConfig(window=3, max_per_item=8),
    CovisitConfig(name="covisit_fading", half_life_s=600, max_per_item=8),
    SimilarSessionsConfig(sessions_per_item=20, neighbours=5, max_events=400),
    OwnItemsConfig(),
    EncodingsConfig(max_rows=300, neighbours=250, reencode=20),
)
NUM_ITEMS = 40
START_MS = 1_700_000_000_000
CUT_MS = 300_000


def counted(increment, num_items=NUM_ITEMS, num_events=120):
    """An increment's rows in order of time; sessions of the increment before go on."""
    draw = np.random.default_rng(increment)
    session_N = draw.integers(1, 30, num_events).astype(np.uint64) + np.uint64(15 * increment)
    ts_N = START_MS + increment * CUT_MS + np.sort(draw.integers(0, CUT_MS, num_events))
    number_N = draw.zipf(1.5, num_events) % num_items
    order_N = np.lexsort((ts_N, session_N))
    kind_N = np.zeros(num_events, dtype=np.int16)
    log = EventLog(session_N[order_N], ts_N[order_N], number_N[order_N], kind_N)
    contexts = build_contexts(log, session_N, ts_N, session_N, 10)
    return Counted(number_N, ts_N, session_N, session_N, np.ones(num_events, dtype=np.float32), contexts)


def only(rows, keep_N):
    """These rows; their contexts stay what they are."""
    names = ("number_N", "ts_N", "session_N", "owner_N", "weight_N")
    taken = {name: getattr(rows, name)[keep_N] for name in names}
    return Counted(**taken, contexts=rows.contexts.take(np.flatnonzero(keep_N)))


def encode(contexts, width=6):
    """In place of a model: the sum of vectors of the items, newer ones longer; zeros for contexts without any."""
    vector_QD = np.zeros((len(contexts), width), dtype=np.float32)
    for query, (start, stop) in enumerate(pairwise(contexts.offset_R.tolist())):
        for age, item in enumerate(contexts.item_T[start:stop][::-1].tolist()):
            vector_QD[query] += np.random.default_rng(item + 2).normal(size=width).astype(np.float32) / (1 + age)
    return vector_QD


def apply(expert, *parts, increment=0):
    """As ``train/increment.py`` does, with one part a rank; deltas travel as bytes."""
    deltas = [load_arrays(dump_arrays(expert.reduce(part))) for part in parts]
    expert.apply(deltas, START_MS + (increment + 1) * CUT_MS)
    if isinstance(expert, Encoding):
        expert.encoded(encode(expert.to_encode()))
    return expert


def taught(config, increments=4):
    expert = build_expert(config)
    for increment in range(increments):
        apply(expert, counted(increment), increment=increment)
    return expert


def asked(increment=4, num_items=NUM_ITEMS):
    return counted(increment, num_items).contexts


def dense(vote, num_queries, num_columns):
    """The vote as (Q, E); rows of zeros abstain."""
    p_QE = np.zeros((num_queries, num_columns), dtype=np.float32)
    if isinstance(vote, Shared):
        p_QE[:] = vote.p_E
    elif isinstance(vote, Sparse):
        p_QE[np.repeat(np.arange(num_queries), np.diff(vote.offset_R)), vote.column_T] = vote.p_T
    return p_QE


def answers(expert, contexts, eligible):
    return dense(expert.probabilities(contexts, encode(contexts), eligible), len(contexts), len(eligible))


@pytest.fixture(params=CONFIGS, ids=lambda config: config.name)
def config(request):
    return request.param


def test_votes_are_probabilities_over_the_eligible_or_nothing(config):
    expert, contexts = taught(config), asked()
    for number_E in (np.arange(NUM_ITEMS), np.arange(0, NUM_ITEMS, 3), np.array([5]), np.array([NUM_ITEMS + 50])):
        vote = expert.probabilities(contexts, encode(contexts), Eligible(number_E))
        if isinstance(vote, Sparse):
            assert len(vote.offset_R) == len(contexts) + 1
            row_T = np.repeat(np.arange(len(contexts)), np.diff(vote.offset_R))
            assert len(np.unique(row_T * 10**6 + vote.column_T)) == len(row_T)
            assert vote.p_T.dtype == np.float32
            assert (vote.p_T > 0).all()
        p_QE = dense(vote, len(contexts), len(number_E)).astype(np.float64)
        total_Q = p_QE.sum(axis=1)
        assert np.all((p_QE >= 0) & np.isfinite(p_QE))
        np.testing.assert_allclose(total_Q[total_Q > 0], 1.0, rtol=1e-5)
        assert (total_Q > 0).any() == (number_E[0] < NUM_ITEMS)


def test_one_that_has_counted_nothing_abstains_but_for_the_context(config):
    eligible = Eligible(np.arange(NUM_ITEMS))
    p_QE = answers(build_expert(config), asked(), eligible)
    assert (p_QE.sum() > 0) == isinstance(config, OwnItemsConfig)


def test_unknown_items_and_empty_contexts_are_no_error(config):
    expert, contexts = taught(config), asked(num_items=10**6)
    p_QE = answers(expert, contexts, Eligible(np.arange(NUM_ITEMS)))
    empty_Q = contexts.length_Q == 0
    assert empty_Q.any()
    if not isinstance(config, PopularConfig):
        assert not p_QE[empty_Q].any()


def test_a_query_is_answered_alike_alone_and_among_others(config):
    expert, contexts, eligible = taught(config), asked(), Eligible(np.arange(NUM_ITEMS))
    together = answers(expert, contexts, eligible)
    alone = [answers(expert, contexts.take(np.array([q])), eligible)[0] for q in range(len(contexts))]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_state_comes_back_to_the_byte_and_goes_on_so(config):
    expert, eligible = taught(config), Eligible(np.arange(NUM_ITEMS))
    states = {name: load_arrays(dump_arrays(state)) for name, state in save_experts([expert]).items()}
    [again] = load_experts(read_configs([config.model_dump(mode="json")]), states)
    for increment in range(4, 7):
        for each in (expert, again):
            apply(each, counted(increment), increment=increment)
        assert dump_arrays(expert.state()) == dump_arrays(again.state())
        np.testing.assert_array_equal(answers(expert, asked(), eligible), answers(again, asked(), eligible))
        assert expert.size_bytes == again.size_bytes


def test_the_same_rows_give_the_same_bytes(config):
    assert dump_arrays(taught(config).state()) == dump_arrays(taught(config).state())


def test_two_ranks_count_what_one_counts(config):
    whole, split, other = (build_expert(config) for _ in range(3))
    for increment in range(4):
        rows = counted(increment)
        apply(whole, rows, increment=increment)
        halves = [only(rows, rows.session_N % 2 == rank) for rank in (0, 1)]
        apply(split, *halves, increment=increment)
        apply(other, *halves, increment=increment)
    assert dump_arrays(split.state()) == dump_arrays(other.state())
    for name, array in whole.state().items():  # sums of floats differ in their last bits
        np.testing.assert_allclose(array, split.state()[name], rtol=1e-9, err_msg=name)


def test_an_increment_without_rows_changes_nothing(config):
    expert = taught(config)
    before = dump_arrays(expert.state())
    nothing = only(counted(5), np.zeros(120, dtype=bool))
    apply(expert, nothing, nothing, increment=5)
    assert dump_arrays(expert.state()) == before


def test_bytes_stay_bounded(config):
    expert, sizes = build_expert(config), []
    for increment in range(30):
        apply(expert, counted(increment), increment=increment)
        sizes.append(expert.size_bytes)
    assert max(sizes[15:]) <= 1.3 * max(sizes[:15])
    assert max(sizes) < 60_000


def test_the_catalogue_may_grow_midway(config):
    expert, grown = taught(config), NUM_ITEMS + 500
    apply(expert, counted(4, num_items=grown), increment=4)
    p_QE = answers(expert, asked(5, num_items=grown), Eligible(np.arange(grown)))
    assert p_QE[:, NUM_ITEMS:].any()


def test_no_expert_counts_a_session_for_its_own_query(config):
    if isinstance(config, PopularConfig | OwnItemsConfig):
        pytest.skip("one vector for all queries; a function of the context, which counts nothing")
    expert, eligible = taught(config), Eligible(np.arange(NUM_ITEMS + 1))
    unique, session = NUM_ITEMS, 9999  # an item that only the asking session has met, beside two that all know
    rows = session_rows(session, [0, unique, 1], increment=4)
    apply(expert, rows, increment=4)
    asks = context_of(session, [0, unique, 1], rows)
    own = answers(expert, asks, eligible)
    unknown = answers(expert, replace(asks, session_Q=np.zeros(1, dtype=np.uint64)), eligible)
    popularity = 0.002 if isinstance(config, CovisitConfig) else 0.0  # which is shared, and keeps every session
    assert own[0, unique] <= popularity
    assert unknown[0, unique] > 1.3 * own[0, unique]
    assert own.sum() == pytest.approx(1.0)


def session_rows(session, numbers, increment):
    """One session's rows, a minute apart."""
    size = len(numbers)
    session_N = np.full(size, session, dtype=np.uint64)
    ts_N = START_MS + increment * CUT_MS + 60_000 * np.arange(size)
    log = EventLog(session_N, ts_N, np.array(numbers), np.zeros(size, dtype=np.int16))
    contexts = build_contexts(log, session_N, ts_N, session_N, 10)
    return Counted(np.array(numbers), ts_N, session_N, session_N, np.ones(size, dtype=np.float32), contexts)


def context_of(session, numbers, rows):
    """What the session asks after these rows."""
    log = EventLog(rows.session_N, rows.ts_N, np.array(numbers), np.zeros(len(numbers), dtype=np.int16))
    session_Q = np.array([session], dtype=np.uint64)
    return build_contexts(log, session_Q, rows.ts_N[-1:] + 1, session_Q, 10)
