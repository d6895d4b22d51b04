"""From recipe files and ``a.b=c`` words to one frozen ``Recipe``: defaults < files, left to right < overrides."""

import datetime
import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

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
            _merge(values, tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name} is not TOML: {error}") from error
    for override in overrides:
        _merge(values, _parse_override(override))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(problem) for problem in error.errors())
        raise ConfigError("\n".join(problems)) from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as JSON, saved beside the run."""
    return json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n"


def read_resolved(text: str) -> Recipe:
    """The recipe that ``dump_recipe`` wrote."""
    return Recipe.model_validate_json(text)


def _parse_override(word: str) -> dict[str, Any]:
    key, equals, text = word.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{word!r} is not an override: write section.key=value, such as train.epochs=2")
    nested: Any = _parse_value(text)
    for part in reversed(parts):
        nested = {part: nested}
    return dict(nested)


def _parse_value(text: str) -> Any:  # noqa: ANN401 (whatever TOML can say)
    """A TOML value where it is one, else the text as it came: paths and names need no quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return None if text.lower() in ("none", "null") else text
    value = parsed.pop("value")
    if parsed or isinstance(value, datetime.date | datetime.time):  # no key takes a date: it is a name
        return text
    return value


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _explain(problem: Any) -> str:  # noqa: ANN401 (pydantic's own error record)
    known = sorted(set(_known_keys(Recipe)))
    place = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(_key(place), known, n=1, cutoff=0.0)
        return f"{'.'.join(place)}: no such key; the nearest is {near[0]}"
    while place and _key(place) not in known:  # pydantic names the alternatives of a union too
        place.pop()
    if problem["type"] == "union_tag_not_found":
        return f"{'.'.join(place)}: it names no kind (received {problem['input']!r}): add a kind to it"
    message = problem["msg"].removeprefix("Value error, ")
    received = "" if isinstance(problem["input"], dict) else f" (received {problem['input']!r})"
    return f"{'.'.join(place)}: {message}{received}" if place else f"{message}{received}"


def _key(place: list[str]) -> str:
    """A place in a recipe as ``_known_keys`` names it: without the numbers of a list's members."""
    return ".".join(part for part in place if not part.isdigit())


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        yield prefix + name
        for inner in _sections(info.annotation):
            yield from _known_keys(inner, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 (any type expression)
    """The sections inside a type: itself, or the members of a union, a tuple or an ``Annotated``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
