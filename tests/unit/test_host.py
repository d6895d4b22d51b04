"""Ray's start on a machine that is busy, and signals."""

import os
import signal

import pytest

from headrace.errors import HeadraceError
from headrace.host import patiently, signals


def test_a_ray_that_comes_up_late_is_started_once_more():
    calls = []

    def start():
        calls.append("start")
        if calls.count("start") == 1:
            raise Exception("The current node timed out during startup.")

    patiently(start, lambda: calls.append("undo"))
    assert calls == ["start", "undo", "start"]


def test_a_ray_that_does_not_come_up_is_told_in_words():
    calls = []

    def start():
        raise Exception("The current node timed out during startup.")

    with pytest.raises(HeadraceError, match=r"Ray did not start on this machine: .* the same command tries again"):
        patiently(start, lambda: calls.append("undo"))
    assert calls == ["undo", "undo"]


def test_signals_call_stop_inside_and_are_what_they_were_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    calls = []
    with signals(lambda: calls.append("stop")):
        os.kill(os.getpid(), signal.SIGTERM)
    assert calls == ["stop"]
    assert signal.getsignal(signal.SIGTERM) is before
