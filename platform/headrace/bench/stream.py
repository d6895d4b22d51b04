"""``headrace bench stream``: a log with real times, in event time, through production's own increment.

Each slice is answered by the version that is live when it comes: what users would have got, provided that an increment
takes less than a slice of event time, which is printed. Methods are named as in ``headrace bench continual``; they are
held against retrainers that work by the hour or by the day, against what was never updated, and against each counter.
Rows are days of event time (or slices, where these are longer); what is done stays in the folder. Intervals are a
paired bootstrap over slices. Imports neither ray nor wandb.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.bench.study import kinds
from headrace.bench.study.event_time import follow


def run(
    *,
    recipe: Path = Path("jobs/recipes/globo.toml"),
    overrides: Sequence[str] = (),
    **options: Any,  # noqa: ANN401 (those of ``follow``)
) -> dict[str, Any]:
    """See ``follow``, which has the other options; rows are tested on the next item."""
    return follow(kinds.stretches, recipe, overrides, **options)
