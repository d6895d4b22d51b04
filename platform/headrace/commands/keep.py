"""What a store holds, keeps, serves again and has set aside: ``versions``, ``pin``, ``rollback``, ``quarantine``."""

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.commands.words import Number, OfStore, Version, Words, errors_in_words, open_store, recipe_of
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.commit.manifest import Manifest

_REASON_CHARACTERS = 100

keep = typer.Typer()
quarantine = typer.Typer(
    help="What was set aside, with its reason, and how it comes back once it is repaired.", no_args_is_help=True
)


@keep.command()
def versions(words: Words = None, store: OfStore = None) -> None:
    """List the commits that are still in a store: what each took, its verdict, the version it published."""
    with errors_in_words():
        from headrace.commit.chain import Chain
        from headrace.commit.pins import pinned
        from headrace.tracking.console import align
        from headrace.tracking.status import rollback_in_words

        opened = open_store(store or recipe_of(words).store_uri)
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
        if (rollback := rollback_in_words(opened, manifests[-1])) is not None:
            typer.echo(f"{'served: version' if rollback.served else 'roll back:'} {rollback.words}")


@keep.command()
def pin(version: Version, words: Words = None, store: OfStore = None) -> None:
    """Keep a version, its commit and all of its parts until it is unpinned, whatever its age."""
    with errors_in_words():
        from headrace.commit import pins

        manifest = pins.pin(open_store(store or recipe_of(words).store_uri), version)
        typer.echo(f"version {version} (cut {manifest.cut}) stays until it is unpinned")


@keep.command()
def unpin(version: Version, words: Words = None, store: OfStore = None) -> None:
    """Let a pinned version go as others do, when the run commits next."""
    with errors_in_words():
        from headrace.commit import pins

        pins.unpin(open_store(store or recipe_of(words).store_uri), version)
        typer.echo(f"version {version} leaves as others do")


@keep.command()
def rollback(
    version: Version,
    words: Words = None,
    store: OfStore = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="On an object store: no run is up; one that is after all is fenced off.")
    ] = False,
) -> None:
    """Serve a version again, at once and under a new number; the learner goes back to it at its next increment."""
    with errors_in_words():
        from headrace.train.rollback import ask, see_through

        opened = open_store(store or recipe_of(words).store_uri)
        served_as = see_through(opened, ask(opened, version), alone=alone)
        typer.echo(f"version {version} is served again, as version {served_as}; the learner goes back to it")
        typer.echo("at its next increment, and is trained on from there; nothing leaves the ledger")


@quarantine.command("list")
def quarantine_list(
    words: Words = None,
    store: OfStore = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also what was released, and what came late or lay ahead in time.")
    ] = False,
) -> None:
    """List what was set aside: files, single rows, rejected cuts; numbers are those of the records in the ledger."""
    with errors_in_words():
        from headrace.feed.quarantine import set_aside
        from headrace.tracking.console import align

        uri = store or recipe_of(words).store_uri
        asides = set_aside(open_store(uri))
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
    with errors_in_words():
        from headrace.feed.quarantine import find, first_rows

        opened = open_store(store or recipe_of(words).store_uri)
        aside = find(opened, number)
        typer.echo(f"{aside.where}: {aside.num_rows or 'an unknown number of'} rows, {aside.state}\n{aside.reason}")
        for line in first_rows(opened, aside):
            typer.echo(f"  {line}")


@quarantine.command("release")
def quarantine_release(number: Number, words: Words = None, store: OfStore = None) -> None:
    """Put a rejected cut's rows back, or have a file looked at again, once it is repaired or the recipe is mended."""
    with errors_in_words():
        from headrace.feed.quarantine import ask_release

        aside = ask_release(open_store(store or recipe_of(words).store_uri), number)
        what = "is looked at again" if aside.kind == "file" else f"is put back ({aside.num_rows} rows)"
        typer.echo(f"{aside.where} {what}, at once where the run goes on, else when it is started again")


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
