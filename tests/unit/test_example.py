"""The question that a run shows once it answers."""

import json
import shlex
from pathlib import Path

from serving_kit import publish_version

from headrace.store.fence import take_epoch
from headrace.store.store import Store
from headrace.train.example import curl


def test_it_is_a_command_with_ids_of_the_newest_version(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert curl(store, "http://127.0.0.1:1") is None
    publish_version(store, 1, ["it's", "b c", "d"], take_epoch(store))
    words = shlex.split(curl(store, "http://127.0.0.1:1") or "")
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:1/v1/recall"]
    assert json.loads(words[-1]) == {"items": ["b c", "d"], "k": 5}


def test_a_damaged_store_gives_no_example(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    bundle = publish_version(store, 1, [1, 2, 3], take_epoch(store))
    for name in store.names("bundles"):
        store.delete(f"bundles/{name}")
    assert bundle.version == 1
    assert curl(store, "http://127.0.0.1:1") is None
