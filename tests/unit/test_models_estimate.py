import numpy as np

from headrace.models.estimate import estimate

ROWS = np.array([[4.0, 0.0], [4.0, 2.0], [0.0, 0.0], [0.0, 2.0]], dtype=np.float32)
"""The first attribute moves the first column, the second the second."""
CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32)
SURE = np.full(4, 1e6)


def test_without_attributes_it_is_the_weighted_mean():
    none_DA, none_RA = np.zeros((4, 0), dtype=np.int32), np.zeros((3, 0), dtype=np.int32)
    found = estimate(ROWS, np.array([1.0, 1.0, 0.0, 0.0]), none_DA, none_RA)
    assert found.dtype == np.float32
    assert found.tolist() == [[4.0, 1.0]] * 3


def test_effects_of_attributes_add_up_and_unknown_ones_say_nothing():
    wanted = np.array([[0, 1], [1, 0], [0, -1], [-1, -1], [7, 1]], dtype=np.int32)
    found = estimate(ROWS, SURE, CODES, wanted)
    np.testing.assert_allclose(found, [[4, 2], [0, 0], [4, 1], [2, 1], [2, 2]], atol=1e-4)


def test_few_items_say_little():
    found = estimate(ROWS, np.full(4, 0.5), CODES[:, :1], np.array([[0]], dtype=np.int32))
    np.testing.assert_allclose(found, [[3.0, 1.0]])  # two halves of an item against one of nothing


def test_items_with_unknown_attributes_teach_the_mean_alone():
    codes = np.array([[-1], [-1], [1], [1]], dtype=np.int32)
    found = estimate(ROWS, SURE, codes, np.array([[0], [1]], dtype=np.int32))
    np.testing.assert_allclose(found, [[2, 1], [0, 1]], atol=1e-4)


def test_an_attribute_that_means_nothing_does_no_harm():
    draw = np.random.default_rng(1)
    code = draw.integers(20, size=2000)
    noise = draw.integers(3, size=2000)
    centre = draw.normal(size=(20, 8))
    rows = (centre[code] + 0.5 * draw.normal(size=(2000, 8))).astype(np.float32)
    codes = np.stack([noise, code], axis=1).astype(np.int32)
    wanted = np.stack([np.zeros(20, dtype=np.int64), np.arange(20)], axis=1).astype(np.int32)
    found = estimate(rows, np.ones(2000), codes, wanted)
    assert np.abs(found - centre).mean() < 0.07
