"""Headrace keeps a recommender's recall model fresh: shards stream in, versions out, and replicas go on answering."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.serving.local import LocalRecall

__version__ = "0.1.0"


def load(store_uri: "str | Path", version: int | None = None, device: str = "cpu") -> "LocalRecall":
    """The newest published version of a store, or the one named, to be asked in this process: no Ray, no network.

    ``headrace.load("runs/mine/store").recall(items=[17, 42], k=20)`` answers what the service would. StoreError where
    the version is missing or damaged, ConfigError where the store has published none.
    """
    from headrace.serving.local import LocalRecall
    from headrace.store.store import Store

    return LocalRecall(Store(str(store_uri)), version, device)
