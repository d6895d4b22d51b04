"""``headrace bench ...``: wiring alone; each benchmark is a module of ``bench/``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from headrace.commands.words import Data, OptionalData, Out, Words, errors_in_words, sorted_words
from headrace.errors import ConfigError

bench = typer.Typer(
    help="What we claim, as commands that anyone can run: each prints a table and writes JSON.", no_args_is_help=True
)


Study = Annotated[
    Path | None, typer.Option("--out", help="A folder that keeps what is done, with its tables.", show_default=False)
]

Increments = Annotated[
    int | None,
    typer.Option(min=1, help="Slices after the warm-up, up to the end of a day; all by default.", show_default=False),
]
Seeds = Annotated[int, typer.Option(min=1, help="How many: seed 1, 2, ..")]
Tuned = Annotated[int, typer.Option(min=0, help="Up to which row settings were chosen on these very figures.")]


class BenchModule(Protocol):
    """What a module of ``bench/`` gives the command line."""

    def run(self, **options: Any) -> dict[str, Any]:  # noqa: ANN401 (each benchmark has its own)
        """Measure, print the table, and return the result, ready for JSON."""
        ...


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


@bench.command("serving")
def bench_serving(
    words: Words = None,
    clients: Annotated[int, typer.Option(min=1, help="How many ask at once when it is busy.")] = 12,
    seconds: Annotated[int, typer.Option(min=1, help="How long one replica, and then three, are watched.")] = 10,
    patience: Annotated[int, typer.Option(min=1, help="Seconds after which replicas are no longer waited for.")] = 60,
    out: Out = None,
) -> None:
    """Failed requests and latency while one replica becomes three and one again, and while the code is replaced."""
    _bench("serving", words, out, clients=clients, seconds=seconds, patience=patience)


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
    poisons: Annotated[int, typer.Option(min=0, help="Poisoned ones; 0: none.")] = 50,
    every: Annotated[int, typer.Option(min=4, help="Increments from one poisoned to the next.")] = 5,
    kinds: Annotated[
        str, typer.Option(help="Poisons that take turns, separated by commas.")
    ] = "shuffled,one_item,one_item_spread,bot,learning_rate",
    split: Annotated[int, typer.Option(min=1, help="Parts, by rows in order, that each shard is cut into.")] = 1,
    device: str = "cpu",
    out: Out = None,
) -> None:
    """The gate's false alarms on clean increments, and what it makes of poisoned ones; imports no Ray."""
    parts = {"increments": increments, "poisons": poisons, "every": every, "kinds": kinds, "split": split}
    _bench("gate", words, out, data=data, device=device, **parts)


@bench.command("stream")
def bench_stream(
    data: Data,
    words: Words = None,
    increments: Increments = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Names, as bench continual has them, separated by commas; beside them retrain_hourly and "
            "retrain_daily (from scratch), retrain_hourly_warm, retrain_daily_warm, frozen."
        ),
    ] = "default",
    seeds: Seeds = 1,
    tuned: Tuned = 4,
    device: str = "cpu",
    out: Study = None,
) -> None:
    """A log in event time: methods against retrainers, what was never updated, and each expert; imports no Ray.

    The folder keeps what is done: the same command goes on where it was stopped, and other methods join later.
    """
    options = {"increments": increments, "methods": methods, "seeds": seeds, "tuned": tuned, "device": device}
    _bench("stream", words, out, data=data, **options, folder=out)


@bench.command("sessions")
def bench_sessions(
    data: Data,
    words: Words = None,
    increments: Increments = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Names, as bench stream has them, separated by commas; a model is named by its setting, such as "
            'online+model.kind="nsp".'
        ),
    ] = "default",
    seeds: Seeds = 1,
    tuned: Tuned = 4,
    device: str = "cpu",
    out: Study = None,
) -> None:
    """A log in event time, where a whole session is asked for at its start; imports no Ray.

    The folder keeps what is done: the same command goes on where it was stopped, and other methods join later.
    """
    options = {"increments": increments, "methods": methods, "seeds": seeds, "tuned": tuned, "device": device}
    _bench("sessions", words, out, data=data, **options, folder=out)


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
    methods: Annotated[
        str,
        typer.Option(
            help="Names, separated by commas: kinds of methods and experts joined by plus signs (online, "
            "replay:ratio=0.5+distill), default (what the recipe says), joint, joint_warm, window, frozen; an ending "
            "-fresh starts the optimizer afresh at each cycle."
        ),
    ] = "online",
    cycles: Annotated[str, typer.Option(help="One, several such as 4,8, or a range such as 1-16.")] = "1-4",
    seeds: Seeds = 1,
    sample: Annotated[int, typer.Option(min=0, help="Past queries a period that forgetting is measured on.")] = 1000,
    tuned: Tuned = 4,
    device: str = "cpu",
    out: Study = None,
) -> None:
    """The ADER protocol: train on one period, test on the next, cycle after cycle; imports no Ray.

    The folder keeps what is done: the same command goes on where it was stopped, and other methods join later.
    """
    options = {"methods": methods, "cycles": cycles, "seeds": seeds, "sample": sample, "tuned": tuned}
    _bench("continual", words, out, data=data, **options, device=device, folder=out)


@bench.command("compare")
def bench_compare(
    ours: Annotated[str, typer.Argument(help="A method of the study.", show_default=False)],
    theirs: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    folder: Annotated[Path, typer.Option("--of", help="The study: what bench continual was given as --out.")],
    cycles: Annotated[str | None, typer.Option(help="Such as 5-16; all by default.", show_default=False)] = None,
    out: Out = None,
) -> None:
    """How far one method of bench continual lies above another: paired intervals, on the same queries."""
    _bench("compare", None, out, ours=ours, theirs=theirs, folder=folder, cycles=cycles)


def _bench(name: str, words: Sequence[str] | None, out: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Run ``headrace.bench.<name>.run(**options)`` and write what it returns.

    A recipe and overrides on the command line come as ``recipe`` and ``overrides``, where they are given.
    """
    with errors_in_words():
        import importlib

        from headrace.bench.output import with_facts, write_json

        files, overrides = sorted_words(words)
        if len(files) > 1:
            raise ConfigError(f"a benchmark takes one recipe; received {', '.join(files)}")
        options |= {"recipe": Path(files[0])} if files else {}
        options |= {"overrides": overrides} if overrides else {}
        module: BenchModule = importlib.import_module(f"headrace.bench.{name}")
        result = with_facts(name, options, module.run(**options))
        if out is not None:
            typer.echo(f"written to {write_json(out, name, result)}")
