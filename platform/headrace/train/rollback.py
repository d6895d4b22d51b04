"""Rolling back by hand: what a person may ask for, and how it is served at once, whether or not anybody trains.

The number that it is served under, and the cut at which the learner goes back to it, are the ledger's to say, and the
ledger has one writer. So what a person puts is a request (commit/rollbacks.py). A run that is up takes it up within a
second or two; where none is, the command is the writer for a moment.
"""

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headrace.bundles.bundle import Bundle, bundle_of
from headrace.bundles.publish import ROLLBACK_POINTER, bundle_name, publish, read_bundle, read_pointer
from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.commit.rollbacks import Request, find, note_served, request, requests
from headrace.errors import ConfigError, StoreBusyError, StoreError
from headrace.feed.keeper import take_up
from headrace.feed.ledger import LedgerWriter
from headrace.records import Rollback
from headrace.store.arrays import load_arrays
from headrace.store.fence import Epoch, StoreLock, take_epoch
from headrace.store.patience import Wait
from headrace.store.store import Store

_LOOK_S = 0.2
_PATIENCE_S = 30.0  # for a run that is up, but not yet, or no longer, keeping its ledger


def ask(store: Store, version: int) -> Request:
    """Ask that this version be served again; ConfigError, in words, where that cannot be.

    The same request again, while it waits, is the one that waits.
    """
    manifest = _wanted(store, version)
    made = requests(store)
    if made and made[-1].waits and made[-1].version == version:
        return made[-1]
    return request(store, manifest)


def see_through(store: Store, asked: Request, *, alone: bool = False, wait: Wait = time.sleep) -> int:
    """Until it is served; the version under which it is. StoreError where a run that is up does not take it up.

    On a local store the lock tells whether a run is up. Elsewhere ``alone`` is the person's word that none is: one
    that is up after all is fenced off.
    """
    for _ in range(round(_PATIENCE_S / _LOOK_S)):
        found = find(store, asked.number)
        if found is not None and found.served_as is not None:
            return found.served_as
        if alone or store.local_root is not None:
            try:
                with StoreLock(store):
                    _serve_alone(store)
                continue
            except StoreBusyError:
                pass
        wait(_LOOK_S)
    raise StoreError(
        f"version {asked.version} is asked for, but no run has taken that up in {_PATIENCE_S:g} s: one that starts, or "
        f"ends, does so later. If none is up, headrace rollback {asked.version} --alone serves it at once"
    )


def serve_again(store: Store, epoch: Epoch, rollback: Rollback) -> None:
    """Make it what replicas serve, unless a newer version is published; done again after a crash, it changes nothing.

    FencedError when a newer run has taken the store; StoreError where the version's commit is not there.
    """
    pointer = read_pointer(store)
    if pointer is None or pointer.version < rollback.version:
        publish(store, _bundle_again(store, rollback), epoch, ROLLBACK_POINTER)
    note_served(store, rollback.request, rollback.version)


def _serve_alone(store: Store) -> None:
    epoch = take_epoch(store)
    writer = LedgerWriter.open(store, epoch)
    take_up(writer)
    if writer.state.rollback is not None:
        serve_again(store, epoch, writer.state.rollback)


def _wanted(store: Store, version: int) -> Manifest:
    chain = Chain(store)
    there = {manifest.version: manifest for manifest in chain.manifests() if manifest.version is not None}
    if not there:
        raise ConfigError(f"nothing is published in {store.uri}: name the store of a run that has published a version")
    if version not in there:
        raise ConfigError(_not_there(store, chain, version, sorted(there)))
    pointer = read_pointer(store)
    if pointer is not None and read_bundle(store, pointer.version).cut == there[version].cut:
        again = "" if pointer.version == version else f", again, as version {pointer.version}"
        raise ConfigError(f"version {version} is what {store.uri} serves now{again}: there is nothing to roll back")
    return there[version]


def _not_there(store: Store, chain: Chain, version: int, there: list[int]) -> str:
    listed = f"those that can be served again are {', '.join(map(str, there))} (headrace versions)"
    again = next((one for one in requests(store) if one.served_as == version), None)
    if again is not None:
        return f"version {version} was version {again.version} again: name that one, if it is still there; {listed}"
    gone = next((summary for summary in chain.summaries() if summary.version == version), None)
    if gone is not None:
        return (
            f"version {version} (cut {gone.cut}) has left {store.uri}, by store.keep and store.keep_s: pin what is to "
            f"stay; {listed}"
        )
    return f"{store.uri} has never published a version {version}; {listed}"


def _bundle_again(store: Store, rollback: Rollback) -> Bundle:
    """The version under its new number, without the items that were retired since; the same one if it was put before.

    StoreError where the commit is not there.
    """
    if store.exists(bundle_name(rollback.version)):
        return read_bundle(store, rollback.version)
    chain = Chain(store)
    manifest, newest = chain.find(rollback.cut), chain.latest()
    if manifest is None or newest is None:
        raise StoreError(f"version {rollback.to} is not in {store.uri} any more: restore its commit")
    then_I, now_I = _retired(store, manifest), _retired(store, newest)
    retired_since = np.flatnonzero(now_I[: manifest.facts["num_items"]])
    retired_since = np.setdiff1d(retired_since, np.flatnonzero(then_I))
    return replace(
        bundle_of(manifest, parent=rollback.to), version=rollback.version, tombstones=tuple(retired_since.tolist())
    )


def _retired(store: Store, manifest: Manifest) -> NDArray[np.bool_]:
    """By item number, whether the side feed has retired it, as of this commit; empty where there is no side feed."""
    ref = manifest.parts.get("catalogue/listing")
    if ref is None:
        return np.zeros(0, dtype=np.bool_)
    retired_I: NDArray[np.bool_] = load_arrays(store.get_part(ref))["retired"]
    return retired_I
