"""A study as Markdown: means over cycles, every cycle, every expert, forgetting. What was not run says so."""

from collections.abc import Iterable, Iterator, Sequence

from headrace.bench.study.answers import CUTOFFS, NEURAL, PARTS
from headrace.bench.study.kinds import WORDS
from headrace.bench.study.published import Published
from headrace.bench.study.summary import Summary

NOT_RUN = "*not run*"
_COUNTED = ("recall@20", "mrr@20", "recall@100")


def markdown(summary: Summary, published: Sequence[Published], about: Sequence[str]) -> str:
    """The whole page; ``about`` are lines that say how it was made."""
    parts = [f"# {summary.kind.title}", "", *(f"- {line}" for line in about), ""]
    for voter, words in summary.kind.voters.items():
        rows = published if voter == NEURAL else ()
        parts += _section(f"{words[0].upper()}{words[1:]}", _means(summary, voter, rows))
    for voter, words in summary.kind.voters.items():
        parts += _section(f"By {summary.kind.unit}: {words}", _by_cycle(summary, voter))
    parts += _section("Each counter alone", _counters(summary))
    parts += _section(f"What is served, over the best counter, {summary.kind.unit}s {summary.reported}", _best(summary))
    if summary.kind.repeats_apart:
        parts += _section("Targets that who asks has met before (repeat), and others (explore)", _repeats(summary))
    if summary.matrices:
        parts += _section("Forgetting, R@20 in points", _forgetting(summary))
    return "\n".join(parts)


def _section(heading: str, lines: Iterable[str]) -> list[str]:
    return [f"## {heading}", "", *lines, ""]


def _means(summary: Summary, voter: str, published: Sequence[Published]) -> Iterator[str]:
    spans, unit = summary.spans, summary.kind.unit
    header = ["method", "seeds", *(f"{unit}s {span}" for span in spans), "training, s"]
    shown = [WORDS[metric] for metric in summary.kind.shown]
    has_cpu = any("cpu_s" in row for rows in summary.rows.values() for row in rows)
    header += ["read and trained, CPU s"] * has_cpu
    header += [f"over online, {unit}s {summary.reported}: {shown[0]} [95 %]", *(f"{one} [95 %]" for one in shown[1:])]
    rows = []
    for method in summary.methods:
        pairs = [_pair([summary.mean(method, span, voter, metric) for metric in summary.kind.shown]) for span in spans]
        seconds, cpu_s = summary.seconds(method, summary.last), summary.cpu_s(method, summary.cycles)
        above = summary.above_baseline(method)
        intervals = [above[voter, metric].words() if above else "" for metric in summary.kind.shown]
        spent = [NOT_RUN if of is None else f"{of:.0f}" for of in (seconds, cpu_s)[: 1 + has_cpu]]
        rows.append([method, f"{len(summary.seeds(method))}", *pairs, *spent, *intervals])
    for row in published:
        pair = f"{row.recall_at_20:.2f} / {row.mrr_at_20:.2f}"
        rows.append([f"published: {row.name}", *[""] * len(spans), pair, *[""] * (3 + has_cpu)])
    over = "all queries" if summary.kind.by_query else f"{unit}s"
    yield f"{_shown(summary)} in %; means over seeds, then over {over}."
    yield "Settings were chosen on the first of these spans.\n"
    yield from _table(header, rows)


def _by_cycle(summary: Summary, voter: str) -> Iterator[str]:
    rows = []
    for method in summary.methods:
        values = [
            [summary.at(method, cycle, voter, metric) for metric in summary.kind.shown] for cycle in summary.cycles
        ]
        rows.append([method, *(_pair(pair) for pair in values)])
    yield f"{_shown(summary)} in %, means over seeds.\n"
    yield from _table(["method", *(str(cycle) for cycle in summary.cycles)], rows)


def _counters(summary: Summary) -> Iterator[str]:
    """Of the first method that has them; those of another one are the same, unless it names its own or is frozen."""
    whole, told, rows = summary.spans[-1], set[str](), []
    for method in summary.methods:
        for counter in summary.counters(method):
            values = [summary.mean(method, whole, counter, metric) for metric in _COUNTED]
            if counter not in told and None not in values:
                told.add(counter)
                rows.append([counter, method, *(f"{100 * value:.2f}" for value in values if value is not None)])
    yield from _table(
        ["counter", "in", f"R@20, {summary.kind.unit}s {whole}", *(WORDS[metric] for metric in _COUNTED[1:])], rows
    )


def _best(summary: Summary) -> Iterator[str]:
    """The counter with the highest R@20 of all in these rows, chosen in hindsight, on the same queries."""
    rows = []
    for method in summary.methods:
        if (found := summary.above_best_counter(method)) is not None:
            counter, intervals = found
            rows.append([method, counter, *(interval.words() for interval in intervals.values())])
    yield "Points above the counter that is best in hindsight, on the same queries, with a 95 % interval.\n"
    yield from _table(["method", "best counter", *(f"{WORDS[metric]} [95 %]" for metric in summary.kind.shown)], rows)


def _repeats(summary: Summary) -> Iterator[str]:
    """Each voter of each method, and the counters of the first."""
    asked = [(method, voter) for method in summary.methods for voter in summary.kind.voters]
    asked += [(method, counter) for method in summary.methods[:1] for counter in summary.counters(method)]
    rows = []
    for method, voter in asked:
        values = [summary.part_mean(method, voter, part, cutoff) for part in PARTS for cutoff in CUTOFFS]
        rows.append([method, voter, *(NOT_RUN if value is None else f"{100 * value:.2f}" for value in values)])
    header = [f"{part} R@{cutoff}" for part in PARTS for cutoff in CUTOFFS]
    yield f"In %, means over all queries that have such targets, all {summary.kind.unit}s and seeds.\n"
    yield from _table(["method", "expert", *header], rows)


def _shown(summary: Summary) -> str:
    return " / ".join(WORDS[metric] for metric in summary.kind.shown)


def _forgetting(summary: Summary) -> Iterator[str]:
    kind = "held out, never trained" if summary.is_held_out else "of the trained rows themselves: nothing is held out"
    yield f"On a fixed sample of every past period's queries, {kind}.\n"
    rows = []
    for method, by_voter in summary.matrices.items():
        figures = [by_voter[voter][name] for voter in by_voter for name in ("average_forgetting", "backward_transfer")]
        lost = summary.forgotten_by_columns(method)
        told = [NOT_RUN if value is None else f"{100 * value:+.2f}" for value in figures]
        rows.append([method, *told, "" if lost is None else f"{100 * lost:+.2f}"])
    names = ("average forgetting", "backward transfer")
    header = [f"{voter}: {name}" for voter in ("neural", "blend") for name in names]
    yield from _table(["method", *header, "older columns by themselves: lost since they were frozen"], rows)


def _pair(values: Sequence[float | None]) -> str:
    known = [f"{100 * value:.2f}" for value in values if value is not None]
    return " / ".join(known) if len(known) == len(values) else NOT_RUN


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(cells) + " |"
