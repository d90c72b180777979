"""Which filesystem holds what, from the words of the mount table alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fswatchd.devno import Devno
from fswatchd.inventory.places import Layers, MountTree, layers
from fswatchd.kernel import mountinfo

# The options of overlays on Linux 6.18, as mountinfo and statmount(2) both show them: mounted with
# "lowerdir=/o/a\:b\,c d:l2", and by fsconfig(2) with two "lowerdir+".
ESCAPED = ("lowerdir=/o/a\\134:b\\134\\054c\\040d:l2", "redirect_dir=on")
ONE_BY_ONE = ("lowerdir+=/o/l1", "lowerdir+=/o/a:b\\054c\\040d", "redirect_dir=on")


def test_layers_are_read_as_the_kernel_shows_them() -> None:
    assert layers(ESCAPED).lower == ("/o/a:b,c d", "l2")
    assert layers(ONE_BY_ONE).lower == ("/o/l1", "/o/a:b,c d")
    assert layers(("lowerdir=/a:/b::/data", "upperdir=/u", "workdir=/w", "uuid=on")) == Layers(
        lower=("/a", "/b", "/data"), upper=("/u", "/w")
    )


@given(st.lists(st.text(max_size=40), max_size=5))
@settings(deadline=None)
def test_no_options_raise_anything(options: list[str]) -> None:
    found = layers(options)
    assert all(isinstance(path, str) for path in (*found.lower, *found.upper))


def tree(*lines: str) -> MountTree:
    return MountTree([mountinfo.parse_line(line) for line in lines])


NODE = (
    "27 1 254:0 / / rw,relatime - ext4 /dev/root rw",
    "40 27 0:39 / /srv rw - tmpfs tmpfs rw",
    "41 40 7:1 / /srv/a rw - ext4 /dev/loop1 rw",
    "42 27 7:2 / /vz rw - ext4 /dev/loop2 rw",
    "43 42 7:3 / /vz rw - xfs /dev/loop3 rw",
    "44 27 7:4 / /hidden/in rw - ext4 /dev/loop4 rw",
    "45 27 7:5 / /hidden rw - ext4 /dev/loop5 rw",
)


@pytest.mark.parametrize(
    ("path", "devno"),
    [
        ("/", "254:0"),
        ("/usr/lib", "254:0"),
        ("/srv", "0:39"),
        ("/srv/a/x", "7:1"),
        ("/srv/ab", "0:39"),
        ("/vz/private", "7:3"),  # the later of two on one directory
        ("/hidden/in/x", "7:5"),  # /hidden was mounted over what is below it
        ("//srv/./a", "7:1"),
    ],
)
def test_a_path_leads_where_the_kernel_would_go(path: str, devno: str) -> None:
    found = tree(*NODE).covering(path)
    assert found is not None
    assert found.devno == Devno.parse(devno)


@pytest.mark.parametrize("path", ["l1", "", "/srv/../vz"])
def test_a_path_that_means_nothing_by_itself_leads_nowhere(path: str) -> None:
    assert tree(*NODE).covering(path) is None


def test_tables_that_cannot_be_end_all_the_same() -> None:
    assert tree().covering("/a") is None
    assert tree("1 1 0:1 / / rw - rootfs none rw").covering("/a") is not None
    circle = tree(
        "3 9 7:3 / / rw - ext4 x rw", "1 2 7:1 / /a rw - ext4 x rw", "2 1 7:2 / /a rw - ext4 x rw"
    )
    assert circle.covering("/a/b") is not None
