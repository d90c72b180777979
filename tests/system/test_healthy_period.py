"""After a repair: what is watched, until when, and what says nothing against the repair."""

from __future__ import annotations

import os

import pytest

from fswatchd.kernel import loop
from tests.system import rules
from tests.system.conftest import wait_until


@pytest.mark.parametrize("while_dead", [False, True], ids=["beside-the-daemon", "daemon-dead"])
def test_a_ve_that_is_started_again_is_watched_on(daemon, make_ve, *, while_dead: bool) -> None:
    """The owner restarts the VE, or the whole node boots: its loop device is another one then."""
    ve = make_ve()
    daemon.configure(rules=rules.repair(healthy='"3s"'))
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known(ve.name)
    ve.damage_directory()
    incident = daemon.wait_for_incident("verifying")
    before = incident["filesystem"]["device"]
    if while_dead:
        daemon.kill()
    ve.kill()
    image = ve.inode
    wait_until(lambda: not loop.holders(*image), what="the image to be released")
    # Whoever is quick takes the number that it had.
    with ve.image.with_name("other.img").open("x+b") as other:
        other.truncate(1 << 20)
        taken, fd = loop.attach(other.fileno(), autoclear=True)
    try:
        ve.start()
    finally:
        os.close(fd)
    if while_dead:
        daemon.start()
    ended = daemon.wait_for_incident("closed", "needs-operator", timeout_s=60)
    why = daemon.why(ended["id"])
    assert (ended["id"], ended["outcome"]) == (incident["id"], "repaired"), why
    assert "and is watched there" in why, (before, taken)
    assert ve.wait_for_write()
