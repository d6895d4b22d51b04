"""After a cut was scored, before it is trained: whether the learner may go on from where it stands.

Evidence of the cut's queries is added to the trial of what is live (evaluation/sequential.py). When it says that live
is worse than the trusted version, or when nothing could be published for long, the learner goes back: model, optimizer,
methods and blend weights become the trusted commit's, and replay drops the cuts since. Counters, catalogue, history,
seen event ids and the position in the ledger stay, since counting is exact whatever the model does. The increment then
goes on, and its own commit and bundle are the roll back. All inputs are alike on every rank, and so is the outcome.

What a person has rolled back to is live from the cut that carries the record, and the learner goes back to it in the
same way, with no evidence asked for; it is trusted from then on, so that no older version undoes what was asked for. An
increment that is rejected leaves that to the next one.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest, Verdict
from headrace.errors import StoreError
from headrace.evaluation.gate import Decision
from headrace.evaluation.prequential import Scored
from headrace.evaluation.sequential import Trial
from headrace.recommend.recommender import Recommender
from headrace.records import Rollback
from headrace.store.store import Store
from headrace.train.state import LearnerState, load_learner, load_version

_log = logging.getLogger(__name__)
_NAMES = {"blend": "live", "neural": "its neural expert"}


@dataclass(frozen=True)
class Review:
    """What came of it, alike on every rank. Made by ``review``; read by the gate and the commit."""

    trial: Trial = field(default_factory=Trial)
    """With this cut's evidence, before anything restarted."""
    e_values: Mapping[str, float] = field(default_factory=dict)
    """By contest; empty where trusted answered no queries beside live."""
    alarms: tuple[str, ...] = ()
    """The contests that live lost."""
    version: int | None = None
    """That the learner went back to."""
    num_reverted: int = 0
    """Rows whose training was lost by that."""
    words: str = ""
    """Why it went back."""
    served_as: int | None = None
    """The version that it was served as meanwhile, where a person has asked for it."""

    def explain(self, decision: Decision) -> Decision:
        """The gate's decision, with the roll back before its reason; a rejection takes the roll back back, too."""
        if self.version is None or decision.verdict == "reject":
            return decision
        return replace(decision, reason=f"{self.words}; {decision.reason}")

    def facts(self, verdict: Verdict) -> dict[str, Any]:
        """Plain JSON for the commit: this cut's evidence, whatever the trial is afterwards."""
        went_back = self.version is not None and verdict != "reject"
        newest = {name: self.trial.tallies[name][-1] for name in self.e_values}
        return {
            "trusted": self.trial.trusted,
            "opened": self.trial.opened,
            "window_cut": self.trial.cuts if self.e_values else None,
            "e_values": dict(self.e_values),
            "worse_better": {name: [tally.worse, tally.better] for name, tally in newest.items()},
            "targets": newest["blend"].targets if newest else 0,
            "design_effect": {name: tally.effect for name, tally in newest.items()},
            "alarms": list(self.alarms),
            "rolled_back_to": self.version if went_back else None,
            "reverted": self.num_reverted if went_back else 0,
            "served_as": self.served_as if went_back else None,
        }


def follow_rollback(state: LearnerState, asked: Rollback | None, store: Store) -> None:
    """Before a cut is scored: what a person has rolled back to is live until a version is published.

    ``asked`` is what the cut carries. StoreError where that version is not there any more.
    """
    state.rollback = asked or state.rollback
    if state.rollback is None or not state.must_go_back:
        return
    again = Chain(store).find(state.rollback.cut)
    if again is None:
        raise StoreError(
            f"version {state.rollback.to} is to be served again, but is not in {store.uri} any more: restore its commit"
        )
    state.published, state.live = again, load_version(store, again, state.step.device)
    state.live_top_PK = state.probed(state.live)
    state.versions = {**state.versions, again.cut: again}


def rival(state: LearnerState, store: Store) -> Recommender | None:
    """What a roll back would serve, if it is to answer beside live; None where trusted is live, or the test is off.

    That is the trusted model and blend with live's counters, since counters do not go back. The version is read from
    the store once, when it is first asked.
    """
    trusted = state.trial.trusted
    if state.published is None or state.live is None or state.published.cut == trusted:
        return None
    if state.must_go_back or not state.recipe.gate.window:
        return None
    if trusted == 0:
        return state.frozen.beside(state.live) if state.frozen is not None else None
    if state.loaded_trusted is None or state.loaded_trusted[0] != trusted:
        state.loaded_trusted = trusted, load_version(store, state.versions[trusted], state.step.device)
    return state.loaded_trusted[1].beside(state.live)


def review(state: LearnerState, scored: Scored, store: Store) -> Review:
    """Move the trial on by this cut; on alarm, or after too many holds, the learner goes back to the trusted commit.

    Where a person has asked for it, it goes back to what they named.
    """
    assert state.published is not None
    if state.rollback is not None and state.must_go_back:
        return _obey(state, store, state.rollback, state.published)
    gate, live = state.recipe.gate, state.published.cut
    trial, e_values = state.trial, {}
    if scored.gains and scored.num_queries:
        trial = trial.add(live, scored.gains, scored.target_T)
        e_values = trial.e_values(gate.window)
    found = Review(trial, e_values, tuple(name for name, e in e_values.items() if e >= 1.0 / gate.false_alarm))
    if found.alarms or state.num_holds >= gate.max_holds:
        words = _lost(found) if found.alarms else f"{state.num_holds} increments in a row were held"
        return _go_back(state, store, state.versions[trial.trusted], replace(found, words=words))
    state.trial = trial.settled(gate.window) if gate.window else Trial(live)
    return found


def _obey(state: LearnerState, store: Store, asked: Rollback, again: Manifest) -> Review:
    words = f"somebody asked for it, and it was served as version {asked.version}"
    found = _go_back(state, store, again, Review(state.trial, words=words, served_as=asked.version))
    state.version = asked.version
    return found


def _go_back(state: LearnerState, store: Store, to: Manifest, found: Review) -> Review:
    """The learner becomes that of the commit ``to``, which is trusted from now on."""
    num_reverted = state.rows["trained"] - to.facts["rows"]["trained"]
    load_learner(state, store, to)
    if state.replay is not None and state.commit is not None:
        state.replay.drop(range(to.cut + 1, state.commit.cut + 1))
    state.rows["trained"] -= num_reverted
    state.rows["reverted"] += num_reverted
    state.trial = Trial(to.cut)
    state.num_holds = 0
    words = f"rolled back to version {to.version}: {found.words}"
    if state.step.group.rank == 0:
        _log.warning("%s; %d rows fewer count as trained", words, num_reverted)
    return replace(found, version=to.version, num_reverted=num_reverted, words=words)


def _lost(found: Review) -> str:
    lost = []
    for name in found.alarms:
        tally = found.trial.total(name)
        lost.append(
            f"{_NAMES[name]} misses {tally.worse:.0f} of {tally.targets} targets that trusted finds, and finds "
            f"{tally.better:.0f} that trusted misses (counted as independent ones), e = {found.e_values[name]:.3g}"
        )
    return "; ".join(lost)
