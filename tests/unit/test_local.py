"""``headrace.load``: the service's answers in one's own process."""

import json
from pathlib import Path

import numpy as np
import pytest
from serving_kit import publish_version

import headrace
from headrace.bundles.bundle import load_bundle
from headrace.bundles.publish import read_bundle
from headrace.config.recipe import Recipe, StoreConfig
from headrace.errors import ConfigError, StoreError
from headrace.serving.request import RequestError, parse
from headrace.serving.samples import sample_answers
from headrace.serving.service import answer
from headrace.store.fence import take_epoch
from headrace.store.store import Store

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


def test_samples_are_sessions_and_their_answers_in_words(store: Store) -> None:
    samples = sample_answers(Recipe(store=StoreConfig(uri=store.uri)))
    assert len(samples) == 10
    assert samples == sample_answers(Recipe(store=StoreConfig(uri=store.uri)))
    for session, answers in samples:
        assert {int(word) for word in session.split(", ")} <= set(IDS)
        assert len(answers.split(", ")) == 5
        assert int(answers.split(" ")[0]) in IDS
