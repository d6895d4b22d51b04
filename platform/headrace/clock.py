"""The only place where wall clocks are read. None may enter state: state counts event time or increments."""

import time
from collections.abc import Mapping


def wall_ms() -> int:
    """Milliseconds since the epoch, for people and envelopes."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Seconds on the host's monotonic clock; comparable between processes of one host, used for every latency."""
    return time.monotonic()


def train_s(seconds: Mapping[str, float]) -> float:
    """Of an increment's laps, what was training: its steps, and those in which columns were consolidated."""
    return float(seconds.get("train", 0.0) + seconds.get("consolidate", 0.0))


class Stopwatch:
    """Where an increment's time goes; for the envelope, never for state."""

    def __init__(self) -> None:
        self.seconds = {"feed": 0.0}
        """By step; "feed" is how long the rows were waited for."""
        self.cpu_s: dict[str, float] = {}
        """The same, of this process's CPU time."""
        self.skip()

    def skip(self) -> None:
        """The time since the last lap is nobody's."""
        self._lap_s, self._lap_cpu_s = monotonic_s(), time.process_time()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under ``name``."""
        began_s, began_cpu_s = self._lap_s, self._lap_cpu_s
        self.skip()
        self.book(name, self._lap_s - began_s)
        self.cpu_s[name] = self.cpu_s.get(name, 0.0) + self._lap_cpu_s - began_cpu_s

    def book(self, name: str, seconds: float) -> None:
        """Book time that was spent elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
