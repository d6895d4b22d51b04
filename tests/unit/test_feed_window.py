"""Whose turn it is, how far back a window reaches, and what earlier turns have trained: by hand."""

from dataclasses import replace

import numpy as np
import pytest

from headrace.config.feed import EveryoneConfig, PitConfig, SampleConfig
from headrace.config.load import load_recipe
from headrace.errors import ConfigError
from headrace.feed.window import Reach, picked_before_N, picked_N
from headrace.records import KEY_GROUPS, Cut, Window, hash64_array

HOUR_MS = 3_600_000
NOBODY = np.zeros(10_000, dtype=np.uint64)
USERS = hash64_array(np.arange(10_000), "user")


def reached(config, first_ms):
    """The windows of cuts whose newest shards begin at these times; ``config`` may change from cut to cut."""
    reach, made = Reach(), []
    configs = config if isinstance(config, list) else [config] * len(first_ms)
    for number, (one, begin_ms) in enumerate(zip(configs, first_ms, strict=True)):
        window = reach.window(one, number, begin_ms)
        reach.add(Cut(number, (), 0, 0, 0, 0, 0, number, window=window), begin_ms)
        made.append(window)
    return made


def firsts(windows):
    return [window and window.first for window in windows]


def test_a_window_reaches_the_cuts_that_may_hold_rows_of_its_span():
    hours = [hour * HOUR_MS for hour in range(8)]
    windows = reached(EveryoneConfig(window_s=3 * 3600), hours)
    assert [window.since_ms for window in windows] == [(hour - 3) * HOUR_MS for hour in range(8)]
    # cut 3 begins as the window of cut 6 does
    assert firsts(windows) == [0, 0, 0, 0, 1, 2, 3, 4]
    halves = reached(EveryoneConfig(window_s=3 * 3600 - 1800), hours)
    assert firsts(halves) == [0, 0, 0, 0, 1, 2, 3, 4], "a cut that begins before the window may reach into it"


def test_a_window_reaches_a_whole_rotation_even_where_that_is_longer():
    windows = reached(PitConfig(buckets=4, window_s=60), [hour * HOUR_MS for hour in range(7)])
    assert firsts(windows) == [0, 0, 0, 0, 1, 2, 3]


def test_a_pause_in_the_stream_leaves_the_window_its_last_cut_and_no_other():
    windows = reached(EveryoneConfig(window_s=3600), [0, HOUR_MS, 50 * HOUR_MS, 51 * HOUR_MS])
    assert firsts(windows) == [0, 0, 1, 2]


def test_late_shards_move_no_window_back():
    windows = reached(EveryoneConfig(window_s=3600), [0, 5 * HOUR_MS, HOUR_MS, 6 * HOUR_MS])
    assert [window.since_ms // HOUR_MS for window in windows] == [-1, 4, 4, 5]
    assert firsts(windows) == [0, 0, 0, 1], "cut 1 still goes on while the late one comes"


def test_another_policy_begins_anew_and_none_reaches_nothing():
    pit, wider = PitConfig(buckets=2), PitConfig(buckets=3)
    windows = reached([pit, pit, wider, wider, None, wider, wider], [0] * 7)
    assert firsts(windows) == [0, 0, 2, 2, None, 5, 5]


def test_users_take_turns_and_everyone_has_one():
    windows = reached(PitConfig(buckets=10), [0] * 21)
    turns = [picked_N(window, USERS, NOBODY) for window in windows]
    assert turns[0].all(), "the warm-up trains everyone"
    assert (np.sum(turns[1:11], axis=0) == 1).all()
    np.testing.assert_array_equal(turns[1], turns[11])
    assert all(900 < turn.sum() < 1100 for turn in turns[1:])


def test_every_turn_has_users_of_every_rank():
    for window in reached(PitConfig(buckets=10), [0] * 11)[1:]:
        groups = (USERS[picked_N(window, USERS, NOBODY)] % np.uint64(KEY_GROUPS)).astype(int)
        assert np.bincount(groups % 2).min() > 400


def test_who_has_no_user_takes_turns_by_session():
    window = reached(PitConfig(buckets=10), [0, 0])[1]
    np.testing.assert_array_equal(picked_N(window, NOBODY, USERS), picked_N(window, USERS, NOBODY))
    np.testing.assert_array_equal(picked_N(window, USERS, USERS[::-1]), picked_N(window, USERS, NOBODY))


def test_a_sample_is_drawn_anew_for_every_increment():
    sessions = hash64_array(np.arange(10_000), "session")
    one, two = (picked_N(window, USERS, sessions) for window in reached(SampleConfig(share=0.1), [0] * 3)[1:])
    assert 900 < one.sum() < 1100
    assert 50 < (one & two).sum() < 150
    by_user = reached(SampleConfig(share=0.1, of="user"), [0, 0])[1]
    np.testing.assert_array_equal(picked_N(by_user, USERS, sessions), picked_N(by_user, USERS, NOBODY))


def test_a_row_is_new_to_the_model_until_a_turn_that_was_not_rejected():
    window = Window("pit", 7, 1, 0, 3600, buckets=3)
    mine = USERS[picked_N(window, USERS, NOBODY)][:6]
    taken_by = np.array([1, 2, 4, 5, 6, 3])
    none = np.zeros(6, dtype=np.uint64)

    def before(*rejected):
        return picked_before_N(window, mine, none, taken_by, rejected).tolist()

    assert before() == [True, True, True, False, False, True], "the turns were 1 and 4"
    assert before(4) == [True, False, False, False, False, False]
    everyone = replace(window, kind="all", buckets=1)
    assert picked_before_N(everyone, mine, none, taken_by, (6,)).tolist() == [True, True, True, True, False, True]


def test_a_sample_of_sessions_needs_contexts_that_are_sessions():
    with pytest.raises(ConfigError, match=r'set feed.window.of = "user"'):
        load_recipe([], ['feed.window={kind="sample"}', "inputs.context=user"])
    assert load_recipe([], ['feed.window={kind="sample",of="user"}', "inputs.context=user"]).feed.window is not None
