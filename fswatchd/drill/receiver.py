"""A webhook receiver on loopback, for the notices about the scratch VE."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import secrets
import threading
import time
from typing import Any


class Receiver:
    """Takes notices and checks their signatures."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(16)
        self.notices: list[tuple[int, dict[str, Any]]] = []
        self.bad_signatures = 0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                digest = hmac.new(receiver.secret.encode(), body, hashlib.sha256).hexdigest()
                given = self.headers.get("X-Fswatchd-Signature", "")
                if hmac.compare_digest(given, f"sha256={digest}"):
                    receiver.notices.append((time.monotonic_ns(), json.loads(body)))
                    self.send_response(204)
                else:
                    receiver.bad_signatures += 1
                    self.send_response(401)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler
