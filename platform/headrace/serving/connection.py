"""One kept HTTP connection to the application, for whoever asks it from Python; light to import."""

import http.client
from urllib.parse import urlsplit

from headrace.clock import monotonic_s

_IDLE_S = 5.0  # a connection unused for longer is opened anew, since the server may be closing it
_PATIENCE_S = 30.0


class Connection:
    """One kept connection to the application; opened anew where it was idle for long, or after an error."""

    def __init__(self, address: str, timeout_s: float = _PATIENCE_S) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._used_s = 0.0

    def call(self, method: str, path: str, body: bytes | None = None) -> tuple[int | None, bytes]:
        """Status and body; (None, words) where there was no connection or it broke."""
        if self._connection is not None and monotonic_s() - self._used_s > _IDLE_S:
            self.close()
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return None, repr(error).encode()
        self._used_s = monotonic_s()
        return response.status, content

    def close(self) -> None:
        """Close it; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
