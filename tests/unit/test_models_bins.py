"""Bins: every row has places of its own, and few places are nobody's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.models.bins import join


@given(st.lists(st.integers(0, 30), max_size=80))
def test_rows_share_no_place_and_bins_hold_them(sizes):
    size_B = np.array(sizes, dtype=np.int64)
    bins = join(size_B)
    taken = [
        (of, place)
        for of, at, size in zip(bins.bin_B.tolist(), bins.at_B.tolist(), sizes, strict=True)
        for place in range(at, at + size)
    ]
    assert len(set(taken)) == len(taken)
    assert all(0 <= of < bins.number and 0 <= place < bins.width for of, place in taken)
    assert bins.places <= len(sizes) * max(1, *sizes, 1)
    assert bins.width <= 2 * max(1, *sizes, 1)


@given(st.lists(st.integers(1, 30), max_size=80), st.randoms())
def test_the_number_of_places_follows_from_the_sizes_in_any_order(sizes, draw):
    shuffled = draw.sample(sizes, len(sizes))
    assert join(np.array(shuffled, dtype=np.int64)).places == join(np.array(sizes, dtype=np.int64)).places


def test_the_largest_come_first_each_where_there_is_room():
    bins = join(np.array([1, 6, 2, 5, 4, 6]))
    assert (bins.number, bins.width) == (4, 6)
    assert bins.bin_B.tolist() == [2, 0, 3, 2, 3, 1]
    assert bins.at_B.tolist() == [0, 0, 0, 1, 2, 0]


@pytest.mark.parametrize("size", [1, 3, 110])
def test_equal_rows_stay_apart(size):
    bins = join(np.full(32, size))
    assert (bins.number, bins.width) == (32, size)
    assert bins.bin_B.tolist() == list(range(32))


def test_what_is_uneven_is_hardly_padded():
    size_B = np.minimum(3 + np.random.default_rng(0).geometric(0.4, 256), 25)
    assert size_B.sum() / join(size_B).places > 0.95
    assert size_B.sum() / (256 * size_B.max()) < 0.5
    bins = join(np.array([60, 20, 17, 3]))
    assert (bins.number, bins.width) == (1, 100)
