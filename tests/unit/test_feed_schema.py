"""What a shard must look like, in words, and what its rows become on the wire."""

import numpy as np
import pyarrow as pa
import pytest

from headrace.config.feed import ColumnsConfig
from headrace.errors import DataError
from headrace.feed.schema import check_schema, column_types, find_faults, normalise, rows_from_table, wire_schema
from headrace.records import KEY_GROUPS, hash64, kind_code

SHA = "ab" * 32


def events(**columns):
    default = {"item_id": [5, 6], "ts": [1000, 2000], "session_id": [1, 2]}
    return pa.table(default | columns)


def normalised(table, columns=None, start=0):
    return normalise(table, columns or ColumnsConfig(), 3, SHA, np.arange(start, start + table.num_rows))


def test_rows_have_the_wire_schema_and_known_hashes():
    wire = normalised(events(), start=10)
    assert wire.schema == wire_schema(pa.int64())
    rows = rows_from_table(wire)
    assert rows.shard_N.tolist() == [3, 3]
    assert rows.row_N.tolist() == [10, 11]
    assert rows.session_N.tolist() == [hash64("session", 1), hash64("session", 2)]
    assert rows.user_N.tolist() == [0, 0]
    assert rows.group_N.tolist() == [hash64("session", value) % KEY_GROUPS for value in (1, 2)]
    assert rows.event_N.tolist() == [hash64("row", int(SHA[:16], 16), row) for row in (10, 11)]
    assert rows.target_N.all()
    assert rows.weight_N.tolist() == [1.0, 1.0]


def test_rows_are_copies_that_pin_nothing():
    wire = normalised(events())
    rows = rows_from_table(wire)
    for name in ("shard", "row", "ts", "item", "event"):
        source = wire[name].chunk(0).to_numpy(zero_copy_only=False)
        assert not np.shares_memory(source, getattr(rows, f"{name}_N"))
        assert getattr(rows, f"{name}_N").flags.writeable


def test_the_key_group_is_the_users_where_there_is_one():
    columns = ColumnsConfig(user_id="user_id")
    rows = rows_from_table(normalised(events(user_id=[7, None]), columns))
    assert rows.user_N.tolist() == [hash64("user", 7), 0]
    assert rows.group_N.tolist() == [hash64("user", 7) % KEY_GROUPS, hash64("session", 2) % KEY_GROUPS]


def test_user_and_session_of_the_same_value_differ():
    rows = rows_from_table(normalised(events(user_id=[1, 2]), ColumnsConfig(user_id="user_id")))
    assert not set(rows.user_N.tolist()) & set(rows.session_N.tolist())


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("tz", [None, "UTC", "Europe/Berlin"])
def test_every_unit_and_zone_of_time_becomes_milliseconds(unit, tz):
    moments = pa.array([1_700_000_000, 1_700_000_001], pa.int64()).cast(pa.timestamp("s"))
    wire = normalised(events(ts=moments.cast(pa.timestamp(unit)).cast(pa.timestamp(unit, tz=tz))))
    ts_N = rows_from_table(wire).ts_N
    if tz != "Europe/Berlin":  # a cast from a zone-less time reads it as local
        assert ts_N.tolist() == [1_700_000_000_000, 1_700_000_001_000]
    assert np.diff(ts_N).tolist() == [1000]


def test_string_ids_stay_strings_and_hash_as_such():
    table = events(item_id=pa.array(["a", "b"]).dictionary_encode(), session_id=pa.array(["x", "y"], pa.large_string()))
    wire = normalised(table)
    assert wire.schema == wire_schema(pa.string())
    rows = rows_from_table(wire)
    assert rows.item_N.tolist() == ["a", "b"]
    assert rows.session_N.tolist() == [hash64("session", "x"), hash64("session", "y")]


def test_kinds_are_coded_and_only_target_kinds_are_targets():
    columns = ColumnsConfig(event="event", target_kinds=("buy",))
    rows = rows_from_table(normalised(events(event=["view", "buy"]), columns))
    assert rows.kind_N.tolist() == [kind_code("view"), kind_code("buy")]
    assert rows.target_N.tolist() == [False, True]


def test_event_ids_are_hashed_and_missing_ones_fall_back_to_the_row():
    rows = rows_from_table(normalised(events(event_id=["e1", None]), ColumnsConfig(event_id="event_id")))
    assert rows.event_N.tolist() == [hash64("event", "e1"), hash64("row", int(SHA[:16], 16), 1)]


def test_carried_columns_travel_as_they_came_even_under_our_own_names():
    columns = ColumnsConfig(position="position", request_id="absent", context=("row", "country", "empty"))
    table = events(
        position=pa.array([1, 2], pa.int8()), row=["x", "y"], country=pa.array(["de", None]).dictionary_encode(),
        empty=pa.nulls(2),
    )  # fmt: skip
    wire = normalised(table, columns)
    assert wire.schema.field("context.position").type == pa.int8()
    rows = rows_from_table(wire)
    assert set(rows.context) == {"position", "row", "country"}
    assert rows.context["row"].tolist() == ["x", "y"]
    assert rows.context["country"].tolist() == ["de", None]
    assert rows.row_N.tolist() == [0, 1]


def test_an_empty_table_is_fine():
    assert len(rows_from_table(normalised(events().slice(0, 0)))) == 0


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"item_id": pa.array([5, None])}, "no value in item_id: every row needs an item"),
        ({"item_id": pa.array(["a", None])}, "no value in item_id: every row needs an item"),
        ({"item_id": pa.array([1, 2**63], pa.uint64())}, "the item id in item_id exceeds 64 signed bits"),
        ({"ts": pa.array([5, None])}, "no value in ts: every row needs a time"),
        ({"ts": pa.array([5, -1])}, "the time in ts lies before 1970"),
        ({"ts": pa.array([5, 1_700_000_000_000_000])}, "the time in ts lies after 2200: integers are milliseconds"),
        ({"ts": pa.array([5, 2**62])}, "the time in ts lies after 2200"),
        ({"session_id": pa.array([5, None])}, "no value in session_id: every row needs a user or a session"),
        ({"weight": pa.array([1.0, -1.0])}, "the weight in weight is negative or not finite"),
        ({"weight": pa.array([1.0, float("nan")])}, "the weight in weight is negative or not finite"),
        ({"weight": pa.array([1.0, float("inf")])}, "the weight in weight is negative or not finite"),
        ({"weight": pa.array([1.0, 1e300])}, "the weight in weight is negative or not finite"),
    ],
)
def test_a_row_that_cannot_be_used_is_found_and_the_reason_said(columns, words):
    config = ColumnsConfig(weight="weight" if "weight" in columns else None)
    ((reason, fault_N),) = find_faults(events(**columns), config).items()
    assert words in reason
    assert fault_N.tolist() == [False, True]


def test_a_user_or_a_session_is_enough_and_a_missing_weight_is_one():
    columns = ColumnsConfig(user_id="user_id", weight="weight")
    table = events(user_id=[None, 7], session_id=[1, None], weight=pa.array([None, 0.0], pa.float64()))
    assert find_faults(table, columns) == {}


def test_a_row_with_two_faults_counts_once():
    table = events(item_id=pa.array([None, 6]), ts=[-5, 2000])
    assert [fault_N.tolist() for fault_N in find_faults(table, ColumnsConfig()).values()] == [[True, False]]


def test_a_missing_column_names_the_nearest():
    with pytest.raises(DataError, match=r"no column 'item_id'.*nearest column is 'itemid': set columns.item_id=itemid"):
        check_schema(events().rename_columns(["itemid", "ts", "session_id"]).schema, ColumnsConfig())


def test_a_column_of_the_wrong_type_says_what_it_must_be():
    with pytest.raises(DataError, match=r"'item_id'.*is double: it must be integers or strings"):
        check_schema(events(item_id=[1.5, 2.5]).schema, ColumnsConfig())
    with pytest.raises(DataError, match=r"'ts'.*is string: it must be a timestamp"):
        check_schema(events(ts=["a", "b"]).schema, ColumnsConfig())


def test_types_that_must_not_change_are_named():
    table = events(country=pa.array(["de", "at"]).dictionary_encode())
    assert column_types(table.schema, ColumnsConfig(context=("country",))) == (
        ("item_id", "int64"),
        ("country", "string"),
    )
