"""What is locked, from what /proc says (proc_pid_maps(5), proc_pid_status(5))."""

from __future__ import annotations

import resource

import pytest

from fswatchd.kernel import memlock

MAPS = """\
55d000000000-55d000002000 r--p 00000000 fe:00 1001   /usr/bin/python3.11
55d000002000-55d000004000 r-xp 00002000 fe:00 1001   /usr/bin/python3.11
55d000004000-55d000005000 rw-p 00004000 fe:00 1001   /usr/bin/python3.11
55d000005000-55d000006000 ---p 00005000 fe:00 1001   /usr/bin/python3.11
55d000100000-55d000200000 rw-p 00000000 00:00 0      [heap]
7f0000000000-7f0000100000 rw-s 00000000 00:17 7      /run/fswatchd/events.spool
7f0000200000-7f0000201000 rw-p 00000000 00:00 0
7f0000300000-7f0000301000 r-xp 00000000 fe:00 1002   /opt/with a space/lib.so (deleted)
7fff00000000-7fff00001000 r-xp 00000000 00:00 0      [vdso]
"""


def test_what_is_read_from_files_is_program_and_not_data() -> None:
    assert list(memlock._files(MAPS)) == [
        (0x55D000000000, 0x55D000002000),
        (0x55D000002000, 0x55D000004000),
        (0x55D000004000, 0x55D000005000),
        (0x7F0000300000, 0x7F0000301000),
    ]


@pytest.mark.parametrize(
    ("capabilities", "may"),
    [("0000000000004000", True), ("000001ffffffffff", True), ("000001ffffffbfff", False)],
)
def test_the_capability_is_that_of_include_uapi_linux_capability_h(
    capabilities: str, may: bool
) -> None:
    assert memlock._may_lock({"CapEff": capabilities}) is may


def test_with_a_limit_that_holds_nothing_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a lock would be worse than none: the next allocation beyond the limit fails."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    monkeypatch.setattr(memlock, "_status", lambda: {"CapEff": "0", "VmLck": "0 kB"})
    monkeypatch.setattr(memlock, "libc", None)
    with pytest.raises(PermissionError, match="CAP_IPC_LOCK"):
        memlock.lock()
    assert memlock.locked_bytes() == 0
