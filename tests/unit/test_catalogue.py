import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.catalogue import ids
from headrace.catalogue.eligible import Eligible
from headrace.catalogue.ids import NEVER, Catalogue
from headrace.catalogue.slots import Slots
from headrace.config.feed import CatalogueConfig
from headrace.store.arrays import dump_arrays, load_arrays

_IDS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)
_NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=20)


def _array(raw):
    return np.array(raw, dtype=object if raw and isinstance(raw[0], str) else np.int64)


def _stored(catalogue):
    """Its state after a way through the store."""
    return {name: load_arrays(dump_arrays(part)) for name, part in catalogue.state().items()}


def _observed(*events):
    catalogue = Catalogue()
    catalogue.admit(np.arange(5) * 100)
    for number, ts in events:
        catalogue.observe(np.array([number]), np.array([ts]))
    catalogue.settle(0, CatalogueConfig())
    return catalogue


@given(st.lists(_IDS, max_size=4))
def test_numbers_follow_first_appearance_and_never_change(batches):
    catalogue, expected = Catalogue(), []
    for raw in batches:
        before = len(expected)
        expected.extend(value for value in dict.fromkeys(raw) if value not in expected)
        assert catalogue.admit(_array(raw)) == len(expected) - before
        assert catalogue.raw_ids(np.arange(len(catalogue))) == expected
    assert catalogue.numbers(np.array(expected, dtype=np.int64)).tolist() == list(range(len(expected)))
    assert len(catalogue.first_ts_I) == len(catalogue.last_ts_I) == len(catalogue.count_I) == len(catalogue)


def test_an_unknown_id_has_no_number():
    catalogue = Catalogue()
    assert catalogue.numbers(np.array([5])).tolist() == [-1]
    catalogue.admit(np.array([5]))
    assert catalogue.numbers(np.array([6, 5])).tolist() == [-1, 0]


@given(st.one_of(_IDS, _NAMES), st.data())
def test_a_catalogue_comes_back_with_the_same_bytes(raw, data):
    catalogue = Catalogue()
    catalogue.admit(_array(raw))
    for number in data.draw(st.lists(st.integers(0, max(len(catalogue) - 1, 0)), max_size=9)) if raw else []:
        catalogue.observe(np.array([number]), np.array([data.draw(st.integers(0, 1000))]))
        catalogue.settle(1000, CatalogueConfig(max_items=data.draw(st.integers(1, 5))))
    again = Catalogue.from_state(_stored(catalogue))
    assert again.raw_ids(np.arange(len(again))) == catalogue.raw_ids(np.arange(len(catalogue)))
    assert {name: dump_arrays(part) for name, part in again.state().items()} == {
        name: dump_arrays(part) for name, part in catalogue.state().items()
    }
    assert again.admit(_array(raw)) == 0


def test_full_chunks_of_ids_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(ids, "_CHUNK", 4)
    catalogue = Catalogue()
    catalogue.admit(np.arange(6))
    before = {name: dump_arrays(part) for name, part in catalogue.state().items()}
    catalogue.admit(np.arange(20))
    after = {name: dump_arrays(part) for name, part in catalogue.state().items()}
    assert after["ids/00000"] == before["ids/00000"]
    assert after["ids/00001"] != before["ids/00001"]
    assert len(after) == 2 + 5
    assert Catalogue.from_state(_stored(catalogue)).numbers(np.arange(20)).tolist() == list(range(20))


def test_events_are_noted():
    catalogue = _observed((1, 50), (1, 30), (1, 40), (3, 60))
    assert catalogue.first_ts_I.tolist() == [NEVER, 30, NEVER, 60, NEVER]
    assert catalogue.last_ts_I.tolist() == [NEVER, 50, NEVER, 60, NEVER]
    assert catalogue.count_I.tolist() == [0, 3, 0, 1, 0]


@given(st.permutations([(0, 5), (0, 9), (1, 2), (2, 7), (2, 7), (0, -3)]), st.integers(0, 6))
def test_the_order_of_events_does_not_matter(events, split):
    one, two = _observed(*events), _observed()
    for part in (events[:split], events[split:]):
        two.observe(np.array([n for n, _ in part], dtype=np.int64), np.array([ts for _, ts in part], dtype=np.int64))
    for name in ("first_ts_I", "last_ts_I", "count_I"):
        assert getattr(one, name).tolist() == getattr(two, name).tolist()


def test_items_are_eligible_while_they_live():
    catalogue = _observed((0, 10_000), (1, 20_000), (3, 30_000))
    assert catalogue.eligible(30_000, None).number_E.tolist() == [0, 1, 3]
    assert catalogue.eligible(30_000, 10).number_E.tolist() == [1, 3]
    assert catalogue.eligible(30_000, 9).number_E.tolist() == [3]
    assert catalogue.eligible(90_000, 1).number_E.tolist() == []


def test_an_item_that_was_numbered_but_never_trained_is_not_eligible():
    assert _observed().eligible(0, None).number_E.tolist() == []


@given(st.sets(st.integers(0, 30)), st.lists(st.integers(-1, 35), max_size=12))
def test_columns(eligible, asked):
    ordered = sorted(eligible)
    columns = Eligible(np.array(ordered, dtype=np.int64)).column_of(np.array(asked, dtype=np.int64))
    assert columns.tolist() == [ordered.index(number) if number in eligible else -1 for number in asked]
    assert columns.dtype == np.int64


def test_rows_are_the_numbers_where_nothing_limits_them():
    catalogue = _observed((3, 50))
    assert catalogue.slot_I.tolist() == [0, 1, 2, 3, 4]
    catalogue.admit(np.array([7, 8]))
    assert catalogue.slot_I.tolist() == [0, 1, 2, 3, 4, -1, -1]
    catalogue.settle(99, CatalogueConfig())
    assert catalogue.number_V.tolist() == catalogue.slot_I.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert catalogue.num_slots == 7


@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), max_size=6))
def test_an_item_keeps_its_row_while_it_is_wanted_and_new_ones_take_the_lowest_free_ones(rounds):
    slots = Slots.empty().grown(8)
    for wanted in rounds:
        before, slots = slots, slots.assigned(np.array(wanted))
        assert (slots.slot_I >= 0).tolist() == wanted
        assert all(slots.number_V[slot] == number for number, slot in enumerate(slots.slot_I) if slot >= 0)
        kept = (before.slot_I >= 0) & (slots.slot_I >= 0)
        assert slots.slot_I[kept].tolist() == before.slot_I[kept].tolist()
        fresh = slots.slot_I[(before.slot_I < 0) & (slots.slot_I >= 0)].tolist()
        assert fresh == sorted(fresh)
        freed = np.flatnonzero(slots.number_V < 0)
        assert not fresh or max(fresh) >= len(before.number_V) or all(slot > max(fresh) for slot in freed)


def test_an_item_waits_for_enough_events():
    catalogue = _observed((1, 10), (1, 20), (2, 30))
    catalogue.settle(30, CatalogueConfig(min_events=2))
    assert catalogue.slot_I.tolist() == [-1, 1, -1, -1, -1]
    assert catalogue.eligible(30, None).number_E.tolist() == [1]


def test_an_idle_item_loses_its_row_to_the_next_and_comes_back_with_another():
    catalogue = _observed((0, 10_000), (1, 20_000))
    rules = CatalogueConfig(min_events=1, forget_s=5)
    catalogue.settle(20_000, rules)
    assert catalogue.number_V.tolist() == [-1, 1, -1, -1, -1]
    catalogue.observe(np.array([4]), np.array([21_000]))
    catalogue.settle(21_000, rules)
    assert catalogue.number_V.tolist() == [4, 1, -1, -1, -1]
    catalogue.observe(np.array([0]), np.array([22_000]))
    catalogue.settle(22_000, rules)
    assert catalogue.number_V.tolist() == [4, 1, 0, -1, -1]
    assert catalogue.eligible(22_000, None).number_E.tolist() == [0, 1, 4]
    assert catalogue.count_I.tolist() == [2, 1, 0, 0, 1]


def test_beyond_the_limit_those_idle_for_longest_lose_their_rows():
    catalogue = _observed((0, 50), (1, 40), (2, 30), (3, 40), (4, 10))
    catalogue.settle(50, CatalogueConfig(max_items=3))
    assert catalogue.slot_I.tolist() == [0, 1, -1, 3, -1]
    catalogue.observe(np.array([4]), np.array([40]))
    catalogue.settle(50, CatalogueConfig(max_items=3))
    assert catalogue.slot_I.tolist() == [0, 1, -1, 3, -1], "of equals, those that hold a row keep it"
    catalogue.observe(np.array([4]), np.array([41]))
    catalogue.settle(50, CatalogueConfig(max_items=3))
    assert catalogue.slot_I.tolist() == [0, 1, -1, -1, 2]


def test_who_holds_an_older_map_keeps_what_it_said():
    catalogue = _observed((0, 50))
    before = catalogue.slot_I
    catalogue.admit(np.array([9]))
    catalogue.settle(50, CatalogueConfig(max_items=1))
    assert before.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("raw", [np.array(["a", "b"], dtype=object), np.array(["a", "b"])])
def test_text_ids_are_plain_text(raw):
    catalogue = Catalogue()
    catalogue.admit(raw)
    assert all(type(value) is str for value in catalogue.raw_ids(np.array([0, 1])))
    assert catalogue.numbers(np.array(["b"], dtype=object)).tolist() == [1]
