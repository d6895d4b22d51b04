import numpy as np
import pytest

from headrace.catalogue.eligible import Eligible
from headrace.experts.ragged import Columns, cells, highest, recent_items, spread, stable_order, vote
from headrace.inputs.contexts import contexts_of


def test_cells_sum_in_the_order_of_their_entries():
    row, column = np.array([1, 0, 1, 1]), np.array([2, 9, 2, 0])
    made = cells(row, column, np.array([0.5, 1.0, 0.25, 4.0]), 10)
    assert made.row_C.tolist() == [0, 1, 1]
    assert made.column_C.tolist() == [9, 0, 2]
    assert made.total_C.tolist() == [1.0, 4.0, 0.75]
    assert made.first_C.tolist() == [1, 3, 0]
    assert len(cells(row[:0], column[:0], np.zeros(0), 0).row_C) == 0


@pytest.mark.parametrize("number", [0, 1, 999, 5000])
@pytest.mark.parametrize("scale", [1, 2**14, 2**31, 2**55])
def test_equal_keys_stay_in_order_however_large_or_many(number, scale):
    key = np.random.default_rng(0).integers(0, 100, number) * scale
    np.testing.assert_array_equal(stable_order(key), np.argsort(key, kind="stable"))


def test_the_newest_distinct_items_come_newest_first():
    contexts = contexts_of([[3, 1, 3, 2, 1], [], [99, 5]], 1000, 10)
    recent = recent_items(contexts, 2, num_items=10)
    assert recent.query_T.tolist() == [0, 0, 2]
    assert recent.item_T.tolist() == [1, 2, 5]
    assert recent.rank_T.tolist() == [1, 2, 1]


def test_highest_prefers_the_later_of_equals():
    assert highest(np.array([1.0, 3.0, 2.0, 2.0, 2.0]), 3).tolist() == [1, 3, 4]
    assert highest(np.array([1.0, 1.0]), 5).tolist() == [0, 1]


def test_spread_says_whose_each_element_is():
    of, at = spread(np.array([10, 0, 5]), np.array([2, 0, 1]))
    assert of.tolist() == [0, 0, 2]
    assert at.tolist() == [10, 11, 5]


def test_a_vote_leaves_out_what_is_not_eligible_or_not_positive():
    query, column = np.array([0, 0, 0, 0, 2]), np.array([0, 1, 2, -1, -1])
    made = vote(query, column, np.array([1.0, 3.0, -1.0, 5.0, 9.0]), 3, 3)
    assert made.offset_R.tolist() == [0, 2, 2, 2]
    assert made.column_T.tolist() == [0, 1]
    assert made.p_T.tolist() == [0.25, 0.75]


def test_a_vote_is_the_same_from_a_dense_table_and_by_sorting():
    draw = np.random.default_rng(3)
    query, column, value = draw.integers(0, 20, 4000), draw.integers(-1, 30, 4000), draw.random(4000)
    dense, sorted_ = vote(query, column, value, 20, 30), vote(query, column, value, 20, 300_000)
    for made, other in zip(dense.__dict__.values(), sorted_.__dict__.values(), strict=True):
        np.testing.assert_array_equal(made, other)


def test_columns_follow_the_eligible_set():
    columns, number = Columns(), np.array([7, 4, 100, 5, 0])
    assert columns.of(number, Eligible(np.array([4, 7]))).tolist() == [1, 0, -1, -1, -1]
    assert columns.of(number, Eligible(np.array([0, 5, 7]))).tolist() == [2, -1, -1, 1, 0]
    assert columns.of(number, Eligible(np.zeros(0, dtype=np.int64))).tolist() == [-1] * 5
