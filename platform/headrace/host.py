"""What a process that lives with Ray does first and last: start or join a cluster, and hear signals."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from headrace import environment
from headrace.errors import ConfigError, HeadraceError

_log = logging.getLogger(__name__)
_STARTS = 2
"""A busy machine may need longer than Ray waits for itself."""


def start_ray(address: str, num_cpus: int) -> None:
    """Start a Ray of this process's own with so many logical CPUs where ``address`` is "local", else join that cluster.

    HeadraceError where a local one does not come up.
    """
    environment.prepare()
    import ray

    def start(**options: object) -> None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)

    if address == "local":
        # an address in the environment is ignored on purpose: nobody joins a cluster by accident
        patiently(lambda: start(num_cpus=num_cpus, include_dashboard=False), ray.shutdown)
    else:
        start()


def check_labels(address: str, wanted: Sequence[Mapping[str, str]]) -> None:
    """ConfigError where labels are asked of a Ray of this process's own, which has none."""
    asked = [dict(labels) for labels in wanted if labels]
    if address == "local" and asked:
        raise ConfigError(
            f"a Ray of its own has no node with the labels {asked[0]}: join a cluster that has one "
            "(run.ray_address=auto), or leave the labels out"
        )


def unplaced(wanted: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Those labels that no node of the running Ray has now, each once."""
    import ray

    asked = [dict(labels) for labels in wanted if labels]
    if not asked:
        return []
    nodes = [node["Labels"] for node in ray.nodes() if node["Alive"]]
    missing = [labels for labels in asked if not any(labels.items() <= node.items() for node in nodes)]
    return [labels for place, labels in enumerate(missing) if labels not in missing[:place]]


def stop_ray() -> None:
    """End the Ray that ``start_ray`` started, or leave the cluster that it joined."""
    import ray

    ray.shutdown()


def patiently(start: Callable[[], object], undo: Callable[[], object]) -> None:
    """Start a local Ray; where it is not up within its own half minute, once more. HeadraceError after that."""
    for attempts_left in range(_STARTS - 1, -1, -1):
        try:
            start()
            return
        except Exception as error:  # Ray raises no narrower one where its node is not up in time
            undo()
            if not attempts_left:
                raise HeadraceError(
                    f"Ray did not start on this machine: {error} It may be busy with something else; headrace clean "
                    "shows what other runs have left here. Nothing was changed: the same command tries again"
                ) from error
            _log.warning("Ray did not start, and is started once more", exc_info=True)


@contextmanager
def signals(stop: Callable[[], object]) -> Iterator[None]:
    """SIGINT and SIGTERM call ``stop`` while the block runs; only where this is the main thread.

    Enter it after Ray has started, which takes SIGTERM for itself. A signal that another thread takes does not wake the
    main one: wait in turns, and look.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
