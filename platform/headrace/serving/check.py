"""Does an answer belong to one version? Recompute it with the bundle that it names, and compare.

Mixed: a score that is off by more than 1e-4 relative, or another item than those whose score lies within that of the
k-th. Equal scores may come in any order.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headrace.bundles.bundle import Loaded, Loader
from headrace.bundles.publish import read_bundle
from headrace.errors import StoreError
from headrace.serving.request import parse
from headrace.serving.service import answer
from headrace.store.store import Store

TOLERANCE = 1e-4
_SPARE = 50  # further items to recompute, since those that tie with the k-th may be answered too


class Checker:
    """Recomputes answers from the store. Remembers the version it used last; for one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loader = Loader(store)
        self._loaded: Loaded | None = None

    def is_mixed(self, request: bytes, response: Mapping[str, Any]) -> bool | None:
        """Whether the answer is not its version's; None where that version's parts are no longer in the store."""
        loaded = self._version(int(response["version"]), parse(request).user is not None)
        return None if loaded is None else mixed(loaded, request, response)

    def _version(self, version: int, with_past: bool) -> Loaded | None:
        """History is large: it is read only where a request names a user."""
        before = self._loaded
        if before is not None and before.version == version and (before.past is not None or not with_past):
            return before
        try:
            self._loaded = self._loader.load(read_bundle(self._store, version), with_past)
        except (StoreError, OSError):
            return None
        return self._loaded


def mixed(loaded: Loaded, request: bytes, response: Mapping[str, Any]) -> bool:
    """Whether ``response`` is another answer than the one that this version gives to ``request``."""
    question = parse(request)
    k = question.k
    wider = replace(question, k=k + _SPARE, as_of_ms=response["as_of_ms"])
    again = answer(loaded, [wider], 0, str(response["replica"]))[0]
    items, scores = list(response["items"]), list(response["scores"])
    said = (response["unknown"], response.get("num_recent"))
    if len(items) != min(k, len(again.items)) or len(set(items)) != len(items):
        return True
    if said != (again.unknown, again.num_recent):
        return True
    if not items:
        return False
    score_of = dict(zip(again.items, again.scores, strict=True))
    last = again.scores[len(items) - 1]
    if any(_differ(score, score_of.get(item, last)) for item, score in zip(items, scores, strict=True)):
        return True
    missing = set(again.items[: len(items)]) - set(items)
    return any(_differ(score_of[item], last) for item in missing)


def _differ(score: float, truth: float) -> bool:
    return abs(score - truth) > TOLERANCE * abs(truth)
