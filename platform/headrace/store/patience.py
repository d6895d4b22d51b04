"""A store that is away for a while is waited for; one that stays away, or is full, is said in words.

What is waited for are errors of the way to it (a network, a mount), never a name that is not there or a permission
that is missing. Every operation of a store can be done again: it replaces whole objects, or reads.
"""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from headrace.errors import StoreError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_AWAY = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
)
_HOPELESS = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY",
    "SIGNATURE_DOES_NOT_MATCH",
    "HTTP response code 4",
)
_THEN = "What was committed stands, and the same command goes on from it"

Wait = Callable[[float], None]
"""Waits for so many seconds."""


def patiently(action: Callable[[], _T], what: str, *, is_local: bool, wait: Wait = time.sleep) -> _T:
    """``action()``, again and again while the store is away, for half a minute; StoreError when that was not enough.

    ``what`` names the store and the object, for a person. A full disk is not waited for.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return action()
        except OSError as error:
            if error.errno in _FULL:
                raise StoreError(f"no space is left for {what}: free some. {_THEN}") from error
            if not _is_away(error, is_local):
                raise
            if pause_s is None:
                raise StoreError(f"{what} has been away for {sum(_PAUSES_S):.0f} s ({error}). {_THEN}") from error
            _log.warning("%s is away (%s); once more in %g s", what, error, pause_s)
            wait(pause_s)
    raise AssertionError("the last turn returns or raises")


def _is_away(error: OSError, is_local: bool) -> bool:
    """Whether it may be there again in a moment; object stores give no number, but a text."""
    if error.errno is not None or is_local:
        return error.errno in _AWAY
    return not any(word in str(error) for word in _HOPELESS)
