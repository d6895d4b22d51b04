"""Starts ``headrace run`` as a user does, in a process group of its own, and watches its store."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.store.store import Store

PATIENCE_S = 240.0
"""For anything to happen on a machine that is busy with something else."""


class Run:
    """One ``headrace run`` process; whatever is left of its group is killed at the end."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.dir = folder
        self.log = folder.parent / f"{folder.name}.log"
        self.store = Store(str(folder / "store"))
        command = [sys.executable, "-m", "headrace.cli", "run", *words, f"run.dir={folder}"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},  # nobody joins a cluster by accident
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until ``condition`` holds; the run may not end before."""
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.output()[-3000:]}"
            assert time.monotonic() < end_s, f"{what} did not happen in {PATIENCE_S} s:\n{self.output()[-3000:]}"
            time.sleep(0.02)

    def until_commit(self, cut: int) -> None:
        """Wait for the commit of this cut."""
        self.until(lambda: newest(self.store) >= cut, f"commit {cut}")

    def kill(self) -> None:
        """SIGKILL to the whole process group, driver, Ray and workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM to the driver; its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def interrupt(self) -> int:
        """Ctrl-C: SIGINT to the whole process group, as a terminal sends it; the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(PATIENCE_S)

    def finish(self) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait(PATIENCE_S)

    def output(self) -> str:
        """What the user has seen so far, over all starts in this folder."""
        return self.log.read_text()

    def manifests(self) -> list[Manifest]:
        """Every commit, oldest first."""
        return Chain(self.store).manifests()


def newest(store: Store) -> int:
    """Cut of the newest commit; -1 before the first."""
    return max((cut for cut, _ in Chain(store).names()), default=-1)
