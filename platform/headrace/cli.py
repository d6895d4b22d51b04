"""The command line: wiring only. ``--help`` imports neither torch nor ray; each command imports what it needs."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from headrace import __version__, environment
from headrace.errors import ConfigError, DataError, HeadraceError, StoreBusyError

if TYPE_CHECKING:
    from headrace.commit.manifest import Manifest
    from headrace.config.recipe import Recipe
    from headrace.store.store import Store
    from headrace.train.driver import Serving

_REASON_CHARACTERS = 100
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
quarantine = typer.Typer(
    help="What was set aside, with its reason, and how it comes back once it is repaired.", no_args_is_help=True
)
app.add_typer(quarantine, name="quarantine")

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
    environment.prepare()


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


@app.command("try")
def try_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a log (Parquet).", show_default=False)],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[a.b=c ...]", help="Overrides, such as columns.item_id=NAME.", show_default=False),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Write what was guessed as a recipe to this file.", show_default=False)
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="A Parquet file with names of the items, to show.", show_default=False)
    ] = None,
    name_column: Annotated[str | None, typer.Option(help="Its column of names.", show_default=False)] = None,
) -> None:
    """A first look at a log of your own, in about a minute: what it is, how well it can be predicted; needs no Ray."""
    with _errors_in_words():
        files, overrides = _sorted_words(words)
        if files:
            raise ConfigError(f"try makes its own recipe; received {', '.join(files)}: only overrides a.b=c may follow")
        from headrace.onboard.first_look import Options, first_look

        first_look(Options(folder, recipe, names, name_column, overrides))


@app.command()
def versions(words: Words = None, store: OfStore = None) -> None:
    """List the commits that are still in a store: what each took, its verdict, the version it published."""
    with _errors_in_words():
        from headrace.commit.chain import Chain
        from headrace.commit.pins import pinned
        from headrace.tracking.console import align

        opened = _store(store or _recipe(words).store_uri)
        manifests, pins = Chain(opened).manifests(), pinned(opened)
        if not manifests:
            raise ConfigError(
                f"no commits in {opened.uri}: name a store with --store, or the recipe and overrides of its run"
            )
        header = ("cut", "version", "pin", "verdict", "events", "items", "digest", "reason")
        rows = [_version_row(manifest, manifest.version in pins) for manifest in manifests]
        for line in align(header, rows, left=frozenset({2, 3, 6, 7})):
            typer.echo(line)
        if num_gone := manifests[-1].cut + 1 - len(manifests):
            typer.echo(f"{num_gone} more have left the store, by store.keep and store.keep_s; their figures stay")


@app.command()
def pin(version: Version, words: Words = None, store: OfStore = None) -> None:
    """Keep a version, its commit and all of its parts until it is unpinned, whatever its age."""
    with _errors_in_words():
        from headrace.commit import pins

        manifest = pins.pin(_store(store or _recipe(words).store_uri), version)
        typer.echo(f"version {version} (cut {manifest.cut}) stays until it is unpinned")


@app.command()
def unpin(version: Version, words: Words = None, store: OfStore = None) -> None:
    """Let a pinned version go as others do, when the run commits next."""
    with _errors_in_words():
        from headrace.commit import pins

        pins.unpin(_store(store or _recipe(words).store_uri), version)
        typer.echo(f"version {version} leaves as others do")


@quarantine.command("list")
def quarantine_list(
    words: Words = None,
    store: OfStore = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also what was released, and what came late or lay ahead in time.")
    ] = False,
) -> None:
    """List what was set aside: files, single rows, rejected cuts; numbers are those of the records in the ledger."""
    with _errors_in_words():
        from headrace.feed.quarantine import set_aside
        from headrace.tracking.console import align

        uri = store or _recipe(words).store_uri
        asides = set_aside(_store(uri))
        shown = [a for a in asides if every or (a.kind != "policy" and a.state != "released")]
        header = ("number", "after cut", "where", "rows", "state", "reason")
        rows = [
            (
                str(a.number),
                "-" if a.after_cut < 0 else str(a.after_cut),
                a.where,
                str(a.num_rows or "?"),
                a.state,
                _shortened(a.reason),
            )
            for a in shown
        ]
        for line in align(header, rows, left=frozenset({2, 4, 5})) if rows else [f"nothing is set aside in {uri}"]:
            typer.echo(line)
        if hidden := len(asides) - len(shown):
            typer.echo(f"{hidden} more: released, late, or ahead in time (--all)")


@quarantine.command("show")
def quarantine_show(number: Number, words: Words = None, store: OfStore = None) -> None:
    """Show the whole reason, and the first rows."""
    with _errors_in_words():
        from headrace.feed.quarantine import find, first_rows

        opened = _store(store or _recipe(words).store_uri)
        aside = find(opened, number)
        typer.echo(f"{aside.where}: {aside.num_rows or 'an unknown number of'} rows, {aside.state}\n{aside.reason}")
        for line in first_rows(opened, aside):
            typer.echo(f"  {line}")


@quarantine.command("release")
def quarantine_release(number: Number, words: Words = None, store: OfStore = None) -> None:
    """Put a rejected cut's rows back, or have a file looked at again, once it is repaired or the recipe is mended."""
    with _errors_in_words():
        from headrace.feed.quarantine import ask_release

        aside = ask_release(_store(store or _recipe(words).store_uri), number)
        what = "is looked at again" if aside.kind == "file" else f"is put back ({aside.num_rows} rows)"
        typer.echo(f"{aside.where} {what}, at once where the run goes on, else when it is started again")


@bench.command("train")
def bench_train(words: Words = None, data: OptionalData = None, device: str = "cpu", out: Out = None) -> None:
    """Training throughput of one worker against a plain single-process PyTorch loop."""
    _bench("train", words, out, data=data, device=device)


@bench.command("freshness")
def bench_freshness(
    words: Words = None,
    seconds: Annotated[int, typer.Option(min=1, help="How long shards land, after the start.")] = 120,
    modes: Annotated[
        str, typer.Option(help="Joined by commas: unbounded, and per_increment, a new fit() for each increment.")
    ] = "unbounded",
    out: Out = None,
) -> None:
    """Seconds from a shard's landing to the first answers with it, at a fixed rate, on the synthetic stream."""
    _bench("freshness", words, out, seconds=seconds, modes=modes)


@bench.command("load")
def bench_load(
    words: Words = None,
    rates: Annotated[str, typer.Option(help="Events a second, rising, separated by commas.")] = "500,1000,2000,3000",
    seconds: Annotated[int, typer.Option(min=1, help="How long each rate lasts.")] = 40,
    burst_seconds: Annotated[int, typer.Option(min=1, help="How long ten times the usual rate lasts.")] = 60,
    items: Annotated[int, typer.Option(min=100, help="Items of the stream.")] = 10_000,
    backlog: Annotated[bool, typer.Option(help="Whether an hour's events land at once, too.")] = True,
    out: Out = None,
) -> None:
    """What the whole road carries: a sustained rate, a burst, an hour's backlog; freshness in each."""
    options = {"rates": rates, "seconds": seconds, "burst_seconds": burst_seconds, "items": items, "backlog": backlog}
    _bench("load", words, out, **options)


@bench.command("soak")
def bench_soak(
    words: Words = None,
    minutes: Annotated[float, typer.Option(min=1, help="How long the stream goes on.")] = 60.0,
    settled_minutes: Annotated[float, typer.Option(min=0, help="From when on growth counts.")] = 10.0,
    out: Out = None,
) -> None:
    """What grows while a stream goes on: memory by kind of process, processes, actors, files."""
    _bench("soak", words, out, minutes=minutes, settled_minutes=settled_minutes)


@bench.command("feed")
def bench_feed(
    cuts: Annotated[int, typer.Option(min=2, help="How many, of each size.")] = 30,
    rows: Annotated[str, typer.Option(help="Rows of a cut; several, separated by commas.")] = "200,20000",
    out: Out = None,
) -> None:
    """Seconds from a shard's landing to its rows at the last of two ranks, through the ledger and Ray Data."""
    _bench("feed", None, out, cuts=cuts, rows=rows)


@bench.command("replay")
def bench_replay(
    max_mib: Annotated[int, typer.Option(min=1, help="Size of the buffer.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Examples asked for at once.")] = 256,
    batches: Annotated[int, typer.Option(min=1, help="How many, each way.")] = 400,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests that do not wait for one another.")] = 4,
    out: Out = None,
) -> None:
    """Examples a second from replay, in process and through its actor; what a snapshot writes, and a restore takes."""
    _bench("replay", None, out, max_mib=max_mib, batch=batch, batches=batches, in_flight=in_flight)


@bench.command("gate")
def bench_gate(
    words: Words = None,
    data: OptionalData = None,
    increments: Annotated[int, typer.Option(min=0, help="Clean ones; 0: none.")] = 1000,
    poisons: Annotated[int, typer.Option(min=0, help="Poisoned ones; 0: none.")] = 20,
    every: Annotated[int, typer.Option(min=2, help="Increments from one poisoned to the next.")] = 10,
    device: str = "cpu",
    out: Out = None,
) -> None:
    """False alarms of the gate's sequential test, and the cuts that it takes to see a poisoned increment."""
    _bench("gate", words, out, data=data, increments=increments, poisons=poisons, every=every, device=device)


@bench.command("stream")
def bench_stream(
    data: Data,
    words: Words = None,
    increments: Annotated[
        int | None, typer.Option(min=1, help="Cuts after the warm-up; all of the log by default.", show_default=False)
    ] = None,
    device: str = "cpu",
    out: Out = None,
) -> None:
    """A log in event time: what is served against what was never updated and against each expert; imports no Ray."""
    _bench("stream", words, out, data=data, increments=increments, device=device)


@bench.command("staleness")
def bench_staleness(
    data: Data,
    words: Words = None,
    increments: Annotated[int, typer.Option(min=1, help="Minutes after the warm-up.")] = 2880,
    every: Annotated[int, typer.Option(min=1, help="So many-th minutes are asked of old versions, too.")] = 60,
    plot: Annotated[Path | None, typer.Option(help="An SVG file to draw it into.", show_default=False)] = None,
    device: str = "cpu",
    out: Out = None,
) -> None:
    """A log in slices of a minute, answered by versions of today and of a day ago; imports no Ray."""
    _bench("staleness", words, out, data=data, increments=increments, every=every, plot=plot, device=device)


@bench.command("blend")
def bench_blend(
    data: Data,
    words: Words = None,
    increments: Annotated[
        int | None, typer.Option(min=1, help="Cuts after the warm-up; all of the log by default.", show_default=False)
    ] = None,
    ranked: Annotated[int, typer.Option(min=1, help="Queries of a cut that are ranked, too.")] = 500,
    device: str = "cpu",
    out: Out = None,
) -> None:
    """The blend's moving weights against the best fixed ones in hindsight, on the same queries; imports no Ray."""
    _bench("blend", words, out, data=data, increments=increments, ranked=ranked, device=device)


@bench.command("experts")
def bench_experts(
    data: Data,
    words: Words = None,
    increments: Annotated[int, typer.Option(min=1, help="Pairs of increments, after the warm-up.")] = 30,
    items: Annotated[int, typer.Option(min=2, help="That a request is answered from.")] = 43_000,
    requests: Annotated[int, typer.Option(min=1, help="Pairs of requests.")] = 300,
    device: str = "cpu",
    out: Out = None,
) -> None:
    """The time of a request and of an increment with the counting experts over that without; imports no Ray."""
    _bench("experts", words, out, data=data, increments=increments, items=items, requests=requests, device=device)


@bench.command("coldstart")
def bench_coldstart(
    words: Words = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of a log (Parquet) instead of the shop.", show_default=False)
    ] = None,
    increments: Annotated[int, typer.Option(min=1, help="Cuts after the warm-up.")] = 40,
    device: str = "cpu",
    out: Out = None,
) -> None:
    """How well items are found that nobody, or hardly anybody, has touched; imports no Ray."""
    _bench("coldstart", words, out, data=data, increments=increments, device=device)


@bench.command("continual")
def bench_continual(
    data: Data,
    words: Words = None,
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = "online",
    cycles: Annotated[str, typer.Option(help="One, or a range such as 1-16.")] = "1-4",
    seeds: Annotated[int, typer.Option(min=1, help="How many: seed 1, 2, ..")] = 1,
    device: str = "cpu",
    out: Out = None,
) -> None:
    """The ADER protocol: train on one period, test on the next, cycle after cycle; imports no Ray."""
    _bench("continual", words, out, data=data, methods=methods, cycles=cycles, seeds=seeds, device=device)


def _bench(name: str, words: Sequence[str] | None, out: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Run ``headrace.bench.<name>.run(**options)`` and write what it returns.

    A recipe and overrides on the command line come as ``recipe`` and ``overrides``, where they are given.
    """
    with _errors_in_words():
        import importlib

        from headrace.bench.output import with_facts, write_json

        files, overrides = _sorted_words(words)
        if len(files) > 1:
            raise ConfigError(f"a benchmark takes one recipe; received {', '.join(files)}")
        options |= {"recipe": Path(files[0])} if files else {}
        options |= {"overrides": overrides} if overrides else {}
        module: BenchModule = importlib.import_module(f"headrace.bench.{name}")
        result = with_facts(name, options, module.run(**options))
        if out is not None:
            typer.echo(f"written to {write_json(out, name, result)}")


def _sorted_words(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Recipes and overrides: a word with ``=`` that is not a file is an override."""
    files = [word for word in words or () if "=" not in word or _is_file(word)]
    return files, [word for word in words or () if word not in files]


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # a word too long for a name
        return False


def _recipe(words: Sequence[str] | None) -> "Recipe":
    from headrace.config.load import load_recipe

    return load_recipe(*_sorted_words(words))


def _serving(recipe: "Recipe") -> "Serving | None":
    """What the driver starts replicas with; None where the recipe wants none."""
    if not recipe.serve.enabled:
        return None
    from headrace.serving.app import Serving

    return Serving()


def _store(uri: str) -> "Store":
    from headrace.store.store import Store

    return Store(uri)


def _shortened(reason: str) -> str:
    return reason if len(reason) <= _REASON_CHARACTERS else reason[:_REASON_CHARACTERS] + " .."


def _version_row(manifest: "Manifest", is_pinned: bool) -> tuple[str, ...]:
    facts = manifest.facts
    version = "-" if manifest.version is None else str(manifest.version)
    events, items = (str(facts.get(name, "-")) for name in ("events", "num_items"))
    digest = manifest.state_digest[:12]
    return (
        str(manifest.cut),
        version,
        "pinned" if is_pinned else "-",
        manifest.verdict,
        events,
        items,
        digest,
        manifest.reason,
    )


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
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        typer.echo(f"no space is left ({error}): free some; the same command goes on from the newest commit", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    main()
