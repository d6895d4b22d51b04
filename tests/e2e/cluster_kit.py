"""A Ray cluster of two nodes on this machine, with labels, a dashboard and a token, in a process of its own.

In the tests' own process it would meet the Ray of other tests, which asks for no token.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0
"""For anything to happen on a machine that is busy with something else."""
ROLE = "headrace.io/role"
HEAD, WORKER = "serve", "train"
"""The roles of the two nodes."""
MEMORY = "headrace.io/memory"
"""A second label, which the head alone has: "large"."""
_CPUS = 8


@dataclass(frozen=True)
class Process:
    """A process of the cluster."""

    pid: int
    title: str
    """Ray names its workers by what they run: "ray::ReplayActor", "ray::ServeReplica:headrace:recall", .."""
    role: str
    """Of the node that it is on."""


class TwoNodes:
    """The cluster, seen from the tests; commands are run as a user would type them."""

    def __init__(self, dashboard: str, raylets: dict[int, str], environment: dict[str, str]) -> None:
        self.dashboard = dashboard
        self._raylets = raylets
        self._environment = environment

    def ray(self, *words: str) -> str:
        """What ``ray WORDS`` prints."""
        return self._run("ray.scripts.scripts", *words)

    def serve(self, *words: str) -> str:
        """What ``serve WORDS`` prints."""
        return self._run("ray.serve.scripts", *words)

    def processes(self) -> list[Process]:
        """Ray's workers, by what they run now."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    title = (entry / "cmdline").read_text().split("\0")[0]
                except OSError:
                    continue  # it has ended
                if parent in self._raylets and title.startswith("ray::"):
                    found.append(Process(int(entry.name), title, self._raylets[parent]))
        return found

    def roles(self, *titles: str) -> dict[str, set[str]]:
        """By the beginning of a title, the roles of the nodes that have such processes."""
        now = self.processes()
        return {title: {one.role for one in now if one.title.startswith(f"ray::{title}")} for title in titles}

    def _run(self, module: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition`` holds."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"{what} did not happen in {PATIENCE_S} s"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Start the cluster in a process group of its own; whatever is left of that is killed at the end."""
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:  # short: sockets of Ray's lie in it
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's python is this one
            "PYTHONPATH": str(ROOT),  # as in the image: serve/app.py is imported by name
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_JOB_STOP_WAIT_TIME_S": str(int(PATIENCE_S)),
        }
        port = free_port()
        holder = subprocess.Popen(
            [sys.executable, __file__, str(port)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            raylets = json.loads(holder.stdout.readline())
            yield TwoNodes(f"http://127.0.0.1:{port}", {int(pid): role for pid, role in raylets.items()}, environment)
            holder.stdin.close()
            holder.wait(PATIENCE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)
            holder.wait()


def _hold(port: int) -> None:
    """Runs in the process of its own: start both nodes, say which raylet is which, end them when stdin closes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    head = cluster.add_node(
        num_cpus=_CPUS,
        labels={ROLE: HEAD, MEMORY: "large"},
        include_dashboard=True,
        dashboard_port=port,
        dashboard_agent_listen_port=free_port(),
    )
    worker = cluster.add_node(num_cpus=_CPUS, labels={ROLE: WORKER})
    raylets = {node.all_processes["raylet"][0].process.pid: role for node, role in ((head, HEAD), (worker, WORKER))}
    sys.stdout.write(json.dumps(raylets) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
