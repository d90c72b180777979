"""What others were made of and need as it is: lower layers, backing files, origins. Pure.

A write to such a base, also a repair of it, changes what its children are made of beneath their
feet: it is never done while there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from fswatchd.devno import Devno
from fswatchd.inventory.model import BlockDevice, ImageKey, Superblock
from fswatchd.inventory.view import NodeView


def children(view: NodeView, devno: Devno) -> tuple[str, ...]:
    """What is made of a filesystem, or of a device or an image that it writes to, in words.

    Not an overlay that nobody but the filesystem's own users have: it ends with them.
    """
    own = set(view.users[devno].ves) if devno in view.users else set()
    found: dict[str, None] = {}
    for overlay in view.overlays.values():
        users = view.users[overlay.devno]
        if devno in overlay.bases and (users.foreign or not own.issuperset(users.ves)):
            found[_overlay_name(view, overlay)] = None
    for device in _written_with(view, devno):
        found.update(dict.fromkeys(_device_children(view, device.devno)))
        if device.backing.inode_key is not None:
            found.update(dict.fromkeys(children_of_image(view, device.backing.inode_key)))
    return tuple(found)


def children_of_image(view: NodeView, image: ImageKey) -> tuple[str, ...]:
    """The images that have this one as their base, in words."""
    return tuple(
        _image_name(view, child) for child, base in view.image_bases.items() if base == image
    )


def _written_with(view: NodeView, devno: Devno) -> Iterator[BlockDevice]:
    """The devices that a write to a filesystem goes to: not those which its devices only read."""
    left, seen = [devno], {devno}
    superblock = view.superblocks.get(devno)
    left += superblock.members if superblock is not None else ()
    while left:
        device = view.devices.get(left.pop())
        if device is None:
            continue
        yield device
        lower = {one for one in device.lower if one not in device.bases} - seen
        seen |= lower
        left += lower


def _device_children(view: NodeView, devno: Devno) -> Iterator[str]:
    for device in view.devices.values():
        if devno in device.bases:
            yield f"{device.kind} {device.label or device.name}"


def _image_name(view: NodeView, image: ImageKey) -> str:
    path = view.image_paths.get(image, f"an image (inode {image[1]})")
    owner = view.image_owners.get(image)
    return f"{path} of {owner}" if owner is not None else path


def _overlay_name(view: NodeView, overlay: Superblock) -> str:
    users = view.users[overlay.devno]
    return (
        f"the overlay {overlay.mounts[0].mount.point} of {', '.join((*users.ves, *users.foreign))}"
    )
