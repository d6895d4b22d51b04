"""The interface of a continual-learning method: empty hooks and capability flags.

A method returns what it wants and reaches for nothing: it never sees the trainer, the store or Ray, so methods compose
in any order and are tested without any of them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor

from headrace.inputs.examples import Examples
from headrace.models.base import RecallModel


class Method:
    """A method that does nothing; each hook says when it runs. All hooks run on every rank, alike."""

    needs_teacher: ClassVar[bool] = False
    """Whether the loop should keep a frozen copy of the model as it was before the increment."""

    def begin_increment(self, model: RecallModel, increment: int) -> None:
        """Runs after the table has grown, before the optimizer and the flat gradient buffer are built."""

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

    def end_increment(self, model: RecallModel, examples: Examples, increment: int) -> None:
        """Runs after the last step, before the commit."""

    def state_dict(self) -> Mapping[str, NDArray[Any]]:
        """Named arrays that the commit keeps."""
        return {}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what ``state_dict`` gave."""
