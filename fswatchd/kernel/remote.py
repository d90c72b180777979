"""Filesystems whose storage is another machine's, or a program's.

What others do to them shows nowhere on this node, and whoever asks them waits for their server.
"""

from fswatchd.devno import Devno
from fswatchd.kernel import mountinfo

_REMOTE = frozenset(
    {"nfs", "nfs4", "ceph", "cifs", "smb3", "9p", "virtiofs", "afs", "lustre", "beegfs", "gpfs"}
    | {"orangefs", "coda", "glusterfs", "vboxsf", "fuse"}
)
# Programs that show what the node knows, at many places of every container; nobody's storage.
_NO_STORAGE = frozenset({"fuse.lxcfs", "fuse.gvfsd-fuse", "fuse.portal"})


def is_remote(fstype: str) -> bool:
    """Whether a filesystem of this type has its storage elsewhere; FUSE counts, it cannot be told.

    The part after `fuse.` is what the program calls itself.
    """
    return fstype.partition(".")[0] in _REMOTE and fstype not in _NO_STORAGE


class RemoteMounts:
    """The mounts of this process's namespace as they are when this is made."""

    def __init__(self) -> None:
        mounts = mountinfo.read("self")
        self._any = any(is_remote(mount.fstype) for mount in mounts)
        self._below = [(f"{mount.point.rstrip('/')}/", mount) for mount in mounts]

    def holding(self, path: str) -> Devno | None:
        """The remote filesystem that a path without symbolic links lies on, None for a local one.

        Nothing is looked up.
        """
        best, found = -1, None
        for below, mount in self._below if self._any else ():
            # The last of those on one directory covers the others.
            if path.startswith(below) and len(below) >= best:
                best, found = len(below), mount
        return found.devno if found is not None and is_remote(found.fstype) else None
