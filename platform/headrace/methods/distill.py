"""Distillation: the model as it was before the increment teaches the one that learns (ADER, arXiv 2007.12000).

A frozen copy knows all that was learned so far, and gives its whole distribution where a replayed example gives one
item. Its weight is ADER's: the more items and examples are new, the less the past is held.

Measured on three tenths of DIGINETICA (width 64, one seed, 8 epochs, then 4 a cycle), R@20 of the neural expert in
cycles 2, 3 and 4: without the past 47.8, 48.0, 46.3; with as many replayed examples 47.1, 46.6, 44.1, since targets
that come again are learned by heart; these distilled beside their own targets 48.2, 48.0; by the teacher alone 48.9,
48.8, 47.1. In the mean of cycles 1 to 5: 47.3 against 46.5, MRR@20 18.3 against 17.8, and nothing gained in the blend.
"""

from typing import ClassVar

from headrace.config.methods import DistillConfig
from headrace.methods.base import Lesson, Method, Mix


class Distill(Method):
    """Asks the loop for a teacher, and says how much it is heard."""

    needs_teacher: ClassVar[bool] = True

    def __init__(self, config: DistillConfig) -> None:
        self.config = config

    def lesson(self, mix: Mix) -> Lesson | None:
        """Nothing where there is nobody to learn from or with; see ``Method``.

        The weight is that of one mean against another, as in ADER, so it is dealt out over the taught examples.
        """
        config = self.config
        num_new = mix.num_new if config.rows in ("new", "both") else 0
        num_taught = num_new + (mix.num_replayed if config.rows in ("replayed", "both") else 0)
        if not (num_taught and mix.num_new and mix.num_old_items):
            return None
        weight = config.weight
        if config.adaptive:
            weight *= (mix.num_old_items / mix.num_items * num_taught / mix.num_new) ** 0.5
        each = weight * mix.num_new / num_taught
        return Lesson(
            new=each if config.rows in ("new", "both") else 0.0,
            replayed=each if config.rows in ("replayed", "both") else 0.0,
            own_targets=config.own_targets,
            temperature=config.temperature,
        )
