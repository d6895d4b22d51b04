"""What every tier of tests shares: quiet libraries, and the folder of real logs."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_AUTH_MODE": "disabled",  # else a first local ray.init() turns tokens on for everything after it
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB__DISABLE_STATS": "true",
    "NO_COLOR": "1",
    "COLUMNS": "120",
}
os.environ.update(_QUIET)  # before any test module imports ray or wandb; subprocesses inherit it
for name in ("RAY_ADDRESS", "WANDB_API_KEY", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
    os.environ.pop(name, None)  # never join somebody's cluster, never write into somebody's account or folder


@pytest.fixture(scope="session")
def log_dir() -> Path:
    """The folder of real logs: HEADRACE_TEST_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("HEADRACE_TEST_DATA", "../shared/data"))
    folder = folder if folder.is_absolute() else (ROOT / folder).resolve()
    if not folder.is_dir():
        pytest.skip(f"no logs at {folder}: set HEADRACE_TEST_DATA to a folder with diginetica/ and globo/ in it")
    return folder
