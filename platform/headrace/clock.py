"""The only place where wall clocks are read. None may enter state: state counts event time or increments."""

import time


def wall_ms() -> int:
    """Milliseconds since the epoch, for people and envelopes."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Seconds on the host's monotonic clock; comparable between processes of one host, used for every latency."""
    return time.monotonic()


class Stopwatch:
    """Where an increment's time goes; for the envelope, never for state."""

    def __init__(self, waited_s: float) -> None:
        self.seconds = {"feed": waited_s}
        """By step; "feed" is how long the rows were waited for."""
        self._lap_s = monotonic_s()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under ``name``."""
        now_s = monotonic_s()
        self.book(name, now_s - self._lap_s)
        self._lap_s = now_s

    def book(self, name: str, seconds: float) -> None:
        """Book time that was spent elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
