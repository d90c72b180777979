"""Damages of ext4: every pass of e2fsck has some."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.zoo.damage import Damage, noise, overwrite, populate, read, run

BLOCK = 1024
FSTYPE = "ext4"
CHECK = ("e2fsck", "-fn")
REPAIR = ("e2fsck", "-fy")

Harm = Callable[[Path], None]


def build(work: Path, *, quota: bool = True) -> Path:
    """The base: indexed directories, extent trees, attributes, quota; proven clean.

    Without quota a kernel without CONFIG_QFMT_V2 can mount it too.
    """
    tree, image = work / "tree", work / "ext4.img"
    populate(tree)
    with image.open("xb") as file:
        file.truncate(48 << 20)
    features = "quota,metadata_csum" if quota else "metadata_csum"
    options = ("-b", str(BLOCK), "-g", "8192", "-O", features, "-d", str(tree))
    run("mke2fs", "-q", "-t", "ext4", *options, str(image))
    run("e2fsck", "-fyD", str(image), good=(0, 1))
    run("e2fsck", "-fn", str(image))
    return image


def extract(image: Path, target: Path) -> None:
    """Every file of the image, without mounting it."""
    target.mkdir()
    run("debugfs", "-R", f"rdump / {target}", str(image))


# --- ways to do harm ----------------------------------------------------------------------------


def _debugfs(*commands: str) -> Harm:
    def harm(image: Path) -> None:
        run("debugfs", "-w", "-f", "-", str(image), given="\n".join((*commands, "")))

    return harm


def _bytes(offset: int, data: bytes) -> Harm:
    return lambda image: overwrite(image, offset, data)


def _ask(image: Path, request: str) -> str:
    return run("debugfs", "-R", request, str(image))


def _blocks(image: Path, what: str) -> list[int]:
    return [int(number) for number in _ask(image, f"blocks {what}").split()]


def _inode_place(image: Path, what: str) -> int:
    found = re.search(r"block (\d+), offset 0x([0-9a-f]+)", _ask(image, f"imap {what}"))
    assert found, what
    return int(found[1]) * BLOCK + int(found[2], 16)


def _number(image: Path, what: str) -> int:
    found = re.search(r"Inode: (\d+)", _ask(image, f"stat {what}"))
    assert found, what
    return int(found[1])


def _in_inode(what: str, offset: int, data: bytes) -> Harm:
    return lambda image: overwrite(image, _inode_place(image, what) + offset, data)


def _block_of(what: str, index: int, name: str, size: int = BLOCK, at: int = 0) -> Harm:
    def harm(image: Path) -> None:
        place = _blocks(image, what)[index] * BLOCK + at
        overwrite(image, place, noise(name, size) if name else bytes(size))

    return harm


def _entry(directory: str, name: str, change: Callable[[bytes], bytes]) -> Harm:
    """Change a directory entry in place (struct ext4_dir_entry_2)."""

    def harm(image: Path) -> None:
        wanted = name.encode()
        for block in _blocks(image, directory):
            data, at = read(image, block * BLOCK, BLOCK), 0
            while at + 8 <= BLOCK:
                length = int.from_bytes(data[at + 4 : at + 6], "little")
                if data[at + 8 : at + 8 + data[at + 6]] == wanted:
                    entry = data[at : at + 8 + data[at + 6]]
                    overwrite(image, block * BLOCK + at, change(entry))
                    return
                if length < 8:
                    break
                at += length
        raise AssertionError(f"{name} is not in {directory}")

    return harm


def _extent_node(name: str) -> Harm:
    """The block below the inode of a file with many extents."""

    def harm(image: Path) -> None:
        found = re.search(r"\(ETB0\):(\d+)", _ask(image, "stat /holes"))
        assert found
        overwrite(image, int(found[1]) * BLOCK, noise(name, BLOCK))

    return harm


def _attribute_block(offset: int, data: bytes) -> Harm:
    def harm(image: Path) -> None:
        found = re.search(r"File ACL: (\d+)", _ask(image, "stat /with-attribute"))
        assert found
        assert int(found[1])
        overwrite(image, int(found[1]) * BLOCK + offset, data)

    return harm


def _same_blocks(image: Path) -> None:
    first = _blocks(image, "/dir1/file1")[0]
    commands = ("extent_open /dir1/file2", "root", f"replace_node 0 9 {first}", "extent_close")
    _debugfs(*commands)(image)


def _group(group: int, field: str, value: str) -> Harm:
    return _debugfs(f"set_block_group {group} {field} {value}")


def _inode(what: str, field: str, value: str) -> Harm:
    return _debugfs(f"set_inode_field {what} {field} {value}")


def _super(field: str, value: str) -> Harm:
    return _debugfs(f"set_super_value {field} {value}")


def _dot_dot(image: Path) -> None:
    number = _number(image, "/dir2")
    _entry("/dir3/deep", "..", lambda e: number.to_bytes(4, "little") + e[4:])(image)


def _free_used_block(image: Path) -> None:
    _debugfs(f"freeb {_blocks(image, '/big')[3]} 4")(image)


def _free_used_inode(image: Path) -> None:
    _debugfs(f"freei <{_number(image, '/big')}>")(image)


def _attributes_shared(image: Path) -> None:
    """Two files with one block of attributes that says it is one file's."""
    found = re.search(r"File ACL: (\d+)", _ask(image, "stat /with-attribute"))
    assert found
    _debugfs(f"set_inode_field /with-attribute-2 file_acl {found[1]}")(image)


def _orphan(image: Path) -> None:
    """A list of orphans that begins with a file that is in use, and goes on to nowhere."""
    number = _number(image, "/big")
    _debugfs("set_inode_field /big dtime 4000000", f"set_super_value last_orphan {number}")(image)


def _to(number: int) -> Callable[[bytes], bytes]:
    return lambda entry: number.to_bytes(4, "little") + entry[4:]


def _kind(number: int) -> Callable[[bytes], bytes]:
    return lambda entry: entry[:7] + bytes([number]) + entry[8:]


DAMAGES = [
    # Pass 0: the superblock, the descriptors, the journal.
    Damage(name="sb-zeroed", part="superblock", harm=_bytes(1024, bytes(1024)), quick=True),
    Damage(name="sb-checksum", part="superblock", harm=_bytes(1024 + 0x3FC, b"\1\2\3\4")),
    Damage(name="sb-reserved", part="superblock", harm=_super("r_blocks_count", "40000000")),
    Damage(name="orphan-list", part="orphans", harm=_orphan, quick=True),
    Damage(name="gdt-zeroed", part="descriptors", harm=_bytes(2 * BLOCK, bytes(BLOCK)), quick=True),
    Damage(name="gd-inode-bitmap", part="descriptors", harm=_group(1, "inode_bitmap", "0")),
    Damage(name="gd-inode-table", part="descriptors", harm=_group(2, "inode_table", "3")),
    Damage(name="gd-checksum", part="descriptors", harm=_group(1, "checksum", "0x1234")),
    Damage(name="journal-superblock", part="journal", harm=_block_of("<8>", 0, ""), quick=True),
    Damage(name="journal-inode", part="journal", harm=_debugfs("clri <8>")),
    Damage(name="journal-feature", part="journal", harm=_debugfs("feature -has_journal")),
    Damage(name="resize-inode", part="descriptors", harm=_debugfs("clri <7>")),
    # Pass 1: inodes, extents, attributes.
    Damage(name="inode-checksum", part="inode", harm=_in_inode("/big", 0x7C, b"\xaa\x55")),
    Damage(name="inode-zeroed", part="inode", harm=_debugfs("clri /dir1/file3"), quick=True),
    Damage(name="inode-noise", part="inode", harm=_in_inode("/dir1/file4", 0, noise("i", 128))),
    Damage(name="inode-mode", part="inode", harm=_inode("/dir1/file5", "mode", "0170644")),
    Damage(name="inode-size-small", part="inode", harm=_inode("/dir1", "size", "10")),
    Damage(name="inode-blocks", part="inode", harm=_inode("/big", "blocks", "77777")),
    Damage(name="inode-dtime", part="inode", harm=_inode("/dir1/file6", "dtime", "1")),
    Damage(name="inode-extra", part="inode", harm=_inode("/dir1/file7", "extra_isize", "999")),
    Damage(name="inode-flags", part="inode", harm=_inode("/many", "flags", "0x80000")),
    Damage(name="index-flag", part="inode", harm=_inode("/dir1/file8", "flags", "0x81000")),
    Damage(name="no-extents", part="extents", harm=_inode("/dir1/file9", "flags", "0")),
    Damage(name="extent-magic", part="extents", harm=_inode("/big", "block[0]", "0"), quick=True),
    Damage(name="extent-out", part="extents", harm=_inode("/big", "block[5]", "0x7fffffff")),
    Damage(name="extent-node", part="extents", harm=_extent_node("node")),
    Damage(name="extent-length", part="extents", harm=_inode("/big", "block[4]", "0x8fff")),
    Damage(name="shared-blocks", part="extents", harm=_same_blocks),
    Damage(name="on-metadata", part="extents", harm=_inode("/dir4/file1", "block[5]", "5")),
    Damage(name="attribute-magic", part="attributes", harm=_attribute_block(0, bytes(4))),
    Damage(name="attribute-noise", part="attributes", harm=_attribute_block(32, noise("x", 64))),
    Damage(name="attribute-count", part="attributes", harm=_attributes_shared, quick=True),
    Damage(name="attribute-out", part="attributes", harm=_inode("/big", "file_acl", "99999999")),
    Damage(name="link-size", part="inode", harm=_inode("/short-link", "size", "5000")),
    Damage(name="fifo-size", part="inode", harm=_inode("/fifo", "size", "4096")),
    Damage(name="quota-inode", part="quota", harm=_debugfs("clri <3>"), quick=True),
    Damage(name="quota-content", part="quota", harm=_block_of("<3>", 0, "quota")),
    Damage(name="quota-numbers", part="quota", harm=_block_of("<4>", 5, "n", 32, 64)),
    # Pass 2: directories.
    Damage(name="dir-noise", part="directory", harm=_block_of("/dir0", 0, "d"), quick=True),
    Damage(name="dir-tail", part="directory", harm=_block_of("/dir0", 0, "t", 4, BLOCK - 4)),
    Damage(name="entry-free", part="directory", harm=_entry("/dir0", "file1", _to(3100))),
    Damage(name="entry-out", part="directory", harm=_entry("/dir0", "file2", _to(9_999_999))),
    Damage(name="entry-root", part="directory", harm=_entry("/dir0", "file4", _to(2))),
    Damage(name="entry-type", part="directory", harm=_entry("/dir0", "file5", _kind(2))),
    Damage(
        name="entry-slash",
        part="directory",
        harm=_entry("/dir0", "file6", lambda e: e[:8] + b"f/le6"),
    ),
    Damage(
        name="entry-twice",
        part="directory",
        harm=_entry("/dir0", "file7", lambda e: e[:8] + b"file8"),
    ),
    Damage(
        name="entry-length",
        part="directory",
        harm=_entry("/dir0", "file9", lambda e: e[:4] + b"\3\0" + e[6:]),
    ),
    Damage(name="no-dot", part="directory", harm=_entry("/dir3", ".", lambda e: e[:8] + b"x")),
    Damage(name="dot-elsewhere", part="directory", harm=_entry("/dir3", ".", _to(2))),
    Damage(name="index-root", part="index", harm=_block_of("/many", 0, "r", 24, 28), quick=True),
    Damage(name="index-leaf", part="index", harm=_block_of("/many", 3, "l")),
    Damage(name="index-version", part="index", harm=_block_of("/many", 0, "", 1, 28)),
    Damage(name="dir-twice", part="directory", harm=_debugfs("link /dir4 /dir5/again")),
    Damage(name="dir-is-file", part="directory", harm=_inode("/dir5/deep", "mode", "0100644")),
    # Pass 3: how directories hang together.
    Damage(name="root", part="connection", harm=_debugfs("clri <2>")),
    Damage(name="no-lost-found", part="connection", harm=_debugfs("unlink /lost+found")),
    Damage(name="dir-adrift", part="connection", harm=_debugfs("unlink /dir2"), quick=True),
    Damage(name="parent", part="connection", harm=_dot_dot),
    # Pass 4: links.
    Damage(name="links", part="links", harm=_inode("/dir2/file1", "links_count", "7"), quick=True),
    Damage(name="no-links", part="links", harm=_inode("/dir2/file2", "links_count", "0")),
    Damage(name="file-adrift", part="links", harm=_debugfs("unlink /dir2/file3")),
    # Pass 5: bitmaps and counters.
    Damage(name="bitmap-free", part="bitmap", harm=_free_used_block, quick=True),
    Damage(name="inode-bitmap-free", part="bitmap", harm=_free_used_inode),
    Damage(name="group-free", part="bitmap", harm=_group(0, "free_blocks_count", "77")),
    Damage(name="group-inodes", part="bitmap", harm=_group(0, "free_inodes_count", "1")),
    Damage(name="group-dirs", part="bitmap", harm=_group(0, "used_dirs_count", "99")),
    Damage(
        name="many-inodes",
        part="several",
        harm=lambda image: overwrite(
            image, _inode_place(image, "/dir1/file1") // BLOCK * BLOCK, noise("table", BLOCK)
        ),
        quick=True,
    ),
]


def base(work: Path, *, quota: bool = True) -> Path:
    """`build`, and without the tree it was made of."""
    image = build(work, quota=quota)
    shutil.rmtree(work / "tree")
    return image
