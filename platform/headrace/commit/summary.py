"""What stays of a commit for good: a few numbers and words, so that its manifest can go."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from headrace.commit.manifest import Manifest, Verdict

KEPT_FIGURES = ("recall@20", "mrr@20")
"""The scores that are kept of each version that was scored."""
_VITALS = ("popularity_lift", "coverage@20", "new_item_share", "new_item_recall@20", "churn@20")
_BY_VOTER = ("average_forgetting", "backward_transfer")


@dataclass(frozen=True)
class Summary:
    """One commit. Made by ``summary_of``; read by the report, the rows of a run, the list of what was set aside."""

    cut: int
    epoch: int
    version: int | None
    verdict: Verdict
    reason: str
    state_digest: str
    events: int
    fates: Mapping[str, int]
    """Rows by fate."""
    counters: Mapping[str, int]
    """Terms of the conservation law, as of this commit."""
    queries: int
    scores: Mapping[str, Mapping[str, float | None] | None]
    """Of "live", "learner" and "frozen": ``KEPT_FIGURES``; None where nothing was scored."""
    expert_scores: Mapping[str, Mapping[str, float | None]]
    """The same by expert of the learner."""
    faults: Mapping[str, int]
    """By expert: queries on which it failed."""
    weights: Mapping[str, float]
    """Of the blend, after this commit."""
    wall_ms: int
    seconds: Mapping[str, float]
    """Where the increment's time went."""
    vitals: Mapping[str, float | None] = field(default_factory=dict)
    """How the learner is: bias, stability, forgetting, recall by age; None where that was not looked at."""
    anchor: Mapping[str, float] | None = None
    """The held-out queries that were asked: the ``cut`` that completed them, and R@20 of "neural" and "blend"."""

    @property
    def increment_s(self) -> float:
        """Of the whole increment, but for the wait for its rows."""
        return sum(self.seconds.values()) - self.seconds.get("feed", 0.0)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Summary":
        """What ``to_json`` wrote."""
        return cls(**json.loads(line))


def summary_of(manifest: Manifest) -> Summary:
    """What will be known of this commit when its manifest is gone."""
    facts, envelope = manifest.facts, manifest.envelope
    metrics: Mapping[str, Any] = facts.get("metrics") or {}
    experts: Mapping[str, Any] = metrics.get("experts") or {}
    return Summary(
        manifest.cut,
        envelope.epoch,
        manifest.version,
        manifest.verdict,
        manifest.reason,
        manifest.state_digest,
        int(facts["events"]),
        dict(facts.get("fates") or {}),
        dict(facts.get("counters") or {}),
        int(metrics.get("queries") or 0),
        {name: _figures(figures) if (figures := metrics.get(name)) else None for name in ("live", "learner", "frozen")},
        {name: _figures(figures) for name, figures in experts.items()},
        dict(metrics.get("faults") or {}),
        dict(facts.get("weights") or {}),
        envelope.wall_ms,
        dict(envelope.seconds),
        _vitals(facts),
        (facts.get("vitals") or {}).get("anchor"),
    )


def _vitals(facts: Mapping[str, Any]) -> dict[str, float | None]:
    """One name for each figure; nothing of a commit that has none."""
    found = facts.get("vitals")
    if not found:
        return {}
    ages = found.get("recall_by_age") or {}
    return {
        **{name: found.get(name) for name in _VITALS},
        "update_ratio": (facts.get("training") or {}).get("update_ratio"),
        **{f"{name}/{voter}": value for name in _BY_VOTER for voter, value in (found.get(name) or {}).items()},
        **{f"recall@20/age/{age}": one["recall@20"] for age, one in ages.items()},
    }


def _figures(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: figures.get(name) for name in KEPT_FIGURES}
