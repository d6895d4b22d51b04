"""The only place where wall clocks are read. None may enter state: state counts event time or increments."""

import time


def wall_ms() -> int:
    """Milliseconds since the epoch, for people and envelopes."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Seconds on the host's monotonic clock; comparable between processes of one host, used for every latency."""
    return time.monotonic()
