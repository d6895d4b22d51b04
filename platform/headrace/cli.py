"""The command line: wiring only. ``--help`` imports neither torch nor ray; each command imports what it needs."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from headrace import __version__
from headrace.errors import ConfigError, DataError, HeadraceError, StoreBusyError

if TYPE_CHECKING:
    from headrace.commit.manifest import Manifest
    from headrace.config.recipe import Recipe

_USER_MISTAKES = (ConfigError, DataError, StoreBusyError)

app = typer.Typer(
    name="headrace",
    help="Keeps a recommender's recall model fresh: shards stream in, versions out, replicas go on answering.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(
    help="What we claim, as commands that anyone can run: each prints a table and writes JSON.", no_args_is_help=True
)
app.add_typer(bench, name="bench")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE.toml ...] [a.b=c ...]",
        help="Recipes, of which later ones win over earlier ones, and overrides, which win over recipes.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="A .json file, or a folder for it, to write the result to.", show_default=False)
]
Data = Annotated[Path, typer.Option(help="Folder of the log (Parquet).", show_default=False)]


class BenchModule(Protocol):
    """What a module of ``bench/`` gives the command line."""

    def run(self, **options: Any) -> dict[str, Any]:  # noqa: ANN401 (each benchmark has its own)
        """Measure, print the table, and return the result, ready for JSON."""
        ...


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


@app.command()
def run(words: Words = None) -> None:
    """Stream shards into a model and answer with it, until stopped; the same command again goes on from the store."""
    with _errors_in_words():
        from headrace.clock import monotonic_s
        from headrace.tracking.console import Observer

        observer = Observer()
        recipe = _recipe(words)
        observer.notice(f"headrace {__version__}: run {recipe.run.name} in {recipe.run.dir}")
        began_s = monotonic_s()
        from headrace.train import driver

        serving = _serving(recipe)
        observer.phase("libraries loaded", monotonic_s() - began_s)
        code = driver.run(recipe, observer, serving)
    raise typer.Exit(code)


@app.command()
def versions(
    words: Words = None,
    store: Annotated[
        str | None, typer.Option(help="URI or folder of a store, instead of a recipe's.", show_default=False)
    ] = None,
) -> None:
    """List the commits of a store: what each took, its verdict, and the version it published."""
    with _errors_in_words():
        from headrace.tracking.console import align

        uri = store or _recipe(words).store_uri
        manifests = _manifests(uri)
        if not manifests:
            raise ConfigError(f"no commits in {uri}: name a store with --store, or the recipe and overrides of its run")
        header = ("cut", "version", "verdict", "events", "items", "digest", "reason")
        for line in align(header, [_version_row(manifest) for manifest in manifests], left=frozenset({2, 5, 6})):
            typer.echo(line)


@bench.command("train")
def bench_train(data: Data, device: str = "cpu", out: Out = None) -> None:
    """Training throughput of one worker against a plain single-process PyTorch loop."""
    _bench("train", out, data=data, device=device)


@bench.command("freshness")
def bench_freshness(
    seconds: Annotated[int, typer.Option(min=1, help="How long shards land, after the start.")] = 120,
    out: Out = None,
) -> None:
    """Seconds from a shard's landing to the first answers with it, at a fixed rate, on the synthetic stream."""
    _bench("freshness", out, seconds=seconds)


@bench.command("continual")
def bench_continual(
    data: Data,
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = "online",
    cycles: Annotated[str, typer.Option(help="Such as 1-4 or 1,2,5.")] = "1-16",
    seeds: Annotated[str, typer.Option(help="Such as 1 or 1-3.")] = "1",
    device: str = "cpu",
    out: Out = None,
) -> None:
    """The ADER protocol: train on one period, test on the next, cycle after cycle; imports no Ray."""
    with _errors_in_words():
        options = {"methods": tuple(methods.split(",")), "cycles": _numbers(cycles), "seeds": _numbers(seeds)}
    _bench("continual", out, data=data, device=device, **options)


def _bench(name: str, out: Path | None, **options: Any) -> None:  # noqa: ANN401 (each benchmark has its own)
    """Run ``headrace.bench.<name>.run(**options)`` and write what it returns."""
    with _errors_in_words():
        import importlib

        from headrace.bench.output import with_facts, write_json

        module: BenchModule = importlib.import_module(f"headrace.bench.{name}")
        result = with_facts(name, options, module.run(**options))
        if out is not None:
            typer.echo(f"written to {write_json(out, name, result)}")


def _recipe(words: Sequence[str] | None) -> "Recipe":
    """The recipe of these words: a word with ``=`` that is not a file is an override."""
    from headrace.config.load import load_recipe

    files = [word for word in words or () if "=" not in word or Path(word).is_file()]
    return load_recipe(files, [word for word in words or () if word not in files])


def _serving(recipe: "Recipe") -> Any:  # noqa: ANN401 (the driver's own protocol)
    """What the driver starts replicas with; None where the recipe wants none."""
    if not recipe.serve.enabled:
        return None
    from headrace.serving.app import Serving

    return Serving()


def _manifests(uri: str) -> list["Manifest"]:
    from headrace.commit.chain import Chain
    from headrace.store.store import Store

    return Chain(Store(uri)).manifests()


def _version_row(manifest: "Manifest") -> tuple[str, ...]:
    facts = manifest.facts
    version = "-" if manifest.version is None else str(manifest.version)
    events, items = (str(facts.get(name, "-")) for name in ("events", "num_items"))
    digest = manifest.state_digest[:12]
    return (str(manifest.cut), version, manifest.verdict, events, items, digest, manifest.reason)


def _numbers(text: str) -> tuple[int, ...]:
    """``1-4,7`` as (1, 2, 3, 4, 7)."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip(), re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise ConfigError(f"{text!r} is not a list of numbers: write such as 1-4 or 1,2,5")
        numbers.extend(range(first, last + 1))
    return tuple(numbers)


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """What Headrace refuses is said in red, without a traceback: exit status 2 for the user's mistakes, else 1."""
    try:
        yield
    except HeadraceError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, soft_wrap=True, highlight=False).print(Text(str(error), style="red"))
        raise typer.Exit(2 if isinstance(error, _USER_MISTAKES) else 1) from None


if __name__ == "__main__":
    main()
