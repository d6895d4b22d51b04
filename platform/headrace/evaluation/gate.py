"""Hard rules, each with its reason in words, decided alike on every rank.

May anything learn from these rows? And may the candidate that has learned from them be published? Some rules have a
limit of their own, others hold an increment against what is usual for the stream (evaluation/usual.py).
"""

import math
from dataclasses import dataclass

from headrace.commit.manifest import Verdict
from headrace.config.answers import GateConfig
from headrace.evaluation.coherence import Coherence
from headrace.evaluation.usual import RowSigns, Usual

_SMALL_USER, _SMALL_ITEM = 0.1, 0.5  # shares that are not looked into, however unusual
_ERRORS = 2.5  # standard errors by which a coherence must be below what is usual


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
    steps: int
    """Optimizer steps that made it."""
    churn: float | None
    """Share of the probes' top 20 that changed against live; None where there is nothing to compare."""
    eligible_before: int
    """Items that could be answered as of the commit before; 0 in the warm-up."""
    eligible_after: int


@dataclass(frozen=True)
class Decision:
    """A verdict and its reason. Read by the commit, the terminal and the report."""

    verdict: Verdict
    reason: str
    unusual: bool = False
    """Whether that is because the increment was held against what is usual, which may have changed."""


def decide_rows(signs: RowSigns, usual: Usual, config: GateConfig) -> Decision | None:
    """Before anything learns from these rows: a rejection by the first rule that objects, or None."""
    item, user = signs.item_share, signs.user_share
    if item is not None and item > config.max_item_share:
        return Decision("reject", f"one item has {item:.0%} of the events (> {config.max_item_share:.0%})")
    if user is not None and user > config.max_user_share:
        return Decision("reject", f"one user has {user:.0%} of the events (> {config.max_user_share:.0%})")
    for who, share, lately, small in (
        ("item", item, usual.largest_item_share, _SMALL_ITEM),
        ("user", user, usual.largest_user_share, _SMALL_USER),
    ):
        if share is not None and lately is not None and share > max(small, config.max_share_growth * lately):
            words = f"one {who} has {share:.0%} of the events, lately at most {lately:.1%} (gate.max_share_growth)"
            return Decision("reject", words, unusual=True)
    return _decide_coherence(signs.coherence, usual, config.min_coherence)


def _decide_coherence(found: Coherence | None, usual: Usual, least: float) -> Decision | None:
    lately = usual.usual_coherence
    if found is None or lately is None or not least:
        return None
    error = math.hypot(found.error, usual.coherence_spread)
    if found.mean >= 0.5 + least * (lately - 0.5) or found.mean + _ERRORS * error >= lately:
        return None
    often = f"in {found.mean:.0%} of all cases, lately {lately:.0%}, by chance 50%"
    reason = f"contexts tell their next item from another one of this cut {often}: do items belong to their rows?"
    return Decision("reject", f"{reason} (gate.min_coherence)", unusual=True)


def decide(signs: Signs, usual: Usual, config: GateConfig) -> Decision:
    """After training: the first rule that objects decides; otherwise the candidate is published."""
    if not signs.finite:
        return Decision("reject", "weights or optimizer state hold NaN or infinity")
    if signs.max_abs > config.max_abs:
        return Decision(
            "reject", f"an entry of weights or optimizer state is {signs.max_abs:.3g} (> {config.max_abs:g})"
        )
    if not signs.is_warmup and signs.update_ratio > config.max_update_ratio:
        limit = config.max_update_ratio
        return Decision("reject", f"the update is {signs.update_ratio:.2f} of the weights' norm (> {limit:g})")
    expected = usual.expected_update(signs.steps)
    if expected is not None and signs.update_ratio > config.max_update_growth * expected:
        moved = f"the update is {signs.update_ratio:.2g} of the weights' norm in {signs.steps} steps"
        lately = f"lately {expected:.2g} in as many (gate.max_update_growth)"
        return Decision("reject", f"{moved}, {lately}", unusual=True)
    if signs.eligible_after < (1 - config.max_eligible_loss) * signs.eligible_before:
        few = f"{signs.eligible_after} of {signs.eligible_before} items could still be answered"
        return Decision("reject", f"{few}: does an event's time lie far ahead? (gate.max_eligible_loss)")
    if signs.churn is not None and signs.churn > config.max_churn:
        return Decision("hold", f"{signs.churn:.0%} of the probes' top 20 changed (> {config.max_churn:.0%})")
    return Decision("publish", "passed every rule")
