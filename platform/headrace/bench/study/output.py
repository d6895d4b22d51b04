"""What a study leaves in its folder, made of all that is done there: tables, page, and how each part was made."""

import json
from collections.abc import Sequence
from typing import Any

from headrace.bench.output import commit_facts, machine_facts, print_table
from headrace.bench.study.kinds import WORDS, Kind, kind_of
from headrace.bench.study.page import build_page
from headrace.bench.study.published import published
from headrace.bench.study.results import Row, Study
from headrace.bench.study.summary import Summary
from headrace.bench.study.table import markdown
from headrace.errors import ConfigError


def note(study: Study, kind: Kind, log: str, words: Sequence[str]) -> None:
    """Remember the command; ConfigError where the folder holds a study of another kind. ``log``: the recipe's name."""
    for before in study.commands():
        if kind_of(before).protocol != kind.protocol:
            raise ConfigError(f"{study.folder} holds what bench {kind_of(before).protocol} did: name another folder")
    facts = {"protocol": kind.protocol, "unit": kind.unit, "tuned": kind.tuned, "log": log}
    command = f"headrace bench {kind.protocol} {' '.join(words)}"
    study.note({**facts, "command": command, **commit_facts(), "machine": machine_facts()})


def write(study: Study, kind: Kind) -> Summary:
    """Everything but ``rows``, anew."""
    summary, commands = Summary(study, kind), study.commands()
    about = list(dict.fromkeys(_words(command) for command in commands))
    rows = published(commands[-1]["log"]) if kind.protocol == "continual" else ()
    write_rows(study)
    study.write("forgetting.json", _json(_matrices(summary)))
    study.write("table.md", markdown(summary, rows, about))
    study.write("report.html", build_page(summary, rows, about))
    return summary


def write_rows(study: Study) -> None:
    """``results.json``: by method, a row per seed and cycle."""
    study.write("results.json", _json(study.rows()))


def means_of(summary: Summary) -> dict[str, Any]:
    """By method, span and voter: what its tables show; null: not run."""
    unit, voters = summary.kind.unit, summary.kind.voters
    return {
        method: {
            f"{unit}s {span}": {
                voter: {metric: summary.mean(method, span, voter, metric) for metric in summary.kind.shown}
                for voter in voters
            }
            for span in summary.spans
        }
        for method in summary.methods
    }


def print_means(summary: Summary) -> None:
    """The same, for people."""
    for voter, words in summary.kind.voters.items():
        shown = [WORDS[metric] for metric in summary.kind.shown]
        header = ("method", *(f"{metric}, {span}" for span in summary.spans for metric in shown))
        rows = []
        for method in summary.methods:
            means = [
                summary.mean(method, span, voter, metric) for span in summary.spans for metric in summary.kind.shown
            ]
            rows.append([method, *("not run" if value is None else f"{100 * value:.2f}" for value in means)])
        print_table(f"means over {summary.kind.unit}s, %: {words}", header, rows)


def _words(command: Row) -> str:
    machine, sha = command["machine"], str(command["sha"] or "no commit")[:7]
    where = machine["accelerator"] or f"{machine['cores']} cores of {machine['processor']}"
    return f"`{command['command']}`: {sha}{' and changes' if command['changed'] else ''}, on {where}."


def _matrices(summary: Summary) -> dict[str, Any]:
    """The matrices as lists; null where nothing was measured."""
    return {
        method: {
            voter: {**found, "recall@20": [[None if x != x else x for x in row] for row in found["recall@20"].tolist()]}
            for voter, found in by_voter.items()
        }
        for method, by_voter in summary.matrices.items()
    }


def _json(content: Any) -> str:  # noqa: ANN401 (plain JSON)
    return json.dumps(content, indent=1, allow_nan=False)
