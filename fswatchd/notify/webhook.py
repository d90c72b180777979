"""One delivery over HTTP: CloudEvents 1.0 in structured mode, signed when there is a secret.

The body is the same, byte for byte, at every attempt, and so are id and signature: a receiver that
sees an id twice has seen the same notice twice.
"""

from __future__ import annotations

# socket.getaddrinfo(3) would load it with the first name it looks up; the disk may hang by then.
import encodings.idna  # noqa: F401
import hashlib
import hmac
from dataclasses import dataclass

import aiohttp

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
SIGNATURE_HEADER = "X-Fswatchd-Signature"
_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Where notices go."""

    name: str
    url: str
    secret: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one attempt ended; `retry_after_s` is what the receiver asked for, `status` the HTTP
    status of its answer (None: there was none)."""

    delivered: bool
    status: int | None = None
    error: str = ""
    retry_after_s: float | None = None


def signature(body: bytes, secret: bytes) -> str:
    """The value of the signature header."""
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


async def post(session: aiohttp.ClientSession, channel: Channel, body: bytes) -> Attempt:
    """Deliver once. Anything but an answer of 2xx is a failure; redirects are not followed."""
    headers = {"Content-Type": CONTENT_TYPE, "User-Agent": "fswatchd"}
    if channel.secret is not None:
        headers[SIGNATURE_HEADER] = signature(body, channel.secret)
    try:
        async with session.post(
            channel.url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
        ) as answer:
            if 200 <= answer.status < 300:
                return Attempt(delivered=True, status=answer.status)
            wait = answer.headers.get("Retry-After", "")
            return Attempt(
                delivered=False,
                status=answer.status,
                error=f"HTTP {answer.status}",
                retry_after_s=float(wait) if wait.isdecimal() else None,
            )
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
        return Attempt(delivered=False, error=str(error) or type(error).__name__)
