"""``headrace.load``: the service's answers in one's own process."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from loop_kit import Stream, recipe
from serving_kit import publish_version

import headrace
from headrace.bundles.bundle import Loader, bundle_of, load_bundle
from headrace.bundles.publish import publish, read_bundle
from headrace.config.recipe import Recipe
from headrace.config.run import StoreConfig
from headrace.errors import ConfigError, StoreError
from headrace.serving.request import RequestError, parse
from headrace.serving.samples import sample_answers
from headrace.serving.service import answer
from headrace.store.fence import take_epoch
from headrace.store.store import Store
from headrace.tracking.samples import Shown

IDS = list(range(1000, 1060))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    epoch = take_epoch(store)
    for version in (1, 2):
        publish_version(store, version, IDS, epoch)
    return store


def test_it_answers_what_the_service_answers(store: Store) -> None:
    recall = headrace.load(store.uri)
    assert recall.version == 2
    questions = [{"items": IDS[place : place + 3], "k": 7, "ts": 1_700_000_000_500} for place in range(40)]
    served = answer(
        load_bundle(store, read_bundle(store, 2)), [parse(json.dumps(q).encode()) for q in questions], 0, "service"
    )
    for question, by_service, mine in zip(questions, served, recall.recall_many(questions), strict=True):
        assert mine.items == by_service.items
        np.testing.assert_allclose(mine.scores, by_service.scores, rtol=1e-6)
        assert recall.recall(**question).items == by_service.items


def test_a_version_can_be_named_and_stays(store: Store) -> None:
    first = headrace.load(store.uri, version=1)
    publish_version(store, 3, IDS, take_epoch(store))
    assert first.recall([1001]).version == 1
    assert headrace.load(Path(store.uri)).version == 3
    assert sorted(first.items) == IDS


def test_arrays_and_their_numbers_are_ids(store: Store) -> None:
    recall = headrace.load(store.uri)
    assert recall.recall(np.array([1001, 1002]), k=3).items == recall.recall([1001, 1002], k=3).items
    assert recall.recall([np.int64(1001)], exclude=np.array([1002])).unknown == []


def test_mistakes_are_told_in_words(store: Store, tmp_path: Path) -> None:
    recall = headrace.load(store.uri)
    with pytest.raises(RequestError, match="no such key: itmes"):
        recall.recall([1], itmes=[2])
    with pytest.raises(RequestError, match='"k" is 0'):
        recall.recall([1], k=0)
    with pytest.raises(TypeError, match="send ids as integers or strings"):
        recall.recall([object()])
    with pytest.raises(StoreError, match="bundle 9 is missing"):
        headrace.load(store.uri, version=9)
    with pytest.raises(ConfigError, match="nothing is published"):
        headrace.load(tmp_path / "empty")


def shop(folder: Path, *words: str) -> Stream:
    """Two increments of three users, of whom u2 came last, then u0, then u1; the side feed names two items."""
    stream = Stream(folder, recipe("evaluation.eval_share=0", "inputs.max_events=30", *words))
    named = {"item_id": [1004, 1024], "ts": pa.array([0, 0], pa.timestamp("ms")), "name": ["tea", "jam"]}
    named["status"] = ["retired", "active"]
    stream.items.land("names.parquet", pa.table(named))
    users = np.array([1, 0, 2] * 20)
    for shard in range(2):
        event = np.arange(60)
        stream.land(
            pa.table(
                {
                    "item_id": 1000 + (7 * event + shard) % 30,
                    "ts": 1000 * (60 * shard + event),
                    "session_id": users + 10 * (event // 30) + 100 * shard,
                    "user_id": [f"u{user}" for user in users],
                    "event": ["view"] * 60,
                }
            )
        )
    return stream


@pytest.mark.parametrize("context", ["session", "user"])
def test_samples_are_the_pasts_of_those_who_came_last_and_their_answers(tmp_path: Path, context: str) -> None:
    stream = shop(tmp_path, f"inputs.context={context}", f"feed.items_path={tmp_path / 'items'}")
    newest = stream.advance()[-1]
    publish(stream.store, bundle_of(newest), take_epoch(stream.store))
    of_store = Recipe(store=StoreConfig(uri=stream.store.uri))
    samples = sample_answers(of_store)
    assert samples == sample_answers(of_store)
    assert [sample.past[-1].item_id for sample in samples] == [1000 + (7 * event + 1) % 30 for event in (59, 58, 57)]
    assert [sample.num_before for sample in samples] == [{"session": 5, "user": 25}[context]] * 3
    recall = headrace.load(stream.store.uri)
    for sample, (past, answered) in zip(samples, recall.newest(3, 5), strict=True):
        assert [item.item_id for item in sample.past] == past[-5:]
        assert [item.item_id for item in sample.answers] == answered.items == recall.recall(past, k=5).items
    assert samples[0].past[-1] == Shown(1024, "jam")
    assert recall.names([1004, 1005, 1, "?"]) == ["tea", None, None, None]
    ids = Loader(stream.store).load_ids(bundle_of(newest))
    assert sorted(ids) == [item for item in range(1000, 1030) if item != 1004]  # what the client asks with
