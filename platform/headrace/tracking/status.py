"""``headrace status``: how a store stands, read from the store alone, whether or not anybody trains into it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.clock import wall_ms
from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.commit.pins import pinned
from headrace.commit.rollbacks import requests
from headrace.errors import ConfigError
from headrace.store.fence import holder
from headrace.store.store import Store
from headrace.tracking.console import percent

_RECENT = 20  # increments that figures are averaged over


def standing(store: Store, num_ledger_cuts: int) -> Iterator[tuple[str, str]]:
    """Names and values, for a table of two columns; ConfigError where nothing is committed yet.

    ``num_ledger_cuts`` are those that the ledger holds: what lies beyond the newest commit waits.
    """
    manifests = Chain(store).manifests()
    if not manifests:
        raise ConfigError(
            f"no commits in {store.uri}: name a store with --store, or the recipe and overrides of its run"
        )
    newest = manifests[-1]
    process = holder(store)
    yield "store", store.uri
    yield "trainer", "none holds the store" if process is None else f"process {process} holds the store"
    yield "newest commit", f"cut {newest.cut} ({newest.verdict}), {_ago(newest.envelope.wall_ms)}: {newest.reason}"
    published = [manifest for manifest in manifests if manifest.verdict == "publish"]
    rollback = rollback_in_words(store, newest)
    if published and (rollback is None or not rollback.served):
        yield "served version", f"{published[-1].version} (cut {published[-1].cut})"
    if rollback is not None:
        yield "served version" if rollback.served else "roll back", rollback.words
    yield "cuts that wait", str(max(0, num_ledger_cuts - newest.cut - 1))
    yield "items", f"{newest.facts['num_items']} known, {newest.facts['num_eligible']} may be answered"
    yield from _quality(manifests[-_RECENT:])
    weights = sorted(newest.facts["weights"].items(), key=lambda pair: -pair[1])
    yield "weights", ", ".join(f"{name} {percent(weight)} %" for name, weight in weights)
    counters = newest.facts["counters"]
    yield "events", f"{counters['events_in']} in, {counters['trained_once']} trained once"
    others = {name: count for name, count in counters.items() if name not in ("events_in", "trained_once") and count}
    yield "other fates", ", ".join(f"{count} {name}" for name, count in others.items()) or "none"
    if pins := sorted(pinned(store)):
        yield "pinned", ", ".join(map(str, pins))


@dataclass(frozen=True)
class RollbackWords:
    """How a roll back that a person has asked for stands. Made by ``rollback_in_words``, read by commands."""

    served: bool
    """Whether it is what is served."""
    words: str


def rollback_in_words(store: Store, newest: Manifest) -> RollbackWords | None:
    """How the newest roll back by a person stands; None where there is none, or a version was published since.

    ``newest`` is the store's newest commit.
    """
    asked = next((one for one in reversed(requests(store)) if one.ready), None)
    if asked is None:
        return None
    what, when = f"version {asked.version} (cut {asked.cut})", _ago(asked.wall_ms)
    if asked.served_as is None:
        return RollbackWords(False, f"to {what}, asked for {when}: no run has taken it up yet")
    if asked.served_as < (last := newest.facts.get("last_version", 0)):
        return None
    gone_back = "has gone back" if asked.served_as == last else "goes back at its next increment"
    words = f"{asked.served_as}, which is {what} again, asked for {when}; the learner {gone_back}"
    return RollbackWords(True, words)


def _quality(manifests: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    """Recall@20 over the newest increments that scored queries, weighted by their number."""
    scored = [m.facts["metrics"] for m in manifests if (m.facts.get("metrics") or {}).get("queries")]
    if not scored:
        return
    named: dict[str, tuple[float, int]] = {}
    for metrics in scored:
        figures = {"live": metrics["live"], "frozen": metrics["frozen"], **metrics["experts"]}
        for name, values in figures.items():
            if values is not None:
                total, queries = named.get(name, (0.0, 0))
                named[name] = total + values["recall@20"] * metrics["queries"], queries + metrics["queries"]
    shown = ", ".join(f"{name} {percent(total / queries)}" for name, (total, queries) in named.items())
    yield f"recall@20, last {len(scored)}", f"{shown} (%)"


def _ago(moment_ms: int) -> str:
    seconds = max(0, wall_ms() - moment_ms) // 1000
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size} {name} ago"
    return f"{seconds} seconds ago"
