"""Asking and looking: ``serve``, ``ask``, ``status`` and ``clean``, for whoever uses what a run has made."""

from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.commands.words import OfStore, Words, errors_in_words, open_store, recipe_of
from headrace.errors import ConfigError

service = typer.Typer()

_ADDRESS = "http://127.0.0.1:8000"


@service.command()
def serve(words: Words = None, store: OfStore = None) -> None:
    """Answer from a store until stopped, with nobody training or beside a run elsewhere; needs no recipe."""
    with errors_in_words():
        from headrace.serving.app import serve_until_stopped

        recipe = recipe_of(words)
        serve_until_stopped(store or str(recipe.store_uri), recipe.serve, recipe.run.ray_address, typer.echo)


@service.command()
def ask(
    items: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID ...]", help="The session's items, oldest first.", show_default=False),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Who asks, as in the log.", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many items.")] = 10,
    explain: Annotated[bool, typer.Option(help="What share of each score is each expert's.")] = False,
    exclude_seen: Annotated[bool, typer.Option(help="Leave out what the session or the user has met.")] = False,
    context: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE", help="How items were met, or what the request says; repeatable.", show_default=False
        ),
    ] = None,
    address: Annotated[str, typer.Option(help="Where the service listens.")] = _ADDRESS,
) -> None:
    """Ask a running service what comes next after these items, or for this user."""
    with errors_in_words():
        from headrace.serving.ask import ask as ask_service
        from headrace.serving.ask import in_lines, read_context

        if not items and user is None:
            raise ConfigError("nothing to go by: name item ids, or a user with --user, or both")
        further: dict[str, Any] = {
            "k": k,
            "explain": explain,
            "exclude_seen": exclude_seen,
            "context": read_context(context or ()),
        }
        for line in in_lines(ask_service(address, items or (), user, **further)):
            typer.echo(line)


@service.command()
def status(words: Words = None, store: OfStore = None) -> None:
    """How a store stands: who trains, what is served, how good it is, what waits, where every event went."""
    with errors_in_words():
        from headrace.feed.ledger import LedgerReader
        from headrace.tracking.status import standing

        opened = open_store(store or recipe_of(words).store_uri)
        rows = list(standing(opened, LedgerReader(opened).last_cut + 1))
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            typer.echo(f"{name.ljust(width)}  {value}")


@service.command()
def clean(
    runs: Annotated[Path, typer.Option(help="The folder that runs lie in.")] = Path("runs"),
) -> None:
    """Show what runs have left on this machine, and the command that removes each; it removes nothing itself."""
    with errors_in_words():
        from headrace.onboard.leftovers import leftovers
        from headrace.tracking.console import align

        found = list(leftovers(runs))
        rows = [
            (
                left.kind,
                "-" if left.size_bytes is None else f"{left.size_bytes / 2**20:.1f}",
                "yes" if left.in_use else "no",
                left.what,
                left.remedy or "-",
            )
            for left in found
        ]
        lines = align(("kind", "MiB", "in use", "what", "to remove it"), rows, left=frozenset({0, 2, 3, 4}))
        for line in lines if rows else [f"nothing is left: no runs in {runs}, no processes, no sessions of Ray"]:
            typer.echo(line)
