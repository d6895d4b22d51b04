"""Publishing: the bundle's manifest whole, then the pointer that names it.

The pointer only ever names a version that is complete, and never an older one than before. Whoever is not the newest
writer is refused before the pointer moves. Publishing again what is published already changes nothing.
What a person has rolled back to is published while an increment may be under way, by another process than the one that
trains: so it has a pointer of its own, each has one writer, and readers follow the higher version of the two.
"""

import json
from dataclasses import asdict, dataclass

from headrace.bundles.bundle import Bundle
from headrace.errors import FencedError, StoreError
from headrace.store.fence import Epoch, check_epoch
from headrace.store.store import Store

POINTER = "pointer.json"
ROLLBACK_POINTER = "rollback.json"


@dataclass(frozen=True)
class Pointer:
    """Which bundle to serve. Made by ``publish``, polled by every replica."""

    version: int
    sha256: str
    """Of the bundle's manifest."""
    epoch: int
    token: str
    """Of the writer that published; readers follow the highest."""


def bundle_name(version: int) -> str:
    """The object name of a bundle's manifest."""
    return f"bundles/{version:010d}.json"


def publish(store: Store, bundle: Bundle, epoch: Epoch, name: str = POINTER) -> Pointer:
    """Make ``bundle`` what replicas serve, unless a newer version is already published; the pointer afterwards.

    Every part must be stored before. ``name`` is the pointer's. FencedError when a newer run has taken the store.
    """
    before = _read_pointer(store, name)
    if before is not None and before.epoch > epoch.number:
        raise FencedError(f"epoch {before.epoch} has published into {store.uri}; epoch {epoch.number} stops here")
    if before is not None and before.version > bundle.version:
        check_epoch(store, epoch)
        return before
    pointer = Pointer(bundle.version, bundle.sha256, epoch.number, epoch.token)
    if before == pointer:
        return before
    store.put(bundle_name(bundle.version), bundle.to_json())
    check_epoch(store, epoch)
    store.put(name, json.dumps(asdict(pointer)).encode())
    return pointer


def withdraw(store: Store, version: int) -> None:
    """Take a bundle away, before its parts go; never the one that the pointer names."""
    store.delete(bundle_name(version))


def read_pointer(store: Store) -> Pointer | None:
    """The pointer to what is to be served; None before the first version; StoreError where it is damaged."""
    pointers = [_read_pointer(store, name) for name in (POINTER, ROLLBACK_POINTER)]
    return max(filter(None, pointers), key=lambda pointer: pointer.version, default=None)


def _read_pointer(store: Store, name: str) -> Pointer | None:
    try:
        content = store.get(name)
    except FileNotFoundError:
        return None
    try:
        return Pointer(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{name} in {store.uri} is damaged: {error}") from error


def read_bundle(store: Store, version: int, sha256: str | None = None) -> Bundle:
    """The bundle of this version; StoreError where it is missing, or is not the one with this digest."""
    try:
        bundle = Bundle.from_json(store.get(bundle_name(version)))
    except FileNotFoundError as error:
        raise StoreError(f"bundle {version} is missing from {store.uri}") from error
    if sha256 is not None and bundle.sha256 != sha256:
        raise StoreError(f"bundle {version} in {store.uri} is not the one that was published: its digest differs")
    return bundle
