"""The recipe that a log suggests, as TOML in which every line says why. ``try`` runs the very text that it writes."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from headrace.config.recipe import Recipe
from headrace.onboard.guess import Guess
from headrace.onboard.shape import RARE_REPEATS, Shape
from headrace.onboard.words import span


@dataclass(frozen=True)
class Effort:
    """How much is trained. Made by the plan, read by the recipe's writer."""

    warmup_epochs: int
    batch: int
    learning_rate: float


_Line = tuple[str, Any, str]
_HOUR, _DAY = 3600, 86400
_NICE_S: tuple[int, ...] = (1, 10, 60, 300, 1800, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR)
_NICE_S += tuple(days * _DAY for days in (1, 2, 4, 7, 14, 28, 91, 182, 364, 3 * 364, 10 * 364))


def draft(guess: Guess, shape: Shape, effort: Effort, folder: Path, name: str) -> str:
    """The recipe's text; ``folder`` is the log that it replays."""
    parts = [
        f"# Guessed by `headrace init` or `try` from the log in {folder}; every line says why. Change what is wrong.",
        "# `headrace run THIS_FILE` replays that log in event time and serves while it learns.",
        "",
        "seed = 1                      # every draw comes from it: the same seed gives the same run",
    ]
    for section, lines in _sections(guess, shape, effort, folder, name):
        parts += ["", f"[{section}]", *(_line(*line) for line in lines)]
        if section == "feed.replay":
            parts += _LANDING
    for lines in _experts(shape):
        parts += ["", "[[experts]]", *(_line(*line) for line in lines)]
    return "\n".join(parts) + "\n"


_LANDING = [
    "# To learn from a live stream instead: delete [feed.replay] with its lines, set feed.path to the folder in",
    '# which new Parquet files land (write each under a dotted name, then rename it), and feed.cut = "events".',
]


def _sections(guess: Guess, shape: Shape, effort: Effort, folder: Path, name: str) -> Iterator[tuple[str, list[_Line]]]:
    yield (
        "run",
        [
            ("dir", f"runs/{name}", "what a run keeps: its store, log and report; the same command goes on from there"),
            ("name", name, "how the run is called in its report"),
        ],
    )
    feed: list[_Line] = [
        ("path", str(folder), "the log"),
        ("cut", "shard", "one increment per slice of event time, so that nothing is scored by what came after it"),
    ]
    if shape.max_owner_events > 1000:
        feed.append(
            (
                "max_events_per_user",
                _round_up(shape.max_owner_events),
                "the warm-up is one increment: nobody is cut short in it",
            )
        )
    if shape.gap_s is not None:
        feed.append(
            (
                "session_gap_s",
                shape.gap_s,
                f"no session column: a session ends after {span(shape.gap_s)} without an event",
            )
        )
    yield "feed", feed
    yield (
        "feed.replay",
        [
            (
                "first_slice_s",
                shape.first_slice_s,
                f"the warm-up: {span(shape.first_slice_s)}, four fifths of the events",
            ),
            ("slice_s", shape.slice_s, f"then a shard for every {span(shape.slice_s)} of event time"),
        ],
    )
    yield "columns", _columns(guess, shape)
    yield (
        "inputs",
        [
            ("context", shape.context, _CONTEXT[shape.context]),
            ("sessions", "set" if shape.is_set else "sequence", _SESSIONS["set" if shape.is_set else "sequence"]),
            ("max_events", 50, "the newest events of a context that the model reads"),
        ],
    )
    if shape.alive_s is not None:
        yield (
            "catalogue",
            [("alive_s", shape.alive_s, f"items without an event for {span(shape.alive_s)} are not answered")],
        )
    yield from _learning(effort)


def _learning(effort: Effort) -> Iterator[tuple[str, list[_Line]]]:
    yield (
        "model",
        [
            ("width", 64, "size of an item's vector; 100 to 150 is better on large logs, and slower"),
            ("blocks", 2, "layers of the transformer"),
            ("dropout", 0.2, "more for small logs, less for large ones"),
        ],
    )
    yield (
        "train",
        [
            ("batch", effort.batch, "examples a step: small where there are few, or the model gets too few steps"),
            ("learning_rate", effort.learning_rate, "of Adam; higher for small batches of small logs"),
            ("warmup_epochs", effort.warmup_epochs, "passes over the warm-up; more is better until it overfits"),
            ("epochs", 1, "passes over each later slice"),
        ],
    )


_CONTEXT = {
    "session": "a prediction sees what came before in its session",
    "user": "a prediction sees what the user did before, across sessions",
}
_SESSIONS = {
    "set": "a session is a basket: asked at its start, its items are the answer",
    "sequence": "each event of a session is asked after those before it",
}


def _columns(guess: Guess, shape: Shape) -> list[_Line]:
    why = {column: reason for _, column, reason in guess.reasons}
    lines: list[_Line] = [(role, name, why.get(name, "")) for role, name in guess.named.items()]
    if guess.session_id is None:
        lines.append(("session_id", "", "there is none"))
    if shape.target_kinds:
        lines.append(("target_kinds", list(shape.target_kinds), "what is predicted; other kinds are context"))
    return lines


def _experts(shape: Shape) -> Iterator[list[_Line]]:
    """Popularity with half-lives that suit the log's span, and every other counter that this version has."""
    for half_life_s in _half_lives(shape.span_s):
        number, unit = span(half_life_s).split()
        named = f"pop-{number}{'min' if unit.startswith('minute') else unit[0]}"  # short: a run's rows are narrow
        yield [
            ("kind", "popular", "counts of every item"),
            ("name", named, "how tables call it"),
            (
                "half_life_s",
                half_life_s,
                f"a count is worth half after {span(half_life_s)}; the blend finds out which helps",
            ),
        ]
    for config in _expert_configs(Recipe.model_fields["experts"].annotation):
        kind = config.model_fields["kind"].default
        if kind == "popular" or (kind == "own_items" and shape.repeats < RARE_REPEATS):
            continue
        lines: list[_Line] = [("kind", kind, (config.__doc__ or "").strip().splitlines()[0].rstrip("."))]
        if kind == "own_items" and shape.context == "user":
            lines.append(
                ("half_life_events", 30.0, "long, so that what somebody has often counts, not only the newest")
            )
        yield lines


def _half_lives(span_s: float) -> list[int]:
    return sorted({min(_NICE_S, key=lambda nice: abs(math.log(nice * part / span_s))) for part in (200, 10)})


def _expert_configs(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 (any type expression)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _expert_configs(part)


def _round_up(value: float) -> int:
    """The next number that people would name, in seconds and in counts alike."""
    for size in (7 * 86400, 86400, 3600, 60):
        if value >= size:
            return int(-(-value // size) * size)
    return int(-(-value // 1))


def _line(key: str, value: Any, why: str) -> str:  # noqa: ANN401
    text = json.dumps(value, ensure_ascii=False)
    return f"{f'{key} = {text}':<29} # {why}" if why else f"{key} = {text}"
