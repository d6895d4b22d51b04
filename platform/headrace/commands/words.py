"""What every command shares: how its words are read, and how what is refused is said."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.errors import ConfigError, DataError, HeadraceError, StoreBusyError

if TYPE_CHECKING:
    from headrace.config.recipe import Recipe
    from headrace.store.store import Store

_USER_MISTAKES = (ConfigError, DataError, StoreBusyError)

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE.toml ...] [a.b=c ...]",
        help="Recipes, of which later ones win over earlier ones, and overrides, which win over recipes.",
        show_default=False,
    ),
]
OfStore = Annotated[
    str | None,
    typer.Option("--store", help="URI or folder of a store, instead of a recipe's.", show_default=False),
]
Version = Annotated[int, typer.Argument(min=1, help="As headrace versions shows it.", show_default=False)]
Number = Annotated[int, typer.Argument(metavar="NUMBER", help="As `list` shows it.", show_default=False)]
Out = Annotated[
    Path | None, typer.Option(help="A .json file, or a folder for it, to write the result to.", show_default=False)
]
OptionalData = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of a log (Parquet) instead of synthetic sessions.", show_default=False),
]
Data = Annotated[Path, typer.Option(help="Folder of the log (Parquet).", show_default=False)]


def sorted_words(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Recipes and overrides: a word with ``=`` that is not a file is an override."""
    files = [word for word in words or () if "=" not in word or _is_file(word)]
    return files, [word for word in words or () if word not in files]


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # a word too long for a name
        return False


def recipe_of(words: Sequence[str] | None) -> "Recipe":
    """The recipe that these words resolve to; ConfigError where they do not."""
    from headrace.config.load import load_recipe

    return load_recipe(*sorted_words(words))


def open_store(uri: str) -> "Store":
    """The store at a URI or in a folder."""
    from headrace.store.store import Store

    return Store(uri)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """What Headrace refuses is said in red, without a traceback: exit status 2 for the user's mistakes, else 1."""
    try:
        yield
    except HeadraceError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, soft_wrap=True, highlight=False).print(Text(str(error), style="red"))
        raise typer.Exit(2 if isinstance(error, _USER_MISTAKES) else 1) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        typer.echo(f"no space is left ({error}): free some; the same command goes on from the newest commit", err=True)
        raise typer.Exit(1) from None
