"""The command line: wiring only. ``--help`` imports neither torch nor ray; each command imports what it needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace import __version__, environment
from headrace.commands.bench import bench
from headrace.commands.keep import keep, quarantine
from headrace.commands.service import service
from headrace.commands.words import Words, errors_in_words, recipe_of, sorted_words
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.config.recipe import Recipe
    from headrace.tracking.console import Observer
    from headrace.train.driver import Serving
    from headrace.train.follower import Tracker


app = typer.Typer(
    name="headrace",
    help="Keeps a recommender's recall model fresh: shards stream in, versions out, replicas go on answering.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(service)
app.add_typer(keep)
app.add_typer(quarantine, name="quarantine")
app.add_typer(bench, name="bench")


def main() -> None:
    """The ``headrace`` command."""
    app(prog_name="headrace")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """The options of no command."""
    environment.prepare()


@app.command()
def run(words: Words = None) -> None:
    """Stream shards into a model and answer with it, until stopped; the same command again goes on from the store."""
    with errors_in_words():
        from headrace.clock import monotonic_s
        from headrace.tracking.console import Observer

        observer = Observer()
        recipe = recipe_of(words)
        observer.notice(f"headrace {__version__}: run {recipe.run.name} in {recipe.run.dir}")
        _preflight(recipe, observer)
        began_s = monotonic_s()
        from headrace.train import driver

        serving = _serving(recipe)
        observer.phase("libraries loaded", monotonic_s() - began_s)
        code = driver.run(recipe, observer, serving, tracker=_tracker(recipe))
    raise typer.Exit(code)


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a log (Parquet).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=c ...]", help="Overrides, such as columns.item_id=NAME.", show_default=False),
]


@app.command("try")
def try_(
    folder: Folder,
    words: Overrides = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Write what was guessed as a recipe to this file.", show_default=False)
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="A Parquet file with names of the items, to show.", show_default=False)
    ] = None,
    name_column: Annotated[str | None, typer.Option(help="Its column of names.", show_default=False)] = None,
) -> None:
    """A first look at a log of your own, in about a minute: what it is, how well it can be predicted; needs no Ray."""
    with errors_in_words():
        overrides = _overrides("try", words)
        from headrace.onboard.first_look import Options, first_look

        first_look(Options(folder, recipe, names, name_column, overrides))


@app.command()
def init(
    folder: Folder,
    words: Overrides = None,
    recipe: Annotated[Path, typer.Option(help="The file to write.")] = Path("my.toml"),
) -> None:
    """Write a recipe for a log of your own: columns and settings are guessed, and every line says why."""
    with errors_in_words():
        overrides = _overrides("init", words)
        from headrace.onboard.first_look import Options, first_look

        first_look(Options(folder, recipe, overrides=overrides, learn=False))


def _overrides(command: str, words: Sequence[str] | None) -> list[str]:
    files, overrides = sorted_words(words)
    if files:
        raise ConfigError(
            f"{command} makes its own recipe; received {', '.join(files)}: only overrides a.b=c may follow"
        )
    return overrides


def _preflight(recipe: "Recipe", observer: "Observer") -> None:
    """Say what this machine lacks, before anything heavy starts; ConfigError where a run cannot work."""
    from headrace.onboard.preflight import findings, look

    found = list(findings(recipe, look(Path(recipe.run.dir))))
    if stopping := [finding.words for finding in found if finding.stops]:
        raise ConfigError("; ".join(stopping))
    for finding in found:
        observer.notice(f"note: {finding.words}")


def _serving(recipe: "Recipe") -> "Serving | None":
    """What the driver starts replicas with; None where the recipe wants none."""
    if not recipe.serve.enabled:
        return None
    from headrace.serving.app import Serving

    return Serving()


def _tracker(recipe: "Recipe") -> "Tracker | None":
    """What the driver mirrors the run with; None where the recipe wants no mirror."""
    if not recipe.tracking.enabled:
        return None
    from headrace.tracking.wandb_run import WandbRun

    return WandbRun()


if __name__ == "__main__":
    main()
