"""Herding by hand and by trying all, and that the buffer keeps whom it puts first."""

import numpy as np
from step_kit import make_examples

from headrace.config.methods import FrequencyConfig
from headrace.replay.buffer import Buffer
from headrace.replay.herding import MOST, herding_order
from headrace.replay.packed import pack
from headrace.replay.policy import build_policy


def unit(degrees: list[float]) -> np.ndarray:
    angle = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_by_hand():
    # the mean lies near 19.7 degrees: 19 comes first, and then 40, since 29.5 is nearer to it than 9.5
    assert herding_order(np.zeros(3, dtype=np.int64), unit([0.0, 19.0, 40.0])).tolist() == [2.0, 0.0, 1.0]
    # items do not see one another
    both = herding_order(np.array([7, 5, 7, 5, 7]), unit([0.0, 1.0, 19.0, 80.0, 40.0]))
    assert both[[0, 2, 4]].tolist() == [2.0, 0.0, 1.0]
    assert sorted(both[[1, 3]].tolist()) == [0.0, 1.0]
    assert herding_order(np.zeros(0, dtype=np.int64), unit([])).shape == (0,)


def test_each_place_is_the_best_that_could_be_added():
    draw = np.random.default_rng(3)
    direction = draw.normal(size=(40, 5))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    order = np.argsort(herding_order(np.zeros(40, dtype=np.int64), direction.astype(np.float32)))
    mean = direction.mean(axis=0)
    for place in range(1, 20):
        taken, rest = order[:place], order[place:]
        away = [np.linalg.norm(mean - direction[[*taken, one]].mean(axis=0)) for one in rest]
        assert away[0] <= min(away) + 1e-6


def test_later_ones_than_can_be_told_apart_come_together():
    order = herding_order(np.zeros(MOST + 5, dtype=np.int64), unit(np.linspace(0, 90, MOST + 5).tolist()))
    assert sorted(order.tolist()) == [*range(MOST), *[MOST] * 5]


def test_the_buffer_keeps_the_first_places_across_cuts():
    buffer = Buffer(build_policy(FrequencyConfig(within="herding"), 1), 12_000, 4_000, 1)
    for cut in range(3):
        made = make_examples(cut, 100)
        made.target_T[:] = 1
        made.row_T[:] = np.arange(100) + 100 * cut
        order_S = np.arange(100, dtype=np.float32)[::-1].copy()
        buffer.stage(pack(made, np.zeros(100, dtype=np.uint8), cut, order_S), cut)
        buffer.admit(cut)
    kept = np.concatenate([segment.packed.records("example")[segment.alive_N] for segment in buffer._segments])
    assert 10 < len(kept) < 150
    worst = kept["order"].max()
    assert worst <= len(kept) / 3 + 1  # a third of each cut, its first places
    assert set(kept["cut"].tolist()) == {0, 1, 2}
