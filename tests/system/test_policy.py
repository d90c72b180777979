"""What holds a repair of a real filesystem, and the twin that it does not hold."""

from __future__ import annotations

import pytest

from fswatchd.client import ClientError
from tests.system import rules

pytestmark = pytest.mark.root


def begin(daemon, text: str, *ves) -> None:
    daemon.configure(rules=text, mode="auto")
    for ve in ves:
        ve.declare()
        ve.start()
    daemon.start()
    daemon.wait_until_known(*(ve.name for ve in ves))


def test_an_owner_who_wants_nobody_at_his_data_gets_that_and_his_neighbour_is_repaired(
    daemon, make_ve
) -> None:
    careful = make_ve(labels={"fswatch": "observe"})
    other = make_ve("ve102")
    begin(daemon, rules.repair(), careful, other)
    inode = careful.inode
    careful.damage_directory()
    other.damage_directory()
    assert daemon.wait_for_incident("closed", ve="ve102")["outcome"] == "repaired"
    found = daemon.wait_for_incident("open", ve="ve101")
    assert found["steps"] == []
    assert "declared:ve101 wants observe" in daemon.why(found["id"])
    assert careful.inode == inode  # a repair would have put another image there


def test_a_volume_that_breaks_again_is_asked_about(daemon, make_ve) -> None:
    ve = make_ve()
    begin(daemon, rules.repair(flap='"1d"'), ve)
    ve.damage_directory()
    first = daemon.wait_for_incident("closed")
    assert first["outcome"] == "repaired"
    daemon.wait_until_known(ve.name)
    ve.damage_directory()
    second = daemon.wait_for_incident("waiting")
    assert (second["id"] != first["id"], second["waiting_for"]) == (True, "approval")
    assert "was repaired 1 times within" in daemon.why(second["id"])
    daemon.client.post(f"/v1/incidents/{second['id']}/approve", {})
    assert daemon.wait_for_incident("closed")["id"] == second["id"]
    daemon.wait_until_known(ve.name)
    with pytest.raises(ClientError, match="again and again"):
        daemon.client.post("/v1/repair", {"target": ve.name})
    asked = daemon.client.post("/v1/repair", {"target": ve.name, "force": True})
    assert asked["requested_by"]
