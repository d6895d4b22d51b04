"""What an increment's targets are and how they weigh, where the objective says more than ``columns.target_kinds`` does.

Its levels are behaviours that rows show; by its scene, each value of a column has the same share of the weight, however
many its targets are (TBGRecall, arXiv 2508.11977). Shape legend: N rows, T targets, S scenes.
"""

from dataclasses import replace

import numpy as np

from headrace.config.models import NspConfig
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError
from headrace.inputs.ahead import ahead
from headrace.inputs.examples import Examples
from headrace.inputs.levels import level_of, shows
from headrace.inputs.told import feature_codes
from headrace.records import Rows
from headrace.replay.packed import rows_of
from headrace.train import questions
from headrace.train.group import Group
from headrace.train.intake import Intake


def targets(intake: Intake, recipe: Recipe, group: Group, reads_empty: bool) -> Examples:
    """The examples of an increment, with their levels and weights. Every rank calls it.

    ``reads_empty``: the model learns from empty contexts, too.
    """
    objective, rows = recipe.objective, intake.rows
    level_N = level_of(rows, objective.levels, recipe.columns.context) if objective.levels else None
    made = questions.examples(intake, recipe.inputs, objective.examples, reads_empty, level_N)
    if isinstance(recipe.model, NspConfig):
        made = ahead(made, recipe.model.sessions_ahead, recipe.model.ahead_weight, recipe.model.session_gap_s)
    return made if objective.scene is None else by_scene(made, rows, objective.scene, group)


def by_scene(made: Examples, rows: Rows, column: str, group: Group) -> Examples:
    """The same with the whole weight spread evenly over the scenes, and in a scene as it was; all ranks' count.

    Rows without a value are a scene, too.
    """
    code_N = feature_codes(column, rows.context[column]) if column in rows.context else np.zeros(len(rows), np.int64)
    scene_T = code_N[rows_of(made, np.arange(len(made.target_T)), rows)]
    scene, inverse_T = np.unique(scene_T, return_inverse=True)
    parts = group.gather({"scene": scene, "weight": np.bincount(inverse_T, made.weight_T, len(scene))})
    scene_S, place = np.unique(np.concatenate([part["scene"] for part in parts]), return_inverse=True)
    weight_S = np.bincount(place, np.concatenate([part["weight"] for part in parts]), len(scene_S))
    share = weight_S.sum() / max(1, int((weight_S > 0.0).sum()))
    factor_S = np.divide(share, weight_S, out=np.zeros(len(scene_S)), where=weight_S > 0.0)
    factor_T = factor_S[np.searchsorted(scene_S, scene_T)]
    return replace(made, weight_T=(made.weight_T * factor_T).astype(np.float32))


def check_behaviours(rows: Rows, recipe: Recipe, group: Group) -> None:
    """At the warm-up, on every rank: ConfigError where levels or scene name what none of its rows has."""
    objective, carried = recipe.objective, recipe.columns.context
    wanted = [*objective.levels, *([] if objective.scene is None else [objective.scene])]
    if not wanted:
        return
    found = np.array([len(rows), *(_has(rows, name, carried) for name in wanted)], dtype=np.int64)
    num_rows, *counts = np.sum([part["found"] for part in group.gather({"found": found})], axis=0).tolist()
    missing = [name for name, count in zip(wanted, counts, strict=True) if not count]
    if num_rows and missing:
        raise ConfigError(
            f"objective names {missing}, and no row of the warm-up has it, as a kind of event or as a column; "
            f"columns.context carries {list(carried)}: name what the log has, or carry the column"
        )


def _has(rows: Rows, name: str, carried: tuple[str, ...]) -> bool:
    return name in rows.context if name in carried else bool(shows(rows, name, carried).any())
