"""Whole sessions as queries, through the command's own road."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from study_kit import WORDS, recipe_file

from headrace.bench import sessions
from headrace.errors import ConfigError
from headrace.feed.landing import Landing, shard_name

torch.set_num_threads(1)
DAY_MS = 86_400_000
NSP = 'online+model.kind="nsp"+objective.examples="sessions"'


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """A user comes once a day for two items of a shelf of its own and one that nobody has bought before."""
    landing = Landing(str(tmp_path_factory.mktemp("log")))
    for day in range(5):
        user = np.repeat(np.arange(60), 3)
        item = 10 * (user % 4) + (np.arange(180) + day) % 3
        item[2::3] = 1000 + 60 * day + np.arange(60)
        ts = 1000 * DAY_MS + day * DAY_MS + user * 60_000 + np.arange(180) % 3
        table = {"item_id": item, "ts": ts, "session_id": 100 * day + user, "user_id": user, "event": ["buy"] * 180}
        landing.land(shard_name(day), pa.table(table))
    return Path(landing.uri)


def test_models_answer_the_same_sessions(tmp_path, log, capsys):
    words = [*WORDS, "feed.replay={slice_s=86400}", "inputs.max_events=12", "train.warmup_epochs=20"]
    study = tmp_path / "out"
    sessions.run(data=log, methods=f"online,{NSP}", folder=study, recipe=recipe_file(tmp_path), overrides=words)
    assert "repeat R@20" in capsys.readouterr().out
    rows = json.loads((study / "results.json").read_text())
    assert list(rows) == ["online", NSP]
    for ours, theirs in zip(rows["online"], rows[NSP], strict=True):
        assert ours["queries"] == theirs["queries"] == 60  # a query a user and day
        assert ours["experts"]["popular"] == theirs["experts"]["popular"]
        assert ours["blend"]["explore_recall@500"] < ours["blend"]["repeat_recall@500"]
    assert rows[NSP][-1]["repeat_recall@20"] > 0.3
    page = (study / "table.md").read_text()
    assert "| method | expert | repeat R@20 |" in page
    assert "R@20 / R@100 / R@500" in page


def test_a_log_without_users_is_refused_in_words(tmp_path, log):
    with pytest.raises(ConfigError, match=r"columns\.user_id"):
        sessions.run(data=log, recipe=recipe_file(tmp_path), overrides=[*WORDS, 'columns.user_id=""'])
