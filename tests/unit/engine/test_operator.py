"""A request finds only the incident that it is about."""

from __future__ import annotations

import pytest

from fswatchd.engine.operator import refuse_another
from fswatchd.errors import ConflictError
from tests.unit.builders import filesystem, incident


@pytest.mark.parametrize(
    ("known", "asked", "ves"),
    [
        ({}, {}, ("lxc:ve101",)),
        ({"image": None}, {}, ("lxc:ve101",)),
        ({}, {"uuid": None}, ("lxc:ve101",)),
    ],
    ids=["same", "path-not-known-then", "uuid-not-known-now"],
)
def test_the_same_volume_of_the_same_ve(known, asked, ves) -> None:
    refuse_another(incident(filesystem=filesystem(**known)), filesystem(**asked), ves)


def test_an_incident_that_nobody_was_found_for_may_be_this_ves() -> None:
    refuse_another(incident(ves=()), filesystem(), ("lxc:ve101",))


@pytest.mark.parametrize(
    ("asked", "ves"),
    [
        ({"image": "/vz/ve102.raw"}, ("lxc:ve101",)),
        ({}, ("lxc:ve102",)),
        ({}, ("lxc:ve101", "lxc:ve102")),
        ({}, ()),
    ],
    ids=["image", "ve", "shared-now", "nobodys-now"],
)
def test_another_volume_or_another_ve_is_refused(asked, ves) -> None:
    with pytest.raises(ConflictError, match="ve101"):
        refuse_another(incident(), filesystem(**asked), ves)
