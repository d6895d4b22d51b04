"""Hand-computed tables of the three counters; what all experts promise is in contract/."""

import numpy as np
import pytest
from serving_kit import WATERMARK_MS

from headrace.catalogue.eligible import Eligible
from headrace.config.answers import CovisitConfig, SimilarSessionsConfig
from headrace.experts.base import Counted
from headrace.experts.covisit import Covisit
from headrace.experts.own_items import OwnItems
from headrace.experts.similar_sessions import SimilarSessions
from headrace.inputs.contexts import EventLog, build_contexts, contexts_of

ALL = Eligible(np.arange(20))
ALMOST_NO_PRIOR = 1e-12


def rows_of(sessions, start_ms=WATERMARK_MS, step_ms=1000):
    """Sessions as name to items, one after the other in time."""
    session_N = np.array([name for name, items in sessions for _ in items], dtype=np.uint64)
    number_N = np.array([item for _, items in sessions for item in items], dtype=np.int64)
    size = len(number_N)
    ts_N = start_ms + step_ms * np.arange(size)
    order = np.lexsort((ts_N, session_N))
    log = EventLog(session_N[order], ts_N[order], number_N[order], np.zeros(size, dtype=np.int16))
    contexts = build_contexts(log, session_N, ts_N, session_N, 50)
    return Counted(number_N, ts_N, session_N, session_N, np.ones(size, dtype=np.float32), contexts)


def teach(expert, *sessions, at_ms=WATERMARK_MS):
    rows = rows_of(sessions, at_ms)
    expert.apply([expert.reduce(rows)], int(rows.ts_N.max()))
    return expert


def answer(expert, items, session=0, at_ms=WATERMARK_MS + 10**6):
    made = expert.probabilities(contexts_of([items], at_ms, 50, session), None, ALL)
    return {int(c): float(p) for c, p in zip(made.column_T, made.p_T, strict=True) if p > 1e-9}


def test_own_items_fade_by_steps_and_add_up():
    own = OwnItems("own_items", 1.0)
    assert answer(own, [3, 5, 3]) == pytest.approx({3: 1.25 / 1.75, 5: 0.5 / 1.75})
    assert answer(own, []) == {}
    assert answer(own, [99]) == {}


def covisit(**settings):
    return Covisit(CovisitConfig(shrink=settings.pop("shrink", ALMOST_NO_PRIOR), **settings))


def test_covisits_weigh_one_over_the_distance_both_ways():
    expert = teach(covisit(), (1, [0, 1, 2]))
    assert answer(expert, [0]) == pytest.approx({1: 1 / 1.5, 2: 0.5 / 1.5})
    assert answer(expert, [2]) == pytest.approx({1: 1 / 1.5, 0: 0.5 / 1.5})


def test_older_items_of_the_context_weigh_less():
    expert = teach(covisit(), (1, [0, 10]), (2, [1, 11]))
    assert answer(expert, [0, 1]) == pytest.approx({11: 2 / 3, 10: 1 / 3})


def test_an_item_met_twice_in_a_row_is_its_own_neighbour():
    expert = teach(covisit(), (1, [0, 0]), (2, [0, 5]))
    assert answer(expert, [0]) == pytest.approx({0: 2 / 3, 5: 1 / 3})


def test_pairs_fade_with_event_time_and_the_faint_are_forgotten():
    expert = teach(covisit(half_life_s=60.0), (1, [0, 1]))
    teach(expert, (2, [0, 2]), at_ms=WATERMARK_MS + 60_000)
    votes = answer(expert, [0])
    assert votes[2] / votes[1] == pytest.approx(2.0)
    teach(expert, (3, [7, 8]), at_ms=WATERMARK_MS + 600_000)
    assert expert.state()["neighbour"].tolist() == [8, 7]


def test_few_neighbours_leave_the_word_to_popularity():
    expert = teach(covisit(shrink=1.0), (1, [0, 1]), (2, [9, 9, 9]))
    counts = {0: 1, 1: 1, 9: 3}
    votes = answer(expert, [0])  # one neighbour of weight 1 against one pseudo-event
    assert votes == pytest.approx({n: (0.5 * (n == 1)) + 0.5 * counts[n] / 5 for n in counts})


def test_a_row_is_cut_back_to_its_best_when_it_has_doubled():
    expert = covisit(max_per_item=2, window=1)
    for neighbour in (1, 1, 2, 2, 3, 4):
        teach(expert, (1, [0, neighbour]))
    assert set(answer(expert, [0])) == {1, 2, 3, 4}
    teach(expert, (1, [0, 5]))
    assert set(answer(expert, [0])) == {1, 2}


def similar(**settings):
    return SimilarSessions(SimilarSessionsConfig(**settings))


def test_sessions_that_share_more_say_more():
    expert = teach(similar(), (1, [0, 1, 10]), (2, [0, 2, 11]), (3, [5, 6, 12]))
    votes = answer(expert, [0, 1])
    assert votes[10] > votes[11]
    assert 12 not in votes


def test_the_newest_sessions_of_an_item_are_looked_at():
    expert = similar(sessions_per_item=1)
    teach(expert, (1, [0, 10]), (2, [0, 11]))
    assert 10 not in answer(expert, [0])
    assert 11 in answer(expert, [0])


def test_only_the_nearest_neighbours_vote():
    expert = teach(similar(neighbours=1), (1, [0, 1, 10]), (2, [0, 11, 12]))
    assert set(answer(expert, [1, 0])) == {0, 1, 10}


def test_a_session_goes_on_over_increments():
    expert = teach(similar(), (1, [0, 1]), (2, [5, 6]))
    teach(expert, (1, [2]), at_ms=WATERMARK_MS + 60_000)
    state = expert.state()
    assert state["session"].tolist() == [2, 1]
    assert state["item"].tolist() == [5, 6, 0, 1, 2]
    assert 2 in answer(expert, [0])


def test_a_session_keeps_each_item_once_at_its_last_visit():
    expert = teach(similar(), (1, [0, 1, 0, 2, 2]))
    assert expert.state()["item"].tolist() == [1, 0, 2]


def test_long_sessions_keep_their_newest_items():
    expert = teach(similar(), (1, list(range(150))))
    assert expert.state()["item"].tolist() == list(range(50, 150))


def test_the_sessions_that_went_quiet_first_are_forgotten():
    expert = similar(max_events=5)
    teach(expert, (1, [0, 1]), (2, [2, 3]), (3, [4, 5]))
    assert expert.state()["session"].tolist() == [2, 3]


def test_a_session_is_no_neighbour_of_its_own_query():
    expert = teach(similar(), (7, [0, 10]), (8, [0, 11]))
    assert 10 in answer(expert, [0])
    assert 10 not in answer(expert, [0], session=7)


def test_a_first_item_alone_is_remembered_but_says_nothing():
    expert = teach(similar(), (1, [0]))
    assert answer(expert, [0]) == {}
    teach(expert, (1, [1]), at_ms=WATERMARK_MS + 60_000)
    assert 1 in answer(expert, [0])


def test_a_covisit_that_only_the_asking_session_made_is_taken_out():
    expert = teach(covisit(), (7, [0, 10, 1]), (8, [0, 11]))
    rows = rows_of([(7, [0, 10, 1])])
    ends_ms = int(rows.ts_N[-1])
    log = EventLog(rows.session_N, rows.ts_N, rows.number_N, np.zeros(3, dtype=np.int16))
    own = np.array([7], dtype=np.uint64)
    asks = build_contexts(log, own, np.array([ends_ms + 1]), own, 50)
    made = expert.probabilities(asks, None, ALL)
    # 1 and 10 have no other neighbours, so popularity speaks for them; 11 is what session 8 says of 0, third in rank
    popularity, asked = {0: 2 / 5, 1: 1 / 5, 10: 1 / 5, 11: 1 / 5}, 1 + 1 / 2 + 1 / 3
    want = {n: (1.5 * share + (n == 11) / 3) / asked for n, share in popularity.items()}
    assert dict(zip(made.column_T.tolist(), made.p_T.tolist(), strict=True)) == pytest.approx(want, abs=1e-6)
