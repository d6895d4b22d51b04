"""What a name on the command line runs: parts joined by plus signs, and endings.

A part is a kind of method or of expert that recipes know, with settings after colons ("replay:ratio=0.5"), or an
override of the recipe ("train.epochs=6"). What the recipe says of a kind holds unless the name says otherwise; its
``online`` section is always in, since warm-up and guard are no method. "default" is the recipe as it stands. Endings:
"-fresh" starts the learner's optimizer afresh at every cycle (an update gone wrong), "-untested" switches the
sequential test off, which would roll such an update back. References go their own ways; overrides may follow them, too
("joint+train.epochs=6").
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from headrace.config.answers import ExpertConfig
from headrace.config.load import load_recipe
from headrace.config.methods import MethodConfig
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError

FROZEN = "frozen"
"""Never updated after the warm-up, its counters neither."""
CYCLE_REFERENCES = ("joint", "joint_warm", "window", FROZEN)
"""Retrainers of the protocol: from scratch on everything so far; from the cycle before on everything so far; from the
cycle before on the last four periods."""
WINDOW_PERIODS = 4
STREAM_REFERENCES = {
    "retrain_hourly": (3600, True),
    "retrain_hourly_warm": (3600, False),
    "retrain_daily": (86400, True),
    "retrain_daily_warm": (86400, False),
    FROZEN: (None, False),
}
"""Retrainers in event time: seconds from one training to the next, and whether each begins from scratch."""
_FRESH, _UNTESTED = "-fresh", "-untested"


@dataclass(frozen=True)
class Variant:
    """One method of a study. Made from its name, read by the protocols."""

    name: str
    recipe: Recipe
    reference: str | None
    """The name of a reference; None: a learner that follows the log."""
    fresh_optimizer: bool

    @property
    def folder(self) -> str:
        """See ``folder_of``."""
        return folder_of(self.name)


def names_of(text: str) -> list[str]:
    """The names of a list that commas join, but for those within brackets."""
    names, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and not depth:
            names.append("")
        else:
            names[-1] += sign
    return names


def folder_of(name: str) -> str:
    """A method's name, as a folder may be called."""
    return re.sub(r"[^A-Za-z0-9_.=+-]", "_", name)


def variant(
    name: str, recipe: Path, overrides: Sequence[str] = (), references: Collection[str] = CYCLE_REFERENCES
) -> Variant:
    """The method of this name, on this recipe; ConfigError where a part is unknown.

    ``references`` are the names that the study gives to what its methods are held against.
    """
    base = load_recipe([str(recipe)], overrides)
    stem, ends = _endings(name)
    first, *rest = stem.split("+")
    overridden = all("=" in part.partition(":")[0] for part in rest)
    reference = first if first in references and overridden else None
    words = list(overrides)
    if stem != "default":
        if any(word.startswith("methods=") for word in overrides):
            raise ConfigError(
                f"method {name!r} would take the place of methods=..: say --methods default, or the kinds"
            )
        words += _words(rest if reference else [first, *rest], base, name, references)
    if _UNTESTED in ends:
        words.append("gate.window=0")
    made = load_recipe([str(recipe)], words)
    return Variant(name, made, reference, _FRESH in ends)


def as_asked(variant: Variant) -> Recipe:
    """Its recipe, as studies ask it: all queries, and no version beside it that nobody reads."""
    recipe = variant.recipe
    changes: dict[str, Any] = {"max_queries": "all", "frozen_every": 10**9}
    if variant.reference == FROZEN:
        changes["max_queries"] = 1
        train = recipe.train.model_copy(update={"epochs": 0})
        recipe = recipe.model_copy(update={"train": train, "gate": recipe.gate.model_copy(update={"window": 0})})
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=changes)})


def _endings(name: str) -> tuple[str, set[str]]:
    ends = set()
    while (end := next((end for end in (_FRESH, _UNTESTED) if name.endswith(end)), None)) is not None:
        ends.add(end)
        name = name.removesuffix(end)
    return name, ends


def _words(parts: Sequence[str], base: Recipe, name: str, references: Collection[str]) -> list[str]:
    """The overrides that a composition amounts to."""
    methods, experts = _kinds(MethodConfig), _kinds(ExpertConfig)
    settings: dict[str, dict[str, _Toml]] = {"online": {}}
    words = []
    for part in parts:
        kind, *given = part.split(":")
        if "=" in kind:
            words.append(part)
        elif kind in methods or kind in experts:
            settings[kind] = {key: _Toml(value) for key, _, value in (word.partition("=") for word in given)}
        else:
            known = ", ".join(["default", *methods, *experts, *references])
            raise ConfigError(f"method {name!r}: {kind!r} is not one of {known}")
    chosen = [_plain(config) | settings.get(config.kind, {}) for config in base.experts]
    chosen += [
        {"kind": kind} | settings[kind] for kind in settings if kind in experts and not _find(base.experts, kind)
    ]
    learned = [{"kind": kind} | _find(base.methods, kind) | settings[kind] for kind in settings if kind in methods]
    return [*words, f"methods={_toml(learned)}", f"experts={_toml(chosen)}"]


def _find(configs: Sequence[Any], kind: str) -> dict[str, Any]:
    """What a recipe says of this kind; nothing where it does not name it."""
    return next((_plain(config) for config in configs if config.kind == kind), {})


class _Toml(str):
    """A value as it stands in a recipe."""


def _plain(config: Any) -> dict[str, Any]:  # noqa: ANN401 (any section)
    return {key: value for key, value in config.model_dump(mode="json").items() if value is not None}


def _toml(value: Any) -> str:  # noqa: ANN401 (whatever a section holds)
    match value:
        case _Toml():
            return str(value)
        case bool():
            return str(value).lower()
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case dict():
            return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return repr(value)


def _kinds(union: Any) -> tuple[str, ...]:  # noqa: ANN401 (an annotated union of sections)
    """The kinds of a tagged union's members, in its order."""
    return tuple(member.model_fields["kind"].default for member in get_args(get_args(union)[0]))
