"""A first look at logs of all sorts: what is guessed, what is refused, and one whole run."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from headrace import cli
from headrace.config.load import load_recipe
from headrace.errors import DataError
from headrace.onboard import columns, draft, log, plan, shape
from headrace.onboard.guess import guess

START_S = 1_600_000_000
DAY_S = 86400


@pytest.fixture
def headrace():
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def _events(num_sessions=200, per_session=4, num_items=40, num_users=50, span_s=10 * DAY_S, seed=0):
    """Sessions that walk through neighbouring items; (user, session, item, time in s), in order of time."""
    draw = np.random.default_rng(seed)
    begin = np.sort(draw.integers(0, span_s, num_sessions))
    session = np.repeat(np.arange(num_sessions), per_session)
    step = np.tile(np.arange(per_session), num_sessions)
    user = np.repeat(draw.integers(0, num_users, num_sessions), per_session)
    item = (np.repeat(draw.integers(0, num_items, num_sessions), per_session) + step) % num_items
    time = START_S + begin[session] + 20 * step
    order = np.argsort(time, kind="stable")
    return user[order] + 7000, session[order] + 90_000, item[order] + 300, time[order]


def _guess(table, **pinned):
    return guess(columns.look(pa.table(table)), pinned)


def _text(prefix, values):
    return [f"{prefix}{value}" for value in values]


def _put(folder, table, name="part-0.parquet"):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / name)
    return folder


def _shape(folder, **pinned):
    files = log.find_files(folder)
    guessed = guess(columns.look(log.sample(files)), pinned)
    whole = log.load(files, guessed)
    return whole, guessed, shape.shape_of(whole, guessed)


def _shop():
    user, session, item, time = _events()
    return {
        "visitorid": user,
        "itemid": item,
        "timestamp": time * 1000,
        "event": np.where(np.arange(len(item)) % 3 == 0, "addtocart", "view"),
        "transactionid": pa.array([float(s) if s % 50 == 0 else None for s in session]),
    }


def _films():
    user, _, item, time = _events()
    return {"userId": user, "movieId": item, "rating": np.full(len(item), 3.5), "timestamp": time}


def _cosmetics():
    user, session, item, time = _events()
    return {
        "event_time": _text("", pa.array(time * 1000, pa.timestamp("ms")).to_pylist()),
        "event_type": np.where(item % 2 == 0, "view", "remove_from_cart"),
        "product_id": item,
        "category_id": item % 5,
        "brand": _text("b", item % 3),
        "price": item * 0.5,
        "user_id": user,
        "user_session": _text("s-", session),
    }


def _reviews():
    user, _, item, time = _events()
    return {"reviewerID": _text("A", user), "asin": _text("B0", item), "overall": item % 5, "unixReviewTime": time}


def _invoices():
    user, session, item, time = _events()
    return {
        "InvoiceNo": _text("", session),
        "StockCode": _text("S", item),
        "Quantity": item % 4,
        "InvoiceDate": pa.array(time * 1000, pa.timestamp("ms")),
        "CustomerID": user.astype(float),
        "Country": ["UK"] * len(item),
    }


def _plain():
    user, _, item, time = _events()
    return {"user": _text("u", user), "product": _text("p", item), "time": pa.array(time, pa.timestamp("s"))}


@pytest.mark.parametrize(
    ("table", "expected", "unit"),
    [
        (_shop(), {"item_id": "itemid", "ts": "timestamp", "user_id": "visitorid", "event": "event"}, "ms"),
        (_films(), {"item_id": "movieId", "ts": "timestamp", "user_id": "userId"}, "s"),
        (
            _cosmetics(),
            {
                "item_id": "product_id",
                "ts": "event_time",
                "session_id": "user_session",
                "user_id": "user_id",
                "event": "event_type",
            },
            "text",
        ),
        (_reviews(), {"item_id": "asin", "ts": "unixReviewTime", "user_id": "reviewerID"}, "s"),
        (
            _invoices(),
            {"item_id": "StockCode", "ts": "InvoiceDate", "session_id": "InvoiceNo", "user_id": "CustomerID"},
            "time",
        ),
        (_plain(), {"item_id": "product", "ts": "time", "user_id": "user"}, "time"),
    ],
    ids=["retailrocket", "movielens", "rees46", "amazon", "online retail", "plain"],
)
def test_columns_of_well_known_logs(table, expected, unit):
    found = _guess(table)
    assert found.named == expected
    assert found.unit == unit
    assert len(found.reasons) == 6


def test_names_that_say_nothing_are_told_apart_by_their_rhythm():
    user, _, item, time = _events(num_sessions=800, num_users=60, num_items=100)
    found = _guess({"a": item, "b": user, "c": time * 1_000_000})
    assert found.named == {"item_id": "a", "ts": "c", "user_id": "b"}
    assert found.unit == "us"


def test_what_is_said_is_not_guessed():
    found = _guess(_cosmetics(), item_id="brand", session_id=None)
    assert (found.item_id, found.session_id) == ("brand", None)
    with pytest.raises(DataError, match=r"columns\.item_id=sku: no such column"):
        _guess(_cosmetics(), item_id="sku")


def test_a_unique_id_column_is_an_events_id_and_no_session():
    user, _, item, time = _events()
    found = _guess({"event_id": np.arange(len(item)), "user": user, "item": item, "ts": time})
    assert (found.event_id, found.session_id) == ("event_id", None)


@pytest.mark.parametrize(("factor", "unit"), [(1, "s"), (1000, "ms"), (10**6, "us"), (10**9, "ns")])
def test_times_in_any_unit_become_milliseconds(factor, unit):
    (column,) = columns.look(pa.table({"t": pa.array([START_S * factor, (START_S + 1) * factor])}))
    assert column.unit == unit
    assert columns.to_ms(column.values, unit, "t").to_pylist() == [START_S * 1000, (START_S + 1) * 1000]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"item": [1, 2], "user": [1, 2]}, "no column can be the time among item"),
        ({"time": pa.array([1, 2], pa.timestamp("s")), "price": [0.5, 1.5], "user": [1, 2]}, "can be the item"),
        ({"time": pa.array([1, 2], pa.timestamp("s")), "item": [1, 2]}, "whose events these are"),
        ({"time": pa.nulls(2), "item": pa.nulls(2), "user": pa.nulls(2)}, r"time \(all null\)"),
    ],
)
def test_what_is_missing_is_said(table, message):
    with pytest.raises(DataError, match=message):
        _guess(table)


def test_folders_that_are_no_log(tmp_path):
    for name, message in [("nowhere", "is not there"), ("empty", "is empty"), ("csv", "no .parquet file"), ("bad", "")]:
        folder = tmp_path / name
        if name != "nowhere":
            folder.mkdir()
        if name == "csv":
            (folder / "log.csv").write_text("a,b")
        if name == "bad":
            (folder / "log.parquet").write_text("not at all")
            message = "cannot be read as Parquet"
        with pytest.raises(DataError, match=message):
            log.find_files(folder)


def test_a_list_of_items_beside_the_log_is_left_out(tmp_path):
    _put(tmp_path, _films())
    _put(tmp_path, {"movieId": np.arange(5000), "title": ["x"] * 5000}, "movies.parquet")
    files = log.find_files(tmp_path)
    assert [path.name for path in files.paths] == ["part-0.parquet"]
    assert "movies.parquet" in files.left_out[0]
    assert files.mend


def test_files_out_of_order_rows_without_an_owner_and_seconds_are_mended_and_said(tmp_path):
    user, _, item, time = _events()
    half = len(item) // 2
    who = pa.array([None if place < 3 else int(u) for place, u in enumerate(user)])
    _put(tmp_path, {"user": who[half:], "item": item[half:], "ts": time[half:]}, "a.parquet")
    _put(tmp_path, {"user": who[:half], "item": item[:half], "ts": time[:half]}, "b.parquet")
    whole, guessed, _ = _shape(tmp_path)
    assert (np.diff(whole.ts_N) >= 0).all()
    assert len(whole) == len(item) - 3
    assert whole.ts_N[-1] == time[-1] * 1000
    told = " ".join(whole.mend)
    assert "not in order of time by name" in told
    assert "3 rows lack" in told
    assert "not milliseconds" in told
    log.write(whole, tmp_path / "mended", rows_per_file=200)
    again, _, _ = _shape(tmp_path / "mended")
    assert again.mend == ()
    assert (again.ts_N == whole.ts_N).all()
    assert guessed.unit == "s"


def test_baskets_gaps_and_kinds(tmp_path):
    user, session, item, time = _events()
    start = np.array([time[session == s].min() for s in session])
    baskets = {"user": user, "basket_id": session, "item": item, "time": start * 1000}
    _, _, found = _shape(_put(tmp_path / "baskets", baskets))
    assert (found.is_set, found.context, found.gap_s) == (True, "user", None)
    _, _, found = _shape(_put(tmp_path / "days", {"user": user, "item": item, "date": start // DAY_S * DAY_S * 1000}))
    assert (found.is_set, found.gap_s) == (True, 1)
    kinds = np.where(item % 2 == 0, "impression", "click")
    _, _, found = _shape(_put(tmp_path / "users", {"user": user, "item": item, "ts": time * 1000, "event": kinds}))
    assert (found.is_set, found.context, found.gap_s) == (False, "user", 1800)
    assert found.target_kinds == ("click",)
    with pytest.raises(DataError, match=r"columns\.user_id=NAME"):
        _shape(_put(tmp_path / "nobody", {key: baskets[key] for key in ("basket_id", "item", "time")}))


def test_news_go_stale_and_a_shop_keeps(tmp_path):
    user, session, item, time = _events(num_sessions=3000, num_items=60, span_s=20 * DAY_S)
    hours = (time - START_S) // 7200
    news = {"user": user, "session": session, "item": hours * 10 + item % 10, "ts": time * 1000}
    _, _, found = _shape(_put(tmp_path / "news", news))
    assert found.alive_s is not None
    assert found.alive_s <= 6 * 3600
    _, _, found = _shape(_put(tmp_path / "shop", {"user": user, "session": session, "item": item, "ts": time * 1000}))
    assert found.alive_s is None


def test_too_little_is_refused(tmp_path):
    one = {"user": [1], "item": [2], "ts": pa.array([START_S], pa.timestamp("s"))}
    with pytest.raises(DataError):
        _shape(_put(tmp_path / "one", one))
    same = {"user": np.arange(60) % 5, "item": np.arange(60) % 7, "ts": pa.array([START_S] * 60, pa.timestamp("s"))}
    with pytest.raises(DataError, match="same time"):
        _shape(_put(tmp_path / "same", same))


def test_the_plan_samples_whole_users_and_fits_the_budget(tmp_path):
    whole, guessed, found = _shape(_put(tmp_path, _films()))
    all_of_it = plan.plan(whole, guessed, found)
    assert all_of_it.keep_N.all()
    some = plan.plan(whole, guessed, found, budget_s=all_of_it.estimate_s / 10)
    assert 0 < some.share < 1
    kept, left = whole.owner_N[some.keep_N], whole.owner_N[~some.keep_N]
    assert not set(kept.tolist()) & set(left.tolist())
    assert some.estimate_s <= all_of_it.estimate_s / 10 * 1.01


@pytest.mark.parametrize("table", [_shop(), _invoices(), _cosmetics()])
def test_the_written_recipe_is_accepted_and_every_line_says_why(tmp_path, table):
    _, guessed, found = _shape(_put(tmp_path / "my log", table))
    text = draft.draft(guessed, found, draft.Effort(2, 64, 3e-3), tmp_path / "my log", "my")
    (tmp_path / "my.toml").write_text(text)
    recipe = load_recipe([str(tmp_path / "my.toml")])
    assert recipe.columns.item_id == guessed.item_id
    assert recipe.columns.session_id == guessed.session_id
    assert recipe.feed.replay is not None
    assert all("# " in line for line in text.splitlines() if " = " in line and not line.startswith("#"))


def test_a_whole_try_in_a_folder_of_odd_names(headrace, tmp_path):
    user, _, item, time = _events(num_sessions=150)
    folder = _put(tmp_path / "films", {"userId": user, "movieId": item, "rating": item % 5, "timestamp": time})
    names = _put(tmp_path / "names", {"movieId": np.arange(300, 340), "title": _text("Film ", range(300, 340))})
    out = tmp_path / "recipes" / "films.toml"
    small = ["model.width=8", "model.blocks=1", "train.warmup_epochs=1", "evaluation.max_queries=50"]
    words = ["--recipe", out, "--names", names / "part-0.parquet"]
    result = headrace("try", folder, *small, *words)
    assert result.exit_code == 0, result.output
    for text in ("movieId", "neural model", "blend (what is served)", "frozen", "R@100", "Film 3", "headrace run"):
        assert text in result.stdout
    recipe = load_recipe([str(out)])
    mended = log.find_files(out.parent / "films-log")  # its times were seconds
    assert str(mended.folder) == recipe.feed.path
    assert mended.num_rows == len(item)
    again = headrace("try", folder, *words)
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_init_writes_the_recipe_and_learns_nothing(headrace, tmp_path):
    out = tmp_path / "shop.toml"
    result = headrace("init", _put(tmp_path / "shop", _shop()), "--recipe", out)
    assert result.exit_code == 0, result.output
    assert f"headrace run {out}" in result.stdout
    assert "Progress" not in result.stdout
    assert load_recipe([str(out)]).feed.replay is not None
    again = headrace("init", tmp_path / "shop", "--recipe", out)
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_mistakes_are_said_in_words(headrace, tmp_path):
    for words, message in [
        ((tmp_path / "nowhere",), "is not there"),
        ((tmp_path,), "is empty"),
        ((tmp_path, "train.epoch=3"), "the nearest is train.epochs"),
        ((tmp_path, "mine.toml"), "only overrides"),
    ]:
        result = headrace("try", *words)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_first_look_imports_neither_ray_nor_wandb():
    program = (
        "import sys, headrace.onboard.first_look; print([name for name in ('ray', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
