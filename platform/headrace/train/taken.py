"""What all ranks' rows of a cut amount to."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.evaluation.prequential import Queries
from headrace.train.group import Group
from headrace.train.intake import Intake


@dataclass(frozen=True)
class Taken:
    """What all ranks' rows of the cut amount to, alike on every rank."""

    number_N: NDArray[np.int64]
    """Items of the learned rows."""
    ts_N: NDArray[np.int64]
    fates: Mapping[str, int]
    """Rows by fate."""
    max_user_events: int
    repeats: tuple[int, int]
    """Targets that the cut's queries ask for, and how many lie in their own contexts."""
    num_clamped: int
    """Rows whose time lay too far ahead and was set to the present."""


def gather_taken(intake: Intake, asked: Queries, group: Group) -> Taken:
    """Gather it."""
    learned_N = intake.learned_N
    _, per_owner = np.unique(intake.owner_N[learned_N], return_counts=True)
    counts = intake.counts()
    parts = group.gather(
        {
            "number": intake.number_N[learned_N],
            "ts": intake.rows.ts_N[learned_N],
            "fates": np.array(list(counts.values()), dtype=np.int64),
            "max_user": np.array([per_owner.max(initial=0)], dtype=np.int64),
            "repeats": np.array(asked.count_repeats(), dtype=np.int64),
            "clamped": np.array([intake.num_clamped], dtype=np.int64),
        }
    )
    fates = np.sum([part["fates"] for part in parts], axis=0)
    num_asked, num_repeated = np.sum([part["repeats"] for part in parts], axis=0).tolist()
    return Taken(
        np.concatenate([part["number"] for part in parts]),
        np.concatenate([part["ts"] for part in parts]),
        dict(zip(counts, fates.tolist(), strict=True)),
        max(int(part["max_user"][0]) for part in parts),
        (num_asked, num_repeated),
        sum(int(part["clamped"][0]) for part in parts),
    )
