"""What Ray and its processes read from the environment, some of it once, as Ray is imported: so this comes before."""

import os

RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon a dead worker is noticed
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_events_report_interval_ms": "0",  # else Ray's control server keeps a note of each of 100,000 requests
    "MALLOC_ARENA_MAX": "2",  # else glibc keeps free pages for each of a process's threads
    "RAY_AUTH_MODE": "token",  # said explicitly: a local start would set it for this process anyway
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DATA_METADATA_PREFETCH_ON_THREAD": "0",  # feed/stream.py says why; read where ray.data is imported
}
"""Defaults: what the environment says already stays."""


def prepare() -> None:
    """Set what is not set yet; call it before anything imports ray.

    Where RAY_ADDRESS names a cluster, its own way to authenticate is not overruled.
    """
    for name, value in RAY_ENVIRONMENT.items():
        if name != "RAY_AUTH_MODE" or "RAY_ADDRESS" not in os.environ:
            os.environ.setdefault(name, value)
