import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.records import KEY_GROUPS, generator, hash64, hash64_array, kind_code

_WORDS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(st.characters(exclude_categories=["Cs"])))


# of splitmix64's own test vectors, seed 1234567: the state after one step is the seed plus the golden number
def test_the_mixer_is_splitmix64():
    assert hash64(1234567) == 6457827717110365317


def test_hashes_are_pinned_because_stores_and_ledgers_hold_them():
    assert hash64() == 0
    assert hash64("user") == 5840331643417430643
    assert hash64(1, "held out", 42) == 17918417323662495640
    assert kind_code("click") == 5809


def test_another_process_hashes_alike():
    program = "from headrace.records import hash64; print(hash64('a', 1, 'b'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONHASHSEED": "7"})
    assert int(done.stdout) == hash64("a", 1, "b")


@given(st.lists(_WORDS, max_size=4))
def test_a_hash_has_64_bits(parts):
    assert 0 <= hash64(*parts) < 2**64


def test_order_and_boundaries_matter():
    assert len({hash64("a", "b"), hash64("b", "a"), hash64("ab"), hash64("ab", ""), hash64("", "ab")}) == 5


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint64"])
@given(data=st.data())
def test_an_array_of_integers_is_hashed_as_its_members(dtype, data):
    bounds = np.iinfo(dtype)
    values = data.draw(st.lists(st.integers(int(bounds.min), int(bounds.max)), max_size=20))
    hashed = hash64_array(np.array(values, dtype=dtype), 5, "purpose")
    assert hashed.tolist() == [hash64(5, "purpose", value) for value in values]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
def test_an_array_of_text_is_hashed_as_its_members(values):
    hashed = hash64_array(np.array(values, dtype=object), "purpose")
    assert hashed.tolist() == [hash64("purpose", value) for value in values]
    assert hashed.dtype == np.uint64


def test_one_long_id_does_not_make_all_of_them_long():
    values = np.array(["short"] * 50_000 + ["x" * 100_000], dtype=object)  # 20 GB as numpy's own strings
    assert hash64_array(values)[0] == hash64("short")


def test_integers_and_their_text_differ():
    assert hash64(5) != hash64("5")
    assert hash64_array(np.array([5]))[0] != hash64_array(np.array(["5"], dtype=object))[0]


def test_key_groups_are_even():
    counts = np.bincount((hash64_array(np.arange(64_000)) % np.uint64(KEY_GROUPS)).astype(int), minlength=KEY_GROUPS)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_draws_depend_on_their_purpose_alone():
    assert generator(1, "shuffle", 3).integers(1 << 60) == generator(1, "shuffle", 3).integers(1 << 60)
    assert generator(1, "shuffle", 3).integers(1 << 60) != generator(1, "shuffle", 4).integers(1 << 60)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_kinds_fit_16_bits(kind):
    assert 0 <= kind_code(kind) <= np.iinfo(np.int16).max
