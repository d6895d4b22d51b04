"""docs/recipes.md, made from the schema: every key of a recipe, with its default and what it is for.

``python -m headrace.config.reference > docs/recipes.md`` writes it; a test keeps it true.
"""

import json
import sys
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from headrace.config.recipe import Recipe

_HEAD = """# Recipes

Every key of a recipe, made from the schema (`python -m headrace.config.reference`). A recipe is TOML; a word `a.b=c` on
the command line sets one key, later files win over earlier ones, and unknown keys are refused with the nearest one
named. `headrace init DIR` writes a recipe for a log; `jobs/recipes/` has some to read.
"""


def reference() -> str:
    """The whole page."""
    parts = [_HEAD.rstrip()]
    plain = [(name, field) for name, field in Recipe.model_fields.items() if not _models(field.annotation)]
    parts += ["", "## Top level", "", *_table(plain)]
    for name, field in Recipe.model_fields.items():
        is_list = _is_tuple(field.annotation)
        for model in _models(field.annotation):
            kind = model.model_fields.get("kind")
            title = f"[[{name}]]" if is_list else f"[{name}]"
            suffix = "" if kind is None else f", `kind = {json.dumps(kind.default)}`"
            parts += ["", f"## `{title}`{suffix}", "", _text(model.__doc__), "", *_section(name, model)]
    return "\n".join(parts) + "\n"


def _section(path: str, model: type[BaseModel]) -> Iterator[str]:
    """A section's own keys, then the sections in it."""
    fields = [(name, field) for name, field in model.model_fields.items() if name != "kind"]
    inner = [(name, field) for name, field in fields if _models(field.annotation)]
    yield from _table([pair for pair in fields if pair not in inner])
    for name, field in inner:
        for deeper in _models(field.annotation):
            kind = deeper.model_fields.get("kind")
            suffix = "" if kind is None else f", `kind = {json.dumps(kind.default)}`"
            default = "" if field.default is not None else " Left out by default."
            yield from ("", f"### `[{path}.{name}]`{suffix}", "", f"{_text(deeper.__doc__)}{default}", "")
            yield from _section(f"{path}.{name}", deeper)


def _table(fields: list[tuple[str, FieldInfo]]) -> Iterator[str]:
    if not fields:
        yield "No keys of its own."
        return
    yield from ("| key | default | what |", "| --- | --- | --- |")
    for name, field in fields:
        yield f"| `{name}` | {_default(field)} | {_text(_kinds(field.annotation) + (field.description or ''))} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{json.dumps(value)}`"


def _kinds(annotation: Any) -> str:  # noqa: ANN401 (whatever a field may be annotated with)
    """The words that a key may be, where it is one of a few."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    arguments = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    words = [str(word) for one in arguments if get_origin(one) is Literal for word in get_args(one)]
    return f"One of {', '.join(json.dumps(word) for word in words)}. " if len(words) > 1 else ""


def _models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401
    """The sections that a field may hold; none for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _is_tuple(annotation: Any) -> bool:  # noqa: ANN401
    return get_origin(annotation) is tuple


def _text(text: str | None) -> str:
    """On one line, fit for a table."""
    return " ".join((text or "").replace("``", "`").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
