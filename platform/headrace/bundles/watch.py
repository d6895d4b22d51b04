"""Following the pointer: which bundle should be loaded next, if any.

A store that is away for a while, a damaged pointer, a part that does not verify: none of them changes what is served.
They are reported in ``problem``, and tried again, less and less often while it is the same bundle that fails.
"""

from headrace.bundles.bundle import Bundle, Loaded, Loader
from headrace.bundles.publish import Pointer, read_bundle, read_pointer
from headrace.errors import StoreError
from headrace.store.store import Store

_LONGEST_PAUSE = 64  # polls between two attempts at a bundle that keeps failing


class Watcher:
    """Polls one store. Plain: whoever owns it decides how often, and in which thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loader = Loader(store)
        self._offered: Pointer | None = None
        self._served: Pointer | None = None
        self._num_failures = 0
        self._pause = 0
        self.problem: str | None = None
        """What stood in the way at the last attempt, in words; None when nothing did."""

    def poll(self) -> Bundle | None:
        """The bundle that the pointer names, if it is newer than the one loaded last and may be tried now."""
        try:
            pointer = read_pointer(self._store)
            if pointer is None or not self._is_news(pointer):
                self.problem = None
                return None
            if pointer != self._offered:
                self._num_failures, self._pause = 0, 0
            if self._pause > 0:
                self._pause -= 1
                return None
            self._offered = pointer
            return read_bundle(self._store, pointer.version, pointer.sha256)
        except (OSError, StoreError) as error:
            self.problem = f"the store cannot be followed: {error}"
            return None

    def load(self, bundle: Bundle) -> Loaded | None:
        """Load what ``poll`` gave; None, and ``problem``, where it cannot be. Reads only parts that changed."""
        try:
            loaded = self._loader.load(bundle)
        except (OSError, StoreError) as error:
            self._num_failures += 1
            self._pause = min(2**self._num_failures, _LONGEST_PAUSE)
            self.problem = f"version {bundle.version} cannot be loaded: {error}"
            return None
        self._served, self._num_failures, self.problem = self._offered, 0, None
        return loaded

    def _is_news(self, pointer: Pointer) -> bool:
        if self._served is None:
            return True
        if pointer.sha256 == self._served.sha256:
            self._served = pointer  # published again by a newer writer
            return False
        return (pointer.epoch, pointer.version) > (self._served.epoch, self._served.version)
