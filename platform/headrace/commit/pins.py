"""Versions that a person wants to keep: one small object each, which retention honours.

A commit that leaves is first noted in the journal, and pins are read after that; a pin is put first, and the journal is
read after that. So whichever comes second sees the other: a pin that is accepted holds.
"""

import json

from headrace.clock import wall_ms
from headrace.commit.chain import Chain
from headrace.commit.journal import Journal
from headrace.commit.manifest import Manifest
from headrace.errors import ConfigError
from headrace.store.store import Store

_FOLDER = "pins"


def pin(store: Store, version: int) -> Manifest:
    """Keep this version until it is unpinned; its commit. ConfigError where it is not there (any more)."""
    held = [manifest for manifest in Chain(store).manifests() if manifest.version == version]
    if not held:
        raise ConfigError(
            f"version {version} is not in {store.uri}: headrace versions lists those that are still there"
        )
    store.put(_name(version), json.dumps({"wall_ms": wall_ms()}).encode())
    if Journal(store).has(held[-1].cut):
        store.delete(_name(version))
        raise ConfigError(f"version {version} is being removed from {store.uri}: raise store.keep or store.keep_s")
    return held[-1]


def unpin(store: Store, version: int) -> None:
    """Let it go as others do; ConfigError where it is not pinned."""
    if version not in pinned(store):
        raise ConfigError(f"version {version} is not pinned in {store.uri}: headrace versions shows which are")
    store.delete(_name(version))


def pinned(store: Store) -> set[int]:
    """The pinned versions."""
    return {int(name.removesuffix(".json")) for name in store.names(_FOLDER)}


def _name(version: int) -> str:
    return f"{_FOLDER}/{version:010d}.json"
