"""From recipe files and ``a.b=c`` words to one frozen ``Recipe``: defaults < files, left to right < overrides."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from headrace.config.recipe import Recipe
from headrace.errors import ConfigError


def load_recipe(files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of these TOML files and overrides; ConfigError names the key, the value received and the remedy."""
    values: dict[str, Any] = {}
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"no recipe at {name}: name a TOML file, such as jobs/recipes/globo.toml")
        try:
            _merge(values, tomllib.loads(path.read_text()))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{name} is not TOML: {error}") from error
    for override in overrides:
        _merge(values, _parse_override(override))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as JSON, saved beside the run."""
    return json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n"


def read_resolved(text: str) -> Recipe:
    """The recipe that ``dump_recipe`` wrote."""
    return Recipe.model_validate_json(text)


def _parse_override(word: str) -> dict[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"{word!r} is not an override: write section.key=value, such as train.epochs=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None if text.lower() in ("none", "null") else text
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _explain(problem: Any) -> str:  # noqa: ANN401 (pydantic's own error record)
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = sorted(_known_keys(Recipe))
        near = difflib.get_close_matches(place, known, n=1, cutoff=0.0)
        return f"{place}: no such key; the nearest is {near[0]}" if near else f"{place}: no such key"
    message = problem["msg"].removeprefix("Value error, ")
    received = "" if isinstance(problem["input"], dict) else f" (received {problem['input']!r})"
    return f"{place + ': ' if place else ''}{message}{received}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        yield prefix + name
        for inner in _sections(info.annotation):
            yield from _known_keys(inner, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 (any type expression)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _sections(part)
