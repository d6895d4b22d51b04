"""A few sessions and what the newest version answers to them, in words, for people who look at a finished run."""

from headrace.config.recipe import Recipe
from headrace.serving.client import StoreSessions
from headrace.serving.local import LocalRecall
from headrace.store.store import Store

_SAMPLES = 10
_TOP = 5


def sample_answers(recipe: Recipe) -> list[tuple[str, str]]:
    """Sessions such as the run's own client asks with, and answers; ConfigError where no version is published."""
    store = Store(recipe.store_uri)
    recall, sessions = LocalRecall(store), StoreSessions(store, recipe.seed)
    asked = [sessions(number) for number in range(_SAMPLES)]
    answers = recall.recall_many([{"items": items, "k": _TOP} for items in asked])
    return [
        (
            ", ".join(map(str, items)),
            ", ".join(f"{item} ({score:.3f})" for item, score in zip(answer.items, answer.scores, strict=True)),
        )
        for items, answer in zip(asked, answers, strict=True)
    ]
