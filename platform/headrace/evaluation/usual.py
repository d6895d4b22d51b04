"""What is usual for a stream: a few signs of its recent increments, which a new one is held against.

Shares, norms, and what contexts tell differ from stream to stream, so that a limit which fits all of them sees little.
Only increments after the warm-up that were not rejected count; until there are ``_LEAST``, nothing is unusual.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median, pstdev
from typing import Any

from headrace.evaluation.coherence import Coherence

_FEW_EVENTS = 100  # shares of an increment smaller than this say nothing
_LEAST = 8
_RECENT = 32


@dataclass(frozen=True)
class RowSigns:
    """What the gate looks at before anything learns from a cut, alike on every rank. Made by train/increment.py."""

    num_events: int
    """Rows to be trained."""
    max_item_events: int
    """Events of the most frequent item among them."""
    max_user_events: int
    num_capped: int = 0
    """Further rows, beyond ``feed.max_events_per_user``."""
    coherence: Coherence | None = None
    """None where nobody could be asked."""

    @property
    def user_share(self) -> float | None:
        """The largest share of one user (else session); None where there are too few events to say."""
        return self.max_user_events / self.num_events if self.num_events >= _FEW_EVENTS else None

    @property
    def item_share(self) -> float | None:
        """The largest share of one item, likewise."""
        return self.max_item_events / self.num_events if self.num_events >= _FEW_EVENTS else None

    def facts(self) -> dict[str, Any]:
        """Plain JSON for the commit."""
        coherence = None if self.coherence is None else asdict(self.coherence)
        shares = {"item_share": self.item_share, "user_share": self.user_share}
        return {**shares, "capped": self.num_capped, "coherence": coherence}


@dataclass(frozen=True)
class Usual:
    """Signs of recent increments, newest last. State, alike on every rank; made here, kept in commits."""

    coherence: tuple[float, ...] = ()
    """Of each cut that had queries; see evaluation/coherence.py."""
    updates: tuple[tuple[float, int], ...] = ()
    """The update's norm over the weights' norm, and the steps that it took."""
    user_shares: tuple[float, ...] = ()
    """The largest share of one user."""
    item_shares: tuple[float, ...] = ()
    """The largest share of one item."""
    num_rejected: int = 0
    """Cuts in a row that were rejected because they were unusual."""

    @property
    def usual_coherence(self) -> float | None:
        """The median; None where too little is known."""
        return median(self.coherence) if len(self.coherence) >= _LEAST else None

    @property
    def coherence_spread(self) -> float:
        """The standard deviation of it: what the stream does by itself, and what few queries do."""
        return pstdev(self.coherence) if self.coherence else 0.0

    @property
    def largest_user_share(self) -> float | None:
        """None where too little is known."""
        return _largest(self.user_shares)

    @property
    def largest_item_share(self) -> float | None:
        """Likewise."""
        return _largest(self.item_shares)

    def expected_update(self, steps: int) -> float | None:
        """The update that so many steps might make: as many times as far as fewer ones, as far as more; the median.

        None where too little is known.
        """
        if len(self.updates) < _LEAST:
            return None
        return median(ratio * max(1.0, steps / taken) for ratio, taken in self.updates)

    def add(self, signs: RowSigns, update: tuple[float, int]) -> "Usual":
        """With one more increment: its update's norm over the weights' norm, and the steps that it took."""
        coherence = () if signs.coherence is None else (signs.coherence.mean,)
        user_share = () if signs.user_share is None else (signs.user_share,)
        item_share = () if signs.item_share is None else (signs.item_share,)
        return Usual(
            (*self.coherence, *coherence)[-_RECENT:],
            (*self.updates, *([update] if update[1] else ()))[-_RECENT:],
            (*self.user_shares, *user_share)[-_RECENT:],
            (*self.item_shares, *item_share)[-_RECENT:],
        )

    def rejected(self) -> "Usual":
        """With one more cut that was rejected because it was unusual."""
        return replace(self, num_rejected=self.num_rejected + 1)

    def state(self) -> dict[str, Any]:
        """Plain JSON for the commit."""
        return {
            "coherence": list(self.coherence),
            "updates": [list(update) for update in self.updates],
            "user_shares": list(self.user_shares),
            "item_shares": list(self.item_shares),
            "num_rejected": self.num_rejected,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Usual":
        """The one whose ``state`` this was."""
        updates = tuple((ratio, steps) for ratio, steps in state["updates"])
        user_shares, item_shares = tuple(state["user_shares"]), tuple(state["item_shares"])
        return cls(tuple(state["coherence"]), updates, user_shares, item_shares, state["num_rejected"])


def _largest(shares: tuple[float, ...]) -> float | None:
    return max(shares) if len(shares) >= _LEAST else None
