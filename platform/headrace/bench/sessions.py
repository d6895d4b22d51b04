"""``headrace bench sessions``: a log in event time, where a whole session is asked for at its start.

The query is what the user did before; the targets are the session's items, found or not among the first 20, 100 and
500 (TBGRecall's HR@K is this recall, arXiv 2508.11977). Items that the user had met before and others are told apart.
All models answer the same queries; they are named as methods: ``online``, ``online+model.kind="nsp"``. All else is as
in ``headrace bench stream``, but that intervals are a bootstrap over sessions. Imports neither ray nor wandb.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.bench.study import kinds
from headrace.bench.study.event_time import follow

_AS_SESSIONS = ('inputs.context="user"', 'inputs.sessions="set"')


def run(
    *,
    recipe: Path = Path("jobs/recipes/completejourney.toml"),
    overrides: Sequence[str] = (),
    **options: Any,  # noqa: ANN401 (those of ``follow``)
) -> dict[str, Any]:
    """See ``follow``, which has the other options; rows are tested on whole sessions.

    ConfigError where the recipe names no user.
    """
    return follow(kinds.sessions, recipe, [*_AS_SESSIONS, *overrides], **options)
