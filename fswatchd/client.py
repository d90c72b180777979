"""HTTP over the daemon's unix socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fswatchd.events import printable
from fswatchd.exitcode import Exit

DEFAULT_SOCKET = "/run/fswatchd/api.sock"
_TIMEOUT_S = 60.0
# For what the daemon has at hand: monitoring must hear in time that it hangs.
_AT_ONCE_S = 8.0
# Longer ones the daemon's HTTP server refuses, and nothing that exists is called so.
_LONGEST_URL = 8000  # its limit for a line is 8190
_SILENCE_S = 60.0  # four heartbeats
_HINT = "does fswatchd run? --socket or $FSWATCH_SOCKET name another socket"
_CODE = {
    400: Exit.USAGE,
    404: Exit.USAGE,
    409: Exit.WARNING,
    422: Exit.WARNING,
    503: Exit.UNKNOWN,
}


class ClientError(Exception):
    """The daemon cannot be reached, or says no. `code` is the exit code that follows.

    `message_code` is what `fswatch explain` knows it by.
    """

    def __init__(
        self, message: str, hint: str, code: Exit, message_code: str = "FSW-DAEMON"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.message_code = message_code


class Answer(dict[str, Any]):
    """An object of the daemon's JSON. One that lacks what is asked for is of another version.

    Raises ClientError then: after an upgrade the daemon of before may still run.
    """

    def __missing__(self, key: str) -> Any:
        raise ClientError(
            f"fswatchd answers without {key!r}",
            "it may be of another version than fswatch: systemctl restart fswatchd",
            Exit.UNKNOWN,
        )


class Message(NamedTuple):
    """One server-sent event. `event` is its name; data is None where only the cursor has moved.

    The first one is named `open` and has the name of the log that the cursors belong to.
    """

    event: str
    data: Any
    cursor: str | None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """One daemon."""

    def __init__(self, socket_path: str | None = None) -> None:
        self.path = socket_path or os.environ.get("FSWATCH_SOCKET") or DEFAULT_SOCKET

    def get(self, path: str, **query: object) -> Any:
        """The JSON document at `path`; keys with None are left out."""
        return self._json("GET", _url(path, query), None, _TIMEOUT_S)

    def get_at_once(self, path: str, **query: object) -> Any:
        """The same of what nothing has to be looked up for: no answer soon is none at all."""
        return self._json("GET", _url(path, query), None, _AT_ONCE_S)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask for a change."""
        return self._json("POST", path, body or {}, _TIMEOUT_S)

    def delete(self, path: str) -> Any:
        """Ask for something to be dropped."""
        return self._json("DELETE", path, {}, _TIMEOUT_S)

    def follow(self, path: str, **query: object) -> Iterator[Message]:
        """Server-sent events from `path` until the daemon ends them.

        Raises ClientError with UNKNOWN when the connection breaks, or nothing comes for too long.
        """
        url = _url(path, query)
        _refuse_too_long(url)
        connection = self._connected(_SILENCE_S)
        try:
            connection.request("GET", url)
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(response.status, response.read())
            yield Message("open", response.headers.get("Fswatchd-Log"), None)
            yield from _messages(response)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()

    def _json(self, method: str, url: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        _refuse_too_long(url)
        connection = self._connected(timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, url, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()
        if response.status >= 400:
            raise _refused(response.status, content)
        document = _object(content)
        if document is None:
            raise ClientError(f"{self.path} answers, but not as fswatchd does", _HINT, Exit.UNKNOWN)
        return document

    def _connected(self, timeout: float | None) -> _UnixConnection:
        connection = _UnixConnection(self.path, timeout)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from None
        return connection

    def _unreachable(self, error: Exception) -> ClientError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = _HINT
        if isinstance(error, PermissionError):
            hint = "the socket is for root and for the group of [api] in fswatchd.toml"
        if isinstance(error, TimeoutError):
            hint = "it has taken the connection, and does not answer: does it hang?"
        message = f"cannot reach the daemon at {self.path}: {printable(reason)}"
        return ClientError(message, hint, Exit.UNKNOWN)


def quoted(name: str) -> str:
    """What somebody typed as one part of a path, whatever is in it."""
    return urllib.parse.quote(name, safe="", errors="surrogateescape") or "%20"


def _messages(lines: Iterable[bytes]) -> Iterator[Message]:
    fields: dict[str, str] = {}
    for raw in lines:
        if raw.strip():
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            fields[name] = value
            continue
        # Only a blank line makes a message: what a broken connection has cut off is none.
        if "data" in fields or "id" in fields:
            data = _decoded(fields["data"]) if "data" in fields else None
            yield Message(fields.get("event", "message"), data, fields.get("id"))
        fields = {}


def _url(path: str, query: dict[str, object]) -> str:
    given = {key: value for key, value in query.items() if value is not None}
    if not given:
        return path
    return f"{path}?{urllib.parse.urlencode(given, errors='surrogateescape')}"


def _refuse_too_long(url: str) -> None:
    if len(url) > _LONGEST_URL:
        raise ClientError("nothing has so long a name", "", Exit.USAGE, "FSW-UNKNOWN")


def _object(content: bytes) -> dict[str, Any] | None:
    """The JSON object that it is, None where it is none: then nobody knows what it is."""
    try:
        document = _decoded(content)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _decoded(content: str | bytes) -> Any:
    return json.loads(content, object_hook=Answer)


def _refused(status: int, content: bytes) -> ClientError:
    document = _object(content)
    if document is None or not isinstance(document.get("error"), str):
        hint = "its log may say why: journalctl -u fswatchd"
        return ClientError(f"the daemon answered with HTTP {status}", hint, Exit.UNKNOWN)
    return ClientError(
        document["error"],
        document.get("hint") or "",
        _CODE.get(status, Exit.CRITICAL),
        document.get("code") or "FSW-DAEMON",
    )
