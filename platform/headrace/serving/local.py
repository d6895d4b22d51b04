"""A version in this process, for notebooks and batch jobs: the service's answers without Ray and without a network.

Questions go through the same checks and the same code as requests to ``/v1/recall``, so answers are the service's:
the same items but for ties, scores within 1e-6 relative.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from headrace.bundles.bundle import load_bundle
from headrace.bundles.publish import read_bundle, read_pointer
from headrace.clock import wall_ms
from headrace.errors import ConfigError
from headrace.history.past import newest_session, of_session
from headrace.serving.request import ItemId, Question, parse
from headrace.serving.service import Answer, answer
from headrace.store.store import Store

_BATCH = 256
_EVER = np.iinfo(np.int64).max
_NAME = "local"


class LocalRecall:
    """One version, loaded once; it stays what it is while the store goes on. Not for several threads at once."""

    def __init__(self, store: Store, version: int | None = None, device: str = "cpu") -> None:
        """StoreError where the version is missing or damaged; ConfigError where the store has published none."""
        pointer = read_pointer(store)
        if pointer is None:
            raise ConfigError(f"nothing is published in {store.uri} yet: train a first version there (headrace run)")
        bundle = read_bundle(store, pointer.version, pointer.sha256) if version is None else read_bundle(store, version)
        self._loaded = load_bundle(store, bundle, device)

    @property
    def version(self) -> int:
        """Its number."""
        return self._loaded.version

    @property
    def items(self) -> list[ItemId]:
        """The ids that may be answered."""
        return self._loaded.catalogue.raw_ids(self._loaded.recommender.eligible.number_E)

    def names(self, items: Sequence[ItemId]) -> list[str | None]:
        """What the side feed calls these items; None where it has not said."""
        numbers = self._loaded.catalogue.numbers(np.array(items, dtype=object))
        return [self._loaded.catalogue.listing.name(number) for number in numbers.tolist()]

    def newest(self, count: int, k: int) -> list[tuple[list[ItemId], Answer]]:
        """Those who came last, newest first: the items that they are asked from, oldest first, and ``k`` answers.

        The items are their newest session's, or all that is known of them, as ``inputs.context`` says; the answers are
        those to a request that names the user, so that what was told of their events counts.
        """
        loaded = self._loaded
        assert loaded.past is not None, "loaded with its history"
        owners = loaded.past.newest_owners(count)
        past_of = loaded.past.of(owners)
        pasts = [past_of[owner] for owner in owners]
        if loaded.inputs.context == "session":
            pasts = [of_session(past, newest_session(past, _EVER) or 0) for past in pasts]
        items = [loaded.catalogue.raw_ids(past["item"][-loaded.inputs.max_events :]) for past in pasts]
        asked = [Question(k=k, known_owner=owner) for owner in owners]
        return list(zip(items, answer(loaded, asked, wall_ms(), _NAME) if asked else [], strict=True))

    def recall(
        self,
        items: Sequence[ItemId] = (),
        k: int = 20,
        *,
        user_id: int | str | None = None,
        **further: Any,  # noqa: ANN401 (checked as a request's keys are)
    ) -> Answer:
        """The ``k`` best next items after ``items`` (oldest first), for this user where one is named.

        ``further`` are the other keys of ``POST /v1/recall``: exclude, exclude_seen, session_id, ts (ISO 8601 or
        milliseconds), context, explain. RequestError, a ValueError, says what is wrong with a question.
        """
        question = {"items": list(items), "k": k, **further} | ({} if user_id is None else {"user_id": user_id})
        return self.recall_many([question])[0]

    def recall_many(self, questions: Iterable[Mapping[str, Any]]) -> list[Answer]:
        """The answers to many questions, each with the keys of ``POST /v1/recall``, in their order."""
        asked = [parse(json.dumps(question, default=_plain).encode()) for question in questions]
        answers: list[Answer] = []
        for first in range(0, len(asked), _BATCH):
            answers += answer(self._loaded, asked[first : first + _BATCH], wall_ms(), _NAME)
        return answers


def _plain(value: object) -> Any:  # noqa: ANN401 (whatever JSON knows)
    """Numbers and arrays of numpy, as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} is not JSON: send ids as integers or strings")
