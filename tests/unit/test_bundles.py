import json
from dataclasses import replace

import numpy as np
import pytest
from serving_kit import commit_version, publish_version

from headrace.bundles.bundle import Bundle, Loader, bundle_of, load_bundle
from headrace.bundles.publish import POINTER, bundle_name, publish, read_bundle, read_pointer
from headrace.bundles.watch import Watcher
from headrace.commit.manifest import Manifest
from headrace.errors import FencedError, StoreError
from headrace.inputs.contexts import contexts_of
from headrace.store.fence import take_epoch
from headrace.store.store import Store, part_name

ITEMS = [f"item-{number}" for number in range(40)]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def answers(loaded):
    return loaded.recommender.top(contexts_of([[1, 2, 3], [4]], 10**12, 50), 5)


def test_a_bundle_names_what_serving_needs_and_survives_json(store):
    manifest = commit_version(store, 3, ITEMS, take_epoch(store))
    bundle = bundle_of(manifest)
    assert (bundle.version, bundle.parent, bundle.cut, bundle.kind) == (3, 2, 2, "full")
    assert set(bundle.parts) == {name for name in manifest.parts if not name.startswith("optimizer/")}
    assert bundle.state_digest == manifest.state_digest
    assert Bundle.from_json(bundle.to_json()) == bundle
    assert bundle_of(Manifest.from_json(manifest.to_json())).to_json() == bundle.to_json()
    with pytest.raises(ValueError, match="publishes nothing"):
        bundle_of(replace(manifest, version=None, verdict="hold"))


def test_loading_gives_what_was_committed(store):
    bundle = publish_version(store, 1, ITEMS, take_epoch(store))
    loaded = load_bundle(store, read_bundle(store, 1, bundle.sha256))
    assert loaded.version == 1
    assert loaded.catalogue.raw_ids(np.array([0, 39])) == ["item-0", "item-39"]
    assert len(loaded.recommender.eligible) == 40
    again = answers(load_bundle(store, bundle))
    assert answers(loaded).score_QK.tobytes() == again.score_QK.tobytes()


def test_a_swap_reads_only_what_changed(store):
    epoch = take_epoch(store)
    loader = Loader(store)
    loader.load(publish_version(store, 1, ITEMS, epoch))
    first = loader.num_fetched
    bundle = publish_version(store, 2, ITEMS, epoch)
    loader.load(bundle)
    changed = [name for name, ref in bundle.parts.items() if read_bundle(store, 1).parts[name] != ref]
    assert loader.num_fetched - first == len(changed) < first
    loader.load(replace(bundle, version=3))
    assert loader.num_fetched - first == len(changed)


def test_versions_only_grow_and_publishing_again_changes_nothing(store):
    epoch = take_epoch(store)
    one, two = (bundle_of(commit_version(store, version, ITEMS, epoch)) for version in (1, 2))
    assert read_pointer(store) is None
    first = publish(store, one, epoch)
    assert publish(store, one, epoch) == first == read_pointer(store)
    second = publish(store, two, epoch)
    assert publish(store, one, epoch) == second
    newer = take_epoch(store)
    again = publish(store, two, newer)
    assert (again.version, again.sha256, again.epoch) == (2, two.sha256, newer.number)


def test_an_older_writer_is_refused_and_the_pointer_stays(store):
    old = take_epoch(store)
    publish_version(store, 1, ITEMS, old)
    newer = take_epoch(store)
    with pytest.raises(FencedError):
        publish_version(store, 2, ITEMS, old)
    assert read_pointer(store).version == 1
    publish_version(store, 2, ITEMS, newer)
    with pytest.raises(FencedError, match="stops here"):
        publish_version(store, 3, ITEMS, old)
    assert read_pointer(store).version == 2


def test_the_watcher_follows_the_pointer(store):
    watcher, epoch = Watcher(store), take_epoch(store)
    assert watcher.poll() is None
    assert watcher.problem is None
    publish_version(store, 1, ITEMS, epoch)
    bundle = watcher.poll()
    assert watcher.poll() == bundle  # until it is loaded
    assert watcher.load(bundle).version == 1
    assert watcher.poll() is None
    publish_version(store, 2, ITEMS, epoch)
    publish_version(store, 3, ITEMS, epoch)
    assert watcher.load(watcher.poll()).version == 3
    publish(store, read_bundle(store, 3), take_epoch(store))
    assert watcher.poll() is None


def test_a_damaged_part_keeps_the_old_version_and_is_tried_again(store):
    watcher, epoch = Watcher(store), take_epoch(store)
    publish_version(store, 1, ITEMS, epoch)
    watcher.load(watcher.poll())
    bundle = publish_version(store, 2, ITEMS, epoch)
    name = part_name(bundle.parts["model/encoder"].sha256)
    whole = store.get(name)
    store.put(name, whole[:-1] + b"!")
    assert watcher.load(watcher.poll()) is None
    assert "version 2 cannot be loaded" in watcher.problem
    assert "damaged" in watcher.problem
    assert watcher.poll() is None  # a pause
    assert "damaged" in watcher.problem
    store.put(name, whole)
    retries = [bundle for bundle in (watcher.poll() for _ in range(4)) if bundle]
    assert watcher.load(retries[0]).version == 2
    assert watcher.problem is None


def test_a_newer_version_is_not_held_up_by_one_that_failed(store):
    watcher, epoch = Watcher(store), take_epoch(store)
    bundle = publish_version(store, 1, ITEMS, epoch)
    store.delete(part_name(bundle.parts["catalogue/items"].sha256))
    assert watcher.load(watcher.poll()) is None
    assert "missing" in watcher.problem
    publish_version(store, 2, ITEMS[:30], epoch)
    assert watcher.load(watcher.poll()).version == 2


def test_torn_pointers_and_manifests_are_reported(store):
    watcher, epoch = Watcher(store), take_epoch(store)
    bundle = publish_version(store, 1, ITEMS, epoch)
    pointer = store.get(POINTER)
    store.put(POINTER, pointer[:20])
    assert watcher.poll() is None
    assert "damaged" in watcher.problem
    store.put(POINTER, pointer)
    store.put(bundle_name(1), bundle.to_json().replace(b'"cut": 0', b'"cut": 5'))
    assert watcher.poll() is None
    assert "digest differs" in watcher.problem
    store.put(bundle_name(1), b"{}")
    assert watcher.poll() is None
    assert "not a bundle" in watcher.problem
    store.delete(bundle_name(1))
    assert watcher.poll() is None
    assert "missing" in watcher.problem
    store.put(bundle_name(1), bundle.to_json())
    assert watcher.poll() == bundle
    assert json.loads(pointer)["sha256"] == bundle.sha256


def test_a_store_that_is_away_changes_nothing(store):
    class Away(Store):
        away = True

        def get(self, name):
            if self.away:
                raise TimeoutError("no route to host")
            return super().get(name)

    publish_version(store, 1, ITEMS, take_epoch(store))
    away = Away(store.uri)
    watcher = Watcher(away)
    assert watcher.poll() is None
    assert "no route" in watcher.problem
    away.away = False
    bundle = watcher.poll()
    away.away = True
    assert watcher.load(bundle) is None
    away.away = False
    assert watcher.load(next(bundle for bundle in (watcher.poll() for _ in range(4)) if bundle)).version == 1


def test_parts_that_do_not_fit_are_refused(store):
    bundle = bundle_of(commit_version(store, 1, ITEMS, take_epoch(store)))
    for broken in (
        replace(bundle, recipe=bundle.recipe | {"model": bundle.recipe["model"] | {"width": 24}}),
        replace(bundle, weights={"neural": 1.0}),
        replace(bundle, parts={name: ref for name, ref in bundle.parts.items() if not name.startswith("experts")}),
        replace(bundle, recipe={}),
    ):
        with pytest.raises(StoreError):
            load_bundle(store, broken)
