"""Old versions answer as they were, whatever the learner has learned since."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from loop_kit import SMALL, events

from headrace.bench import staleness
from headrace.errors import ConfigError
from headrace.feed.landing import Landing, shard_name


def test_versions_of_all_ages_answer_the_same_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staleness, "LAGS", {"0": 0, "1 min": 1, "3 min": 3})
    landing = Landing(str(tmp_path / "log"))
    for index in range(8):
        table = events(300 if index == 0 else 120, seed=index, start_ms=index * 3_600_000, num_items=40 + 20 * index)
        landing.land(shard_name(index), table)
    (tmp_path / "recipe.toml").write_text("seed = 1")
    words = [*SMALL, 'feed.replay={slice_s="file"}']
    monkeypatch.setattr(staleness, "load_recipe", _by_file(staleness.load_recipe))
    made = staleness.run(
        data=tmp_path / "log",
        increments=7,
        every=2,
        plot=tmp_path / "plots" / "curve.svg",
        recipe=tmp_path / "recipe.toml",
        overrides=words,
    )
    drawn = ElementTree.parse(tmp_path / "plots" / "curve.svg").getroot()
    assert len([node for node in drawn if node.tag.endswith("circle")]) == 3
    assert made["queries"] > 100
    recall = [row["recall@20"] for row in made["rows"].values()]
    assert recall[0] > recall[2], "items come and go, so a version of long ago knows fewer of the answers"
    with pytest.raises(ConfigError, match="takes more than 3 increments"):
        staleness.run(data=tmp_path / "log", increments=2, every=2, recipe=tmp_path / "recipe.toml", overrides=words)


def _by_file(real):
    """The same recipe, whose log lands file by file instead of minute by minute."""
    return lambda files, words: real(files, [word for word in words if word != "feed.replay.slice_s=60"])
