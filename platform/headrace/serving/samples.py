"""What the newest version answers to those who came last, as people read it."""

from collections.abc import Sequence

from headrace.config.recipe import Recipe
from headrace.serving.local import LocalRecall
from headrace.serving.request import ItemId
from headrace.store.store import Store
from headrace.tracking.samples import Sample, Shown

_SAMPLES = 6
_PAST = 5
_TOP = 5


def sample_answers(recipe: Recipe) -> list[Sample]:
    """A few pasts out of the newest version's history, and its answers; ConfigError where no version is published."""
    recall = LocalRecall(Store(recipe.store_uri))
    return [
        Sample(
            _shown(recall, items[-_PAST:], [None] * _PAST),
            max(0, len(items) - _PAST),
            _shown(recall, answer.items, answer.scores),
        )
        for items, answer in recall.newest(_SAMPLES, _TOP)
    ]


def _shown(recall: LocalRecall, items: Sequence[ItemId], scores: Sequence[float | None]) -> tuple[Shown, ...]:
    named = zip(items, recall.names(items), scores, strict=False)
    return tuple(Shown(item, name, score) for item, name, score in named)
