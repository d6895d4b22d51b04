"""The interface of a continual-learning method: empty hooks and capability flags.

A method returns what it wants and reaches for nothing: it never sees the trainer, the store or Ray, so methods compose
in any order and are tested without any of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.inputs.contexts import Contexts
from headrace.inputs.examples import Examples
from headrace.models.base import RecallModel
from headrace.models.offset import Offset


@dataclass(frozen=True)
class Mix:
    """What an increment is about to train on, over all ranks. Made by ``TrainStep``, read by methods."""

    num_new: int
    """Targets of the increment's own examples."""
    num_replayed: int
    """Targets of earlier increments' examples."""
    num_items: int
    """Items that are scored."""
    num_old_items: int
    """Those of them that the teacher knows."""


@dataclass(frozen=True)
class Lesson:
    """How much the teacher is heard. Made by a method, read by ``TrainStep``."""

    new: float
    """Weight of the teacher's word at a new target, whose own word weighs 1."""
    replayed: float
    """The same at a replayed target."""
    own_targets: float
    """Weight of a replayed target's own word."""
    temperature: float
    """By which both models' scores are divided."""


@dataclass(frozen=True)
class Answered:
    """How the learner's model answered a cut that it has not learned from, over all ranks. Made by the loop."""

    num_queries: int
    recall: float
    """Of the targets, at 20."""


PriorOf = Callable[[Contexts], Offset]
"""An offset to the logits of the queries that these contexts ask."""


@dataclass(frozen=True)
class Learned:
    """What an increment has been trained on, on this rank. Made by ``TrainStep``, read by methods."""

    examples: Examples
    """New ones; their contexts hold no item without a row."""
    slot_I: NDArray[np.int64]
    """The row of the table of each item number; -1: it has none."""
    slot_E: NDArray[np.int64]
    """Rows of the items that were scored, ascending; alike on every rank."""
    increment: int
    seed: int
    """Of the recipe."""
    device: torch.device
    sum_: Callable[[Tensor], None]
    """Replaces a tensor (on this device) by its sum over ranks. Every rank must make the same calls."""
    prior: PriorOf | None = None
    """What was added to the logits of contexts' queries, by column of ``slot_E``."""
    replayed: Examples | None = None
    """Examples of earlier increments that were trained beside them; contexts likewise."""


class Method:
    """A method that does nothing; each hook says when it runs. All hooks run on every rank, alike."""

    needs_teacher: ClassVar[bool] = False
    """Whether the loop should keep a frozen copy of the model as it was before the increment."""

    def observe(self, answered: Answered) -> None:
        """Runs after a cut was scored and before ``begin_increment``, unless the learner has just gone back."""

    def begin_increment(self, model: RecallModel, increment: int) -> None:
        """Runs after the table has grown, before the optimizer and the flat gradient buffer are built."""

    def reset_rows(self, slot_R: NDArray[np.int64]) -> None:
        """Runs after ``begin_increment``, where rows of the table belong to other items from now on."""

    def penalties(self, model: RecallModel) -> Mapping[str, Tensor]:
        """Runs in every step, on every rank, before backward: named scalars, added to the loss.

        They must be the same on every rank; the loop adds 1/world of them on each.
        """
        return {}

    def learning_rate_scale(self, steps_since_fresh: int) -> float:
        """Runs in every step: multiplies the learning rate. ``steps_since_fresh`` counts from the optimizer's birth."""
        return 1.0

    def max_gradient_norm(self) -> float | None:
        """Runs in every step: a norm to which the summed gradient is scaled down. The smallest of all methods holds."""
        return None

    def replay_ratio(self) -> float:
        """Runs before training: examples of earlier increments to train on, for each new one; the highest holds."""
        return 0.0

    def lesson(self, mix: Mix) -> Lesson | None:
        """Runs before an increment's first step where there is a teacher, if ``needs_teacher``; None: it is not heard.

        One method of a recipe teaches, at most.
        """
        return None

    def end_increment(self, model: RecallModel, learned: Learned) -> None:
        """Runs after the last step, before the commit. What it keeps must be the same on every rank."""

    def facts(self) -> Mapping[str, float]:
        """Runs after ``end_increment``: figures for the commit, by name; alike on every rank, and no wall time."""
        return {}

    def state_dict(self) -> Mapping[str, NDArray[Any]]:
        """Named arrays that the commit keeps."""
        return {}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what ``state_dict`` gave."""
