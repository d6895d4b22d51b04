"""One writer at a time: epochs that fence off older writers, and a lock that refuses a second trainer at once.

Every start of training takes the next epoch. A writer checks, before each marker, that no newer epoch exists; readers
follow the highest. On a local store the driver also holds a lock, which the operating system frees when it dies.
"""

import fcntl
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from headrace.errors import FencedError, StoreBusyError
from headrace.store.store import Store


@dataclass(frozen=True)
class Epoch:
    """A writer's turn. Made by the driver at each start of training, carried by workers into every marker."""

    number: int
    token: str


def take_epoch(store: Store) -> Epoch:
    """Take the next epoch; every older writer stops at its next marker."""
    taken = store.names("epochs")
    epoch = Epoch(1 + max((int(name.removesuffix(".json")) for name in taken), default=0), uuid.uuid4().hex)
    store.put(_name(epoch.number), json.dumps({"token": epoch.token}).encode())
    return epoch


def check_epoch(store: Store, epoch: Epoch) -> None:
    """Raise FencedError if a newer epoch exists, or if this number was taken by somebody else."""
    if store.exists(_name(epoch.number + 1)):
        raise FencedError(f"epoch {epoch.number} has ended: a newer run has taken {store.uri}; this one stops here")
    if json.loads(store.get(_name(epoch.number)))["token"] != epoch.token:
        raise FencedError(f"epoch {epoch.number} of {store.uri} belongs to another run; this one stops here")


def _name(number: int) -> str:
    return f"epochs/{number:08d}.json"


class StoreLock:
    """Held by the driver's process for as long as it trains into a local store; a no-op on object stores."""

    def __init__(self, store: Store) -> None:
        self._path = None if store.local_root is None else Path(store.local_root) / "trainer.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> "StoreLock":
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 64).decode().strip() or "unknown"
            os.close(descriptor)
            raise StoreBusyError(
                f"another trainer (process {holder}) holds {self._path.parent}: stop it first, or give this run a "
                "store of its own with run.dir=... or store.uri=..."
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def holder(store: Store) -> str | None:
    """The process that trains into this store, as it wrote itself down; None where nobody does, or on object stores."""
    path = None if store.local_root is None else Path(store.local_root) / "trainer.lock"
    if path is None or not path.exists():
        return None
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock.read(64).strip() or "unknown"
    return None
