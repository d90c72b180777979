from __future__ import annotations

from fswatchd.events import VeState
from fswatchd.inventory.lookup import find_ve
from fswatchd.inventory.merge import merged
from fswatchd.inventory.model import Commands, NamespaceKey, Ve, VeId, Volume
from fswatchd.inventory.view import NodeView

IMAGE = Volume(image="/vz/101.raw")


def ve(platform: str, name: str, pid: int | None = None, **more) -> Ve:
    values = {
        "ve_id": VeId(f"{platform}:{name}"),
        "platform": platform,
        "native_id": name,
        "name": name,
        "state": VeState.RUNNING if pid else VeState.STOPPED,
        "init_pid": pid,
    }
    return Ve(**(values | more))


def test_an_alias_gives_what_is_seen_of_it_and_is_no_ve_of_its_own() -> None:
    lxc = ve("lxc", "101", 7, namespace=NamespaceKey(9), cgroup="/lxc/101", init_started=3)
    named = ve("proxmox", "101", aliases=(VeId("lxc:101"),), volumes=(IMAGE,), busy="backup")
    for order in ([named, lxc], [lxc, named]):
        (found,) = merged(order).values()
        assert (found.ve_id, found.state, found.busy) == ("proxmox:101", "running", "backup")
        assert (found.init_pid, found.init_started, found.namespace) == (7, 3, 9)
        assert (found.cgroup, found.volumes) == ("/lxc/101", (IMAGE,))


def test_a_stopped_alias_is_hidden_too() -> None:
    named = ve("proxmox", "101", aliases=(VeId("lxc:101"),))
    assert list(merged([named, ve("lxc", "101"), ve("lxc", "102")])) == ["proxmox:101", "lxc:102"]


def test_a_process_that_two_platforms_claim_is_the_init_of_the_first() -> None:
    found = merged([ve("nspawn", "a", 7), ve("docker", "b", 7), ve("docker", "c", 8)])
    assert list(found) == ["nspawn:a", "docker:c"]
    view = NodeView(ves=found)
    for text in ("docker:b", "nspawn:a", "a"):
        assert find_ve(view, text).ve_id == "nspawn:a"


def test_what_is_declared_completes_a_driver_in_whatever_order() -> None:
    start = Commands(start=("start", "101"))
    declared = ve("declared", "gold", 7, commands=start, labels={"tier": "gold"})
    for order in ([declared, ve("lxc", "101", 7)], [ve("lxc", "101", 7), declared]):
        (found,) = merged(order).values()
        assert (found.ve_id, found.commands, found.labels) == ("lxc:101", start, {"tier": "gold"})


def test_a_stopped_one_is_known_by_name_and_volume() -> None:
    lxc = ve("lxc", "101", volumes=(IMAGE,))
    same = ve("declared", "101", volumes=(IMAGE,), labels={"tier": "gold"})
    other = ve("declared", "102", volumes=(IMAGE,))
    found = merged([lxc, same, other])
    assert list(found) == ["lxc:101", "declared:102"]
    assert found[VeId("lxc:101")].labels == {"tier": "gold"}


def test_of_what_the_owner_wishes_the_most_careful_counts() -> None:
    """A VE that two platforms know, and one that is declared by hand: nobody widens it."""
    wish = {"fswatch": "auto"}
    careful = {"fswatch": "observe", "tier": "gold"}
    lxc = ve("lxc", "101", 7, labels=careful)
    named = ve("proxmox", "101", aliases=(VeId("lxc:101"),), labels=wish)
    (found,) = merged([named, lxc]).values()
    assert found.labels == {"fswatch": "observe"}
    (found,) = merged([ve("proxmox", "101", 7, labels=wish), lxc]).values()
    assert found.labels == {"fswatch": "observe"}
    (found,) = merged([lxc, ve("declared", "x", 7, labels={"fswatch": "auto"})]).values()
    assert found.labels == careful
    (found,) = merged([lxc, ve("declared", "x", 7, labels={"fswatch": "sometimes"})]).values()
    assert found.labels == careful
    (found,) = merged([ve("lxc", "101", 7), ve("declared", "x", 7, labels=careful)]).values()
    assert found.labels == careful
