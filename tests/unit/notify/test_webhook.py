from __future__ import annotations

import hashlib
import hmac

from fswatchd.notify.outbox import LONGEST_PAUSE_S, pause_after
from fswatchd.notify.webhook import signature


def test_the_signature_is_what_receivers_compute() -> None:
    body, secret = b'{"a": 1}', b"key"
    wanted = hmac.new(secret, body, hashlib.sha256).hexdigest()
    assert signature(body, secret) == f"sha256={wanted}"


def test_pauses_double_up_to_a_limit_and_are_never_the_same_for_all() -> None:
    pauses = [pause_after(n) for n in range(1, 30)]
    assert 0.7 < pauses[0] < 1.3
    assert all(pause <= LONGEST_PAUSE_S * 1.25 for pause in pauses)
    assert pauses[-1] > LONGEST_PAUSE_S * 0.7
    assert len({pause_after(3) for _ in range(20)}) > 10
