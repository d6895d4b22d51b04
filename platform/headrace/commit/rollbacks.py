"""What a person has asked to be served again: one small object each, numbered, which the run that trains takes up.

It also holds the version in the store until a commit has obeyed. As with pins, what comes second sees the other: the
request is put, the journal is read after that, and only then is the request ready to be taken up. A commit that leaves
is noted in the journal first, and requests are read after that.
"""

import json
from dataclasses import asdict, dataclass, replace

from headrace.clock import wall_ms
from headrace.commit.journal import Journal
from headrace.commit.manifest import Manifest
from headrace.errors import ConfigError
from headrace.store.store import Store

_FOLDER = "rollbacks"


@dataclass(frozen=True)
class Request:
    """A wish to serve a version again. Made by ``request``; read by the keeper, retention and the command line."""

    number: int
    """They are taken up in this order, from 1."""
    version: int
    cut: int
    """The commit that published it."""
    wall_ms: int
    ready: bool = False
    """Whether it is certain that the version stays, so that it may be taken up."""
    served_as: int | None = None
    """The version that it became; None until it is served."""

    @property
    def waits(self) -> bool:
        """Whether it has been asked for and is not served yet."""
        return self.ready and self.served_as is None


def requests(store: Store) -> list[Request]:
    """All that were ever made, in order."""
    return [found for name in store.names(_FOLDER) if (found := find(store, int(name.removesuffix(".json"))))]


def find(store: Store, number: int) -> Request | None:
    """The request of this number; None where there is none."""
    try:
        return Request(**json.loads(store.get(_name(number))))
    except FileNotFoundError:
        return None


def request(store: Store, manifest: Manifest) -> Request:
    """Ask for the version of this commit; ConfigError where it is leaving the store, or another request waits."""
    assert manifest.version is not None
    made = requests(store)
    if made and made[-1].waits:
        raise ConfigError(
            f"a roll back to version {made[-1].version} waits to be taken up in {store.uri}: "
            f"headrace rollback {made[-1].version} sees it through"
        )
    number = 1 if not made else made[-1].number + made[-1].ready  # one that never became ready was given up
    asked = Request(number, manifest.version, manifest.cut, wall_ms())
    _put(store, asked)
    if Journal(store).has(manifest.cut):
        store.delete(_name(number))
        raise ConfigError(f"version {manifest.version} is leaving {store.uri}: raise store.keep or store.keep_s")
    asked = replace(asked, ready=True)
    _put(store, asked)
    return asked


def note_served(store: Store, number: int, version: int) -> None:
    """This request is served, as this version; nothing happens where that is known, or where there is no request."""
    asked = find(store, number)
    if asked is not None and asked.served_as != version:
        _put(store, replace(asked, served_as=version))


def _put(store: Store, asked: Request) -> None:
    store.put(_name(asked.number), json.dumps(asdict(asked)).encode())


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:010d}.json"
