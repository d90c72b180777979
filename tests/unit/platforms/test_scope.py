from __future__ import annotations

import pytest

from fswatchd.platforms.scope import place


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/system.slice/run-u12.scope", "/system.slice/run-u12.scope"),
        # crun with the systemd manager, and systemd as the container's first process.
        ("/machine.slice/crun-web.scope/container", "/machine.slice/crun-web.scope"),
        ("/machine.slice/crun-web.scope/container/init.scope", "/machine.slice/crun-web.scope"),
        ("/crun/web", "/crun/web"),
        ("/web/init.scope", "/web"),
        (r"/machine.slice/machine-lxc\x2d7\x2dweb.scope", None),
    ],
)
def test_what_a_container_can_be_named_by(path: str, wanted: str | None) -> None:
    assert place(path) == (wanted or path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/init.scope",
        "/system.slice",
        "/system.slice/cron.service",
        "/system.slice/containerd.service/payload",
        "/user.slice/user-0.slice/session-3.scope",
        "/user.slice/user-7.slice/user@7.service/app.slice/app-flatpak-x-1.scope",
        "/lxc.payload.web/init.scope",  # of the LXC driver, or of Incus when that has answered
        "/fswatchd-drill-0a1b2c3d-target",  # a drill's own, before and after it is registered
        "/../../elsewhere",
    ],
)
def test_what_says_nothing_of_a_container(path: str) -> None:
    assert place(path) is None
