"""``headrace bench experts``: what the counting experts cost, beside the neural model alone.

A request: one question at a time to two versions that share model and items (random ones: time does not depend on what
they have learned), one of them with every kind of counter, filled with sessions of popular items. An increment: two
replays of one log in step, one without experts, first the one and then the other. Ratios are medians over pairs, so
that a noisy machine disturbs both alike. Imports neither ray nor wandb.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.bench.output import print_table
from headrace.blend.weights import Weights
from headrace.catalogue.eligible import Eligible
from headrace.clock import monotonic_s
from headrace.config.answers import CovisitConfig, ExpertConfig, OwnItemsConfig, PopularConfig, SimilarSessionsConfig
from headrace.config.load import load_recipe
from headrace.experts.base import Counted, Expert
from headrace.experts.build import build_experts
from headrace.inputs.contexts import Contexts, EventLog, build_contexts, contexts_of
from headrace.models.build import build_model
from headrace.recommend.recommender import Recommender
from headrace.records import generator
from headrace.train.offline import replay

_KINDS: tuple[ExpertConfig, ...] = (SimilarSessionsConfig(), CovisitConfig(), OwnItemsConfig(), PopularConfig())
_NOW_MS = 1_700_000_000_000
_LENGTH = 5  # events of a session
_SKEW = 1.5  # of the items' popularity


def run(
    *,
    data: Path,
    increments: int = 30,
    items: int = 43_000,
    sessions: int = 200_000,
    requests: int = 300,
    device: str = "cpu",
    recipe: Path = Path("jobs/recipes/globo.toml"),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Time ``requests`` pairs over ``items`` items, and ``increments`` pairs of the log after the warm-up; seconds."""
    made = load_recipe([str(recipe)], [*overrides, f"feed.path={data}", "evaluation.frozen_every=1000000000"])
    request = _requests(made.model.width, items, sessions, requests, torch.device(device))
    plain = made.model_copy(update={"experts": ()})
    both = zip(*(replay(r, torch.device(device), increments) for r in (made, plain)), strict=True)
    seconds = [[sum(manifest.envelope.seconds.values()) for manifest in pair] for pair in both][1:]
    result = {"request": request, "increment": _summary(seconds)}
    print_table(
        "with experts, and the neural model alone",
        ("", "with, s", "alone, s", "ratio", "pairs"),
        [
            [name, f"{row['with_s']:.4f}", f"{row['alone_s']:.4f}", f"{row['ratio']:.2f}", str(row["pairs"])]
            for name, row in (("a request", result["request"]), ("an increment", result["increment"]))
        ],
    )
    return result


def _requests(width: int, items: int, sessions: int, requests: int, device: torch.device) -> dict[str, Any]:
    model = build_model(load_recipe().model.model_copy(update={"width": width}), 50, items, 1).to(device)
    draw = generator(1, "bench experts")
    versions = [
        Recommender(
            model,
            np.arange(items),
            Eligible(np.arange(items)),
            experts,
            Weights.even([expert.name for expert in experts]),
            _NOW_MS,
            50,
        ).freeze()
        for experts in (_filled(items, sessions, draw), [])
    ]
    questions = [contexts_of([_items(draw, items, 4)], _NOW_MS, 50) for _ in range(requests + 20)]
    seconds = [[_timed(version, question) for version in versions] for question in questions]
    return _summary(seconds[20:])


def _items(draw: np.random.Generator, items: int, number: int) -> list[int]:
    return [int(number) for number in items * draw.random(number) ** (1 + _SKEW)]


def _filled(items: int, sessions: int, draw: np.random.Generator) -> list[Expert]:
    """Every kind of counter, after ``sessions`` sessions in one cut."""
    experts = build_experts(_KINDS)
    size = sessions * _LENGTH
    number_N = np.array(_items(draw, items, size), dtype=np.int64)
    session_N = np.repeat(np.arange(1, sessions + 1, dtype=np.uint64), _LENGTH)
    ts_N = _NOW_MS - 1000 * np.arange(size)[::-1]
    log = EventLog(session_N, ts_N, number_N, np.zeros(size, dtype=np.int16))
    contexts: Contexts = build_contexts(log, session_N, ts_N, session_N, 50)
    counted = Counted(number_N, ts_N, session_N, session_N, np.ones(size, dtype=np.float32), contexts)
    for expert in experts:
        expert.apply([expert.reduce(counted)], _NOW_MS)
    return experts


def _timed(version: Recommender, question: Contexts) -> float:
    began = monotonic_s()
    version.top(question, 20)
    return monotonic_s() - began


def _summary(seconds: list[list[float]]) -> dict[str, Any]:
    with_P, alone_P = np.array(seconds).T
    return {
        "with_s": float(np.median(with_P)),
        "alone_s": float(np.median(alone_P)),
        "ratio": float(np.median(with_P / alone_P)),
        "pairs": len(with_P),
    }
