"""Rows of the item table that pass from one item to another: what the new one starts from.

The catalogue says who holds a row, ``LearnerState.held_V`` whom the row is about. The two part where an item is new,
where a row was given on, and where the learner went back to an older commit. All here is alike on every rank.
Shape legend: V rows of the table ever in use, R those that start.
"""

import numpy as np

from headrace.train.state import LearnerState


def start_rows(state: LearnerState) -> None:
    """After ``TrainStep.begin_increment``: rows that are about another item than their holder start afresh."""
    number_V, held_V = state.catalogue.number_V, state.held_V
    reused_R = np.flatnonzero(number_V[: len(held_V)] != held_V)
    if len(reused_R := reused_R[number_V[reused_R] >= 0]):
        state.step.reset_rows(reused_R)
    state.held_V = number_V
