"""nbd devices, in trees laid out as /sys and /proc are."""

from __future__ import annotations

from pathlib import Path

import pytest

from fswatchd.kernel import nbd

STATUS = "Name:\t{name}\nState:\tS (sleeping)\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n"


def node(
    root: Path, *arguments: str, name: str = "qemu-nbd", uid: int = 0, files: tuple[str, ...] = ()
) -> tuple[Path, Path]:
    sysfs, proc = root / "sys", root / "proc"
    (sysfs / "block/nbd0").mkdir(parents=True)
    (sysfs / "block/nbd0/pid").write_text("4711\n")
    (proc / "4711/fd").mkdir(parents=True)
    (proc / "4711/status").write_text(STATUS.format(name=name, uid=uid))
    (proc / "4711/comm").write_text(f"{name}\n")
    (proc / "4711/cmdline").write_bytes(b"\0".join(a.encode() for a in arguments) + b"\0")
    for number, path in enumerate(("/dev/null", "socket:[12]", *files)):
        (proc / "4711/fd" / str(number)).symlink_to(path)
    return sysfs, proc


@pytest.mark.parametrize(
    "arguments",
    [
        ("qemu-nbd", "-c", "/dev/nbd0", "/vz/ve101.qcow2"),
        ("qemu-nbd", "--connect=/dev/nbd0", "-f", "qcow2", "ve101.qcow2"),
        ("qemu-nbd", "-c/dev/nbd0", "--image-opts", "driver=qcow2,file.filename=/vz/ve101.qcow2"),
        ("nbdkit", "file", "file=/vz/ve101.qcow2"),
    ],
)
def test_the_image_is_what_was_named_and_is_open(tmp_path: Path, arguments) -> None:
    """The base is open as well, and the log; neither was named."""
    files = ("/vz/base.qcow2", "/vz/ve101.qcow2", "/var/log/nbd.log", "/dev/nbd0")
    sysfs, proc = node(tmp_path, *arguments, name=arguments[0], files=files)
    pid = nbd.server("nbd0", sysfs, proc)
    assert pid == 4711
    assert nbd.served(pid, proc) == ["/vz/ve101.qcow2"]


def test_only_a_known_program_of_root_is_believed(tmp_path: Path) -> None:
    sysfs, proc = node(tmp_path / "a", "qemu-nbd", uid=1000)
    assert nbd.server("nbd0", sysfs, proc) is None
    sysfs, proc = node(tmp_path / "b", "nbd-client", name="nbd-client")
    assert nbd.server("nbd0", sysfs, proc) is None


def test_a_device_without_a_process_has_no_server(tmp_path: Path) -> None:
    assert nbd.server("nbd0", tmp_path, tmp_path) is None
    assert nbd.served(4711, tmp_path) == []
