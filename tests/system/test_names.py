"""A VE whose name is 4 KiB of what harms lines, quotes and terminals, through the whole daemon."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from fswatchd.drill.receiver import Receiver
from tests.system import rules
from tests.system.conftest import fswatch, wait_until
from tests.system.test_host_fails import run_telling, told
from tests.system.test_stack import device_of, trigger

# A definition is XML, which has no ESC; CSI (U+009B) does the same to a terminal.
NAME = 'new\nline "quo\'te" sp ace \x9b2J\x9b31m\u202e&<' + "x" * 4096
DOMAIN = """<domain type='kvm'>
<name>{name}</name><uuid>0c8d1f2a-1111-4222-8333-444455556666</uuid>
<devices><disk type='file' device='disk'>
<driver name='qemu' type='raw'/><source file='{image}'/><target dev='vda'/>
</disk></devices></domain>
"""
# It is imported by the daemon's interpreter before anything else.
WHERE = """
from fswatchd.platforms.libvirt import LibvirtPlatform
LibvirtPlatform.__init__.__defaults__ = ({run!r}, {defined!r})
"""
# In text, and in JSON without its own escapes but that of the end of a line.
HARMFUL = ("\x1b", "\x9b", "\u202e", "new\nline", "new\\nline")


@pytest.fixture
def device(daemon, work: Path) -> str:
    """The guest's disk, which the node has mounted; its device."""
    image = work / "disk.img"
    with image.open("xb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True, capture_output=True)
    (work / "m").mkdir()
    subprocess.run(["mount", "-o", "loop,errors=continue", image, work / "m"], check=True)
    defined, site = work / "qemu", work / "site"
    defined.mkdir()
    text = DOMAIN.format(name=escape(NAME), image=image)
    (defined / "web.xml").write_text(text, encoding="utf-8")
    site.mkdir()
    where = WHERE.format(run=str(work / "none"), defined=str(defined))
    (site / "sitecustomize.py").write_text(where)
    daemon.run_by = ["env", f"PYTHONPATH={site}:{Path(__file__).parents[2]}"]
    return device_of(image)


def test_it_harms_nothing_that_it_goes_through(
    daemon, work: Path, device: str, receiver: Receiver
) -> None:
    run_telling(daemon, receiver, work, mode="observe", rules=rules.TELL)
    (ve,) = wait_until(lambda: [v for v in daemon.status()["ves"] if v["platform"] == "libvirt"])
    assert (ve["name"][:10], len(ve["name"])) == ("new\\x0alin", 255)
    trigger(device)
    found = wait_until(lambda: daemon.incidents(ve["id"]))[0]
    assert found["ves"] == [ve["id"]]
    wait_until(lambda: [i for i in told(receiver, "opened") if i["id"] == found["id"]], 60)
    bodies = [(headers, body) for headers, body in receiver.notices if body["subject"] == ve["id"]]
    assert bodies
    outputs = {"notice": json.dumps(bodies, ensure_ascii=False)}
    asked = (("status",), ("status", NAME), ("incident", found["id"]), ("why", found["id"]))
    for command in (*asked, ("incidents",), ("events", "--since", "0")):
        for options in ((), ("--json",)):
            done = fswatch(daemon, *options, *command)
            assert done.stderr == ""
            text = plain(done.stdout) if options else done.stdout
            outputs[" ".join((*options, *command))[:80]] = text
    for where, text in outputs.items():
        assert "new\\x0aline" in text or "new\\\\x0aline" in text, where
        for harmful in HARMFUL:
            assert harmful not in text, (where, harmful)


def plain(text: str) -> str:
    """JSON documents with the characters themselves where they had escapes."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        document, place = decoder.raw_decode(text, place)
        found.append(json.dumps(document, ensure_ascii=False))
        place = len(text) - len(text[place:].lstrip())
    return "\n".join(found)
