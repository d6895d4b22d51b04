"""``bench gate``: what each poison puts into a shard, the shards it lands, and what is told of each of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loop_kit import events

from headrace.bench import gate, poisons
from headrace.bench.poisons import POISONS, poison
from headrace.config.feed import ColumnsConfig
from headrace.config.load import load_recipe
from headrace.errors import ConfigError
from headrace.feed.landing import Landing, shard_name

BOTH = ColumnsConfig(user_id="user_id", event="event")
SMALL = (
    "feed.synthetic.num_items=100",
    "feed.synthetic.events_per_shard=150",
    "feed.synthetic.warmup_events=2000",
    "model.width=16",
    "train.warmup_epochs=2",
    "train.epochs=1",
    "evaluation.max_queries=50",
)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poisons, "FLOOD_EVENTS", 3000)
    monkeypatch.setattr(poisons, "BOT_EVENTS", 1200)


def drawn() -> np.random.Generator:
    return np.random.default_rng(3)


def test_shuffled_rows_keep_everything_but_who_has_which_item() -> None:
    table = events(100, seed=1)
    wrong = poison(table, "shuffled", BOTH, drawn()).table
    assert wrong.drop_columns("item_id") == table.drop_columns("item_id")
    assert sorted(wrong["item_id"].to_pylist()) == sorted(table["item_id"].to_pylist())
    assert wrong["item_id"] != table["item_id"]
    assert poison(table, "shuffled", BOTH, drawn()).table == wrong


@pytest.mark.parametrize(
    ("kind", "added", "items", "sessions"),
    [
        ("one_item", 3000, 1, 1),
        ("one_item_spread", 3000, 1, 300),
        ("bot", 1200, None, 1),
    ],
)
def test_rows_that_are_added_are_of_people_who_are_made_up(
    kind: str, added: int, items: int | None, sessions: int
) -> None:
    table = events(100, seed=1)
    wrong = poison(table, kind, BOTH, drawn())  # type: ignore[arg-type]
    assert wrong.added == added
    assert wrong.table.slice(0, 100) == table
    rest = wrong.table.slice(100)
    assert rest.schema == table.schema
    assert len(rest) == added
    known = set(table["item_id"].to_pylist())
    found = set(rest["item_id"].to_pylist())
    assert found <= known
    assert len(found) == (items or len(known))
    for name in ("session_id", "user_id"):
        made_up = set(rest[name].to_pylist())
        assert len(made_up) == sessions
        assert not made_up & set(table[name].to_pylist())


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.string(), pa.large_string()])
def test_made_up_names_are_of_the_columns_own_type(kind: pa.DataType) -> None:
    table = events(50, seed=1)
    table = table.set_column(2, "session_id", table["session_id"].cast(kind))
    wrong = poison(table, "one_item_spread", BOTH, drawn()).table
    assert wrong.schema == table.schema
    assert len(set(wrong["session_id"].to_pylist()[50:])) == 300


def test_a_log_is_landed_in_parts_by_rows_in_order(tmp_path: Path) -> None:
    log = Landing(str(tmp_path / "log"))
    for index in range(3):
        log.land(shard_name(index), events(101, seed=index, start_ms=index * 1_000_000))
    made = load_recipe([], ['feed.replay={slice_s="file"}', "columns.user_id=user_id"])
    landed = gate._landed(made, Path(log.uri), tmp_path / "landed", 4, 5)
    assert landed.feed.warmup_shards == 4
    parts = sorted((tmp_path / "landed" / "log").glob("*.parquet"))
    assert len(parts) == 12, "the warm-up of four, and five cuts; files are split whole"
    whole = pa.concat_tables([pq.read_table(log.uri_of(shard_name(index))) for index in range(3)])
    assert pa.concat_tables([pq.read_table(part) for part in parts]) == whole


def test_every_poison_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_SETTLED", 9)
    result = gate.run(increments=9, poisons=len(POISONS), every=4, overrides=SMALL)
    cases = {case["kind"]: case for case in result["cases"]}
    assert list(cases) == list(POISONS)
    assert [case["cut"] for case in cases.values()] == [9, 13, 17, 21, 25]
    assert "items belong to their rows" in cases["shuffled"]["rejected"]
    assert "one user has" in cases["one_item"]["rejected"]
    assert "one item has" in cases["one_item_spread"]["rejected"]
    assert "one user has" in cases["bot"]["rejected"]
    assert "of the weights' norm" in cases["learning_rate"]["rejected"]
    assert [case["capped"] for case in cases.values()] == [0, 2000, 0, 200, 0]
    assert all(case["within"] == case["answers"] == 0 for case in cases.values())
    assert result["clean"]["false_alarms"] == 0
    assert result["poisons"]["all"]["caught_within"] == {"0": 5, "1": 5, "3": 5}
    assert result["other_alarms"] == 0


def test_what_nobody_catches_is_told_with_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_SETTLED", 2)
    blind = ("gate.window=0", "gate.min_coherence=0", "gate.max_user_share=1", "gate.max_share_growth=1e9")
    result = gate.run(increments=6, poisons=1, every=4, kinds="bot", overrides=[*SMALL, *blind])
    (case,) = result["cases"]
    assert (case["within"], case["rejected"], case["capped"]) == (None, None, 200)
    assert case["answers"] == 150, "three cuts of 50 queries"
    assert set(case["below_clean"]) == {"live", "neural"}
    assert result["poisons"]["bot"]["never"] == 1


def test_words_that_cannot_be_meant() -> None:
    with pytest.raises(ConfigError, match="no poison is called arsenic"):
        gate.run(kinds="arsenic,bot")
    with pytest.raises(ConfigError, match="name a log with --data"):
        gate.run(recipe=Path("jobs/recipes/globo.toml"))
