"""One atomic reference: readers take what is current and keep it until they are done; a swap never waits for them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class _Held(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value
        self.num_users = 0
        self.retired = False


class Slot(Generic[T]):
    """Holds the current value. An older one is let go after its last user, whose thread then tells ``on_freed``."""

    def __init__(self, on_freed: Callable[[T], None] = lambda value: None) -> None:
        self._lock = threading.Lock()
        self._current: _Held[T] | None = None
        self._on_freed = on_freed
        self._num_draining = 0

    @property
    def num_draining(self) -> int:
        """Older values that somebody still uses."""
        return self._num_draining

    def put(self, value: T) -> None:
        """Make ``value`` current, at once for everybody who asks from now on."""
        with self._lock:
            old, self._current = self._current, _Held(value)
            if old is None:
                return
            old.retired = True
            self._num_draining += 1 if old.num_users else 0
            freed = not old.num_users
        if freed:
            self._on_freed(old.value)

    @contextmanager
    def use(self) -> Iterator[T | None]:
        """The current value, the same one until the block ends; None while there is none."""
        with self._lock:
            held = self._current
            if held is not None:
                held.num_users += 1
        if held is None:
            yield None
            return
        try:
            yield held.value
        finally:
            with self._lock:
                held.num_users -= 1
                freed = held.retired and not held.num_users
                self._num_draining -= 1 if freed else 0
            if freed:
                self._on_freed(held.value)
