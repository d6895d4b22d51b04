"""May this candidate be published? Hard rules, each with its reason in words, decided alike on every rank."""

from dataclasses import dataclass

from headrace.commit.manifest import Verdict
from headrace.config.recipe import GateConfig

_FEW_EVENTS = 100  # shares of an increment smaller than this say nothing


@dataclass(frozen=True)
class Signs:
    """What the gate looks at, alike on every rank. Made by train/increment.py after training."""

    is_warmup: bool
    finite: bool
    """No NaN or infinity in weights and optimizer state."""
    max_abs: float
    """The largest entry of both."""
    update_ratio: float
    """Norm of the update over the norm of the weights before it."""
    churn: float | None
    """Share of the probes' top 20 that changed against live; None where there is nothing to compare."""
    num_events: int
    max_item_events: int
    """Events of the most frequent item of the increment."""
    max_user_events: int
    eligible_before: int
    """Items that could be answered as of the commit before; 0 in the warm-up."""
    eligible_after: int


@dataclass(frozen=True)
class Decision:
    """A verdict and its reason. Read by the commit, the terminal and the report."""

    verdict: Verdict
    reason: str


def decide(signs: Signs, config: GateConfig) -> Decision:
    """The first rule that objects decides; otherwise the candidate is published."""
    if not signs.finite:
        return Decision("reject", "weights or optimizer state hold NaN or infinity")
    if signs.max_abs > config.max_abs:
        return Decision(
            "reject", f"an entry of weights or optimizer state is {signs.max_abs:.3g} (> {config.max_abs:g})"
        )
    if not signs.is_warmup and signs.update_ratio > config.max_update_ratio:
        limit = config.max_update_ratio
        return Decision("reject", f"the update is {signs.update_ratio:.2f} of the weights' norm (> {limit:g})")
    if signs.eligible_after < (1 - config.max_eligible_loss) * signs.eligible_before:
        few = f"{signs.eligible_after} of {signs.eligible_before} items could still be answered"
        return Decision("reject", f"{few}: does an event's time lie far ahead? (gate.max_eligible_loss)")
    if signs.num_events >= _FEW_EVENTS:
        item, user = signs.max_item_events / signs.num_events, signs.max_user_events / signs.num_events
        if item > config.max_item_share:
            return Decision("reject", f"one item has {item:.0%} of the events (> {config.max_item_share:.0%})")
        if user > config.max_user_share:
            return Decision("reject", f"one user has {user:.0%} of the events (> {config.max_user_share:.0%})")
    if signs.churn is not None and signs.churn > config.max_churn:
        return Decision("hold", f"{signs.churn:.0%} of the probes' top 20 changed (> {config.max_churn:.0%})")
    return Decision("publish", "passed every rule")
