"""Every pattern on the samples beside it, and on lines that try to look like one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.events import EventClass
from fswatchd.kernlog.grammar import MESSAGE_MAX, Family, Pattern, Sample, shipped
from fswatchd.kernlog.prefix import classify_line

SAMPLES = [
    pytest.param(pattern, sample, id=f"{pattern.name}-{number}")
    for family in shipped().families
    for pattern in family.patterns
    for number, sample in enumerate(pattern.samples)
]


@pytest.mark.parametrize(("pattern", "sample"), SAMPLES)
def test_a_sample_gives_what_stands_beside_it(pattern: Pattern, sample: Sample) -> None:
    found = shipped().classify(sample.line)
    assert found is not None
    assert found.pattern == pattern.name
    assert found.device == sample.device
    assert sample.errno is None or found.errno == sample.errno
    assert sample.server is None or found.server == sample.server
    assert (found.lost.inode if found.lost else None) == sample.inode


def test_every_pattern_has_a_sample() -> None:
    without = [p.name for f in shipped().families for p in f.patterns if not p.samples]
    assert not without


def test_no_two_patterns_have_one_name() -> None:
    names = [p.name for f in shipped().families for p in f.patterns]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("pattern", "sample"), SAMPLES)
def test_a_sample_is_found_in_a_log_too(pattern: Pattern, sample: Sample) -> None:
    first, _, rest = sample.line.partition("\n")
    found = classify_line(shipped(), f"Jul 30 05:09:46 host kernel: [  749.807367] {first}")
    assert found is not None
    assert found.pattern == pattern.name or rest


@pytest.mark.parametrize(("pattern", "sample"), SAMPLES)
def test_a_sample_another_program_quotes_is_not_the_kernels(
    pattern: Pattern, sample: Sample
) -> None:
    for prefix in ("Nov  2 10:00:00 host app[12]: ", "2024-11-02T10:00:00Z host app: kernel: "):
        assert classify_line(shipped(), prefix + sample.line) is None


COMMANDS = [
    "btrfs",
    "md",
    "sd 1:1:1:1",
    "XFS (sda1)",
    "x: reading dir",
    "IO failure",
    "Detected abort",
    "path /x: readi",
    "(device sda1)",
    "): ext4_x:1: ",
    "a: b: c: d: e:",
    "comm y: comm z",
    "\\xe3\\x82\\xb7",
    "in x: error -5",
]


@pytest.mark.parametrize("comm", COMMANDS)
@pytest.mark.parametrize(
    ("text", "klass"),
    [
        ("deleted inode referenced: 12", EventClass.CORRUPTION),
        ("reading directory lblock 0", EventClass.IO_ERROR),
        ("Detected aborted journal", EventClass.READONLY),
        ("iget: checksum invalid", EventClass.CORRUPTION),
    ],
)
def test_a_command_name_does_not_decide_the_class(comm: str, text: str, klass: EventClass) -> None:
    found = shipped().classify(
        f"EXT4-fs error (device loop1): ext4_lookup:1789: inode #2: comm {comm}: {text}"
    )
    assert found is not None
    assert (found.klass, found.device) == (klass, "loop1")


@pytest.mark.parametrize("comm", COMMANDS)
def test_a_command_name_in_front_does_not_decide_the_family(comm: str) -> None:
    for newline in ("\n", "\\x0a"):
        found = shipped().classify(
            f"{comm}: attempt to access beyond end of device{newline}dm-4: rw=0, sector=8, limit=4"
        )
        assert found is not None
        assert (found.pattern, found.device, found.line_break) == ("beyond-end", "dm-4", False)


@given(
    st.text(st.characters(codec="ascii", exclude_characters="\0\n\r\\"), min_size=1, max_size=15)
)
def test_no_command_name_at_all_changes_the_result(comm: str) -> None:
    for template in (
        "EXT4-fs error (device dm-4): ext4_journal_check_start: comm {}: Detected aborted journal",
        "EXT4-fs error (device dm-4): __ext4_find_entry:1: comm {}: reading directory lblock 0",
        "EXT4-fs error (device dm-4): htree_dirblock_to_tree:915: inode #2: comm {}: bad entry",
        "{}: attempt to access beyond end of device\ndm-4: rw=0, sector=8, nr_sectors = 8 limit=4",
    ):
        usual = shipped().classify(template.format("ls"))
        found = shipped().classify(template.format(comm))
        assert usual is not None
        assert found == usual


def test_words_at_the_end_of_a_longer_text_do_not_decide_the_class() -> None:
    for words in (
        "Detected aborted journal",
        "reading directory lblock 0",
        "iget: checksum invalid",
    ):
        found = shipped().classify(
            f"EXT4-fs error (device loop1): trigger_test_error:129: comm sh: it is not so: {words}"
        )
        assert found is not None
        assert (found.klass, found.errno) == (EventClass.CORRUPTION, 117)


@pytest.mark.parametrize(
    "path",
    [
        "/a: reading directory lblock 0",
        "/a: iget: checksum invalid",
        "/x (device sda1): y",
        "/comm z: Detected aborted journal",
    ],
)
def test_a_path_does_not_decide_the_class(path: str) -> None:
    found = shipped().classify(
        "EXT4-fs error (device loop1): ext4_readdir:219: inode #2: block 4123: comm ls: "
        f"path {path}: bad entry in directory: rec_len is smaller than minimal - offset=0"
    )
    assert found is not None
    assert (found.klass, found.device) == (EventClass.CORRUPTION, "loop1")
    assert found.errno == 117


@pytest.mark.parametrize(
    "line",
    [
        # Labels, paths, options and names of servers that quote the kernel.
        "BTRFS: device label EXT4-fs error (device sda1) devid 1 transid 5 /dev/loop0",
        "overlayfs: failed to resolve 'XFS (sda1): Corruption detected. Unmount and run': -2",
        'EXT4-fs (sda1): Unrecognized mount option "Remounting filesystem read-only" or missing',
        "XFS (sda1): unknown mount option [I/O Error Detected. Shutting down filesystem].",
        "BTRFS error (device sda1): unrecognized mount option 'forced readonly'",
        "CIFS: Attempting to mount //x/Write error at byte offset",
        "scsi 5:0:0:0: Direct-Access     Buffer I/O error on dev sda  PQ: 0 ANSI: 5",
        # Someone else's words that end or start like the kernel's.
        "tmpfs: Unknown parameter 'zz\\x0aEXT4-fs error (device sda1): forged'",
        'audit: type=1400 comm="EXT4-fs error (device sda1): x"',
        "ext4lazyinit: I/O error, dev sda, sector 1",
        "usb 1-1: EXT4-fs error (device sda1): x:1: y",
    ],
)
def test_a_quotation_is_no_problem(line: str) -> None:
    for prefix in ("", "[    1.0] ", "Jul 30 05:09:46 host kernel: "):
        found = classify_line(shipped(), prefix + line)
        assert found is None or not found.problem


@pytest.mark.parametrize(
    "line",
    [
        "EXT4-fs error (device sda1): x[123]: segfault at 0",
        "tmpfs: Unknown parameter 'zz\\x0aEXT4-fs error (device sda1): forged'",
        " EXT4-fs error (device sda1): x",
        "XEXT4-fs error (device sda1): x:1: y",
        "EXT4-fs error (device ../../etc): x:1: y",
        "EXT4-fs error (device sda1 sda2): x:1: y",
    ],
)
def test_what_only_looks_like_a_message(line: str) -> None:
    found = shipped().classify(line)
    assert found is None or found.device in {None, "sda1"}


@pytest.mark.parametrize(
    ("line", "breaks"),
    [
        ("XFS (sda1): Corruption detected\nUnmount", True),
        ("EXT4-fs error (device sda1): x:1: comm a\\x0ab: y", True),
        ("EXT4-fs error (device sda1): x:1: comm \\x5cx0a: y", False),
        ("EXT4-fs error (device sda1): x:1: comm \\xe3\\x82\\xb7: y", False),
        ("a: attempt to access beyond end of device\nsda: rw=0, sector=1, limit=0", False),
        ("raid1: Disk failure on b, disabling device.\\x0araid1: Operation continuing on 1 devices",
         False),
    ],
)  # fmt: skip
def test_a_line_break_is_the_kernels_only_where_the_pattern_has_one(
    line: str, breaks: bool
) -> None:
    found = shipped().classify(line)
    assert found is not None
    assert found.line_break is breaks


def test_a_message_longer_than_any_record_is_not_the_kernels() -> None:
    line = "EXT4-fs error (device sda1): x:1: "
    assert shipped().classify(line + "y" * (MESSAGE_MAX - len(line))) is not None
    assert shipped().classify(line + "y" * (MESSAGE_MAX - len(line) + 1)) is None


PREFIXES = [
    "",
    "[  749.807367] ",
    "[  749.807367][ T1555] ",
    "[Mon Jul 19 10:37:35 2021] ",
    "[  +0.000024] ",
    "[  +0,000024] ",
    "[Apr19 18:52] ",
    "<2>[  749.807367] ",
    "2,1234,749807367,-;",
    "6,1234,749807367,-,caller=T12;",
    "kern  :crit  : [  749.807367] ",
    "kern  :crit  : [Mon Jul 19 10:37:35 2021] ",
    "Jul 30 05:09:46 host kernel: ",
    "Jul 30 05:09:46 host kernel: [  749.807367] ",
    "Jul 30 05:09:46 kvm-03-guest-02 ",
    "Jul 30 05:09:46 host kern.crit kernel: ",
    "2024-06-20 09:42:14 crit kernel: ",
    "2024-06-20T09:42:14.123456+02:00 host kernel: [  749.807367] ",
    "2024-06-20T09:42:14+0200 host kernel: ",
    "10:58:31  ",
    "kernel: ",
    "<2>1 2024-06-20T09:42:14.123Z host kernel - - - ",
    "[  749.807367] host kernel: ",
    "10.0.0.2: kern:   crit: [2024-06-20T09:42:14.123456Z]: ",
    "[<    0.000024>] ",
    "[Mon Jul 19 10:37:35 2021 <    0.000024>] ",
    "2021-07-19T10:37:35,123456+02:00 ",
    "kern  :err   : 2021-07-19T10:37:35,123456+02:00 ",
    "<3>[   12.345678][    T1] ",
    "<2>",
    "0,1,0,-;",
    "4,1234,749807367,c,caller=C1;",
    "Mon 2021-07-19 10:37:35 UTC host kernel: ",
    "Mon 2021-07-19 10:37:35 CEST host kernel: ",
    "2021-07-19T10:37:35.123456+0200 host kernel: ",
    "Jul 19 10:37:35.123456 host kernel: ",
    "1626683855.123456 host kernel: ",
    "Thu Apr 11 12:00:00 2024 kern.crit kernel: [   12.345678] ",
    "07-19 10:37:35.123     0     0 E ",
    "2024 Jun 20 09:42:14 host kernel: ",
    "2024/06/20 09:42:14 host kernel: ",
    "2024-06-20 09:42:14 ",
    "2024-06-20 09:42:14 [  749.807367] ",
    "Jul 30 05:09:46 fe80::1 kernel: ",
    "Jul 30 05:09:46 host kernel: [  749.807367][ T1555] ",
    "Jul 30 05:09:46 host kernel[0]: ",
    "Jul 30 05:09:46 host kernel:  ",
    '<2>1 2024-06-20T09:42:14.123Z host kernel - - [meta sequenceId="1"] ',
    "1 2024-06-20T09:42:14.123Z host kernel - - - ",
    "<2>1 2024-06-20T09:42:14.123Z host kernel - - - \ufeff",
    "<2>1 2024-06-20T09:42:14.123Z host kernel - - - \xef\xbb\xbf",
    "<2>1 - host kernel - - - ",
    "<2>1 - - kernel - - - ",
    '<2>1 2024-06-20T09:42:14Z host kernel - ID4 [a@1 b="c"][d@2 e="f"] ',
    '<2>1 2024-06-20T09:42:14Z host kernel - - [a@1 b="c \\] d"] ',
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_message_is_found_behind_any_usual_prefix(prefix: str) -> None:
    found = classify_line(shipped(), f"{prefix}EXT4-fs (sdd1): Remounting filesystem read-only")
    assert found is not None
    assert (found.klass, found.device) == (EventClass.READONLY, "sdd1")


@pytest.mark.parametrize(
    "line",
    [
        "Jul 30 05:09:46 host sshd[123]: EXT4-fs error (device sda1): x:1: y",
        "Jul 30 05:09:46 host myapp: kernel: EXT4-fs error (device sda1): x:1: y",
        "2024-06-20T09:42:14Z host app[1]: [  1.0] EXT4-fs (sda1): Remounting filesystem read-only",
        "somebody said EXT4-fs error (device sda1): x:1: y",
        "<2>1 - host app - - - EXT4-fs error (device sda1): x:1: y",
        '<2>1 - host app - - [a b="kernel - - -"] EXT4-fs error (device sda1): x:1: y',
        "<14>1 - host kernel - - - EXT4-fs error (device sda1): x:1: y",
        "EXT4-fs: EXT4-fs error (device sda1): x:1: y",
        "[    1.0] systemd[1]: EXT4-fs error (device sda1): x:1: y",
        "[    1.0] word EXT4-fs error (device sda1): x:1: y",
        "12,1234,749807367,-;EXT4-fs error (device sda1): x:1: y",
        "<14>[    1.0] EXT4-fs error (device sda1): x:1: y",
        "user  :crit  : [    1.0] EXT4-fs error (device sda1): x:1: y",
        "<14>1 2024-06-20T09:42:14Z host app 1 - - EXT4-fs error (device sda1): x:1: y",
        "<2>1 2024-06-20T09:42:14Z host app - - - EXT4-fs error (device sda1): x:1: y",
        "Jul 30 05:09:46 host app: attempt to access beyond end of device",
        "07-19 10:37:35.123  1021  1033 E vold: EXT4-fs error (device sda1): x:1: y",
    ],
)
def test_what_another_program_quotes_is_not_the_kernels(line: str) -> None:
    found = classify_line(shipped(), line)
    assert found is None or not found.problem


ANY_TEXT = st.one_of(
    st.text(max_size=300),
    st.tuples(
        st.sampled_from(["", *PREFIXES]),
        st.sampled_from([parameter.values[1].line for parameter in SAMPLES]),
        st.integers(0, 80),
        st.text(max_size=80),
    ).map(lambda parts: f"{parts[0]}{parts[1][: parts[2]]}{parts[3]}{parts[1][parts[2] :]}"),
)


@given(ANY_TEXT)
def test_no_text_breaks_it(text: str) -> None:
    classify_line(shipped(), text)
    shipped().classify(text)


FILLS = ("a", " ", ": ", "[", " comm x: path ", ",", "1", " error 1", "(device ", "\n", "corrupt ")
HEADS = sorted(
    {line[:cut] for p in SAMPLES for line in (p.values[1].line,) for cut in (9, 25, 60, len(line))}
)


def seconds(classify: Callable[[str], object], head: str, size: int) -> float:
    """The least of three times for the worst of all fills."""
    lines = [head + fill * (size // len(fill)) for fill in FILLS]
    times = []
    for _ in range(3):
        begin = time.process_time()
        for line in lines:
            classify(line)
        times.append(time.process_time() - begin)
    return min(times)


@pytest.mark.parametrize("family", shipped().families, ids=lambda family: family.starts[0])
def test_no_pattern_needs_more_than_linear_time(family: Family) -> None:
    """Without the bound on a message's length: twice the length, twice the time, and some."""
    heads = [h for h in HEADS if any(re.match(start, h, re.ASCII) for start in family.starts)]
    assert heads
    for head in heads:
        family.classify(head)
        if (small := seconds(family.classify, head, 4 << 10)) > 0.002:
            assert seconds(family.classify, head, 16 << 10) < small * 10


@pytest.mark.parametrize("size", [64 << 10])
def test_a_hostile_line_costs_no_more_than_finding_its_end(size: int) -> None:
    """A line of any length is cheaper than one plain search through it, times a constant."""
    nothing = re.compile("[b-y]b[c-z]")
    for head in ["", "[", "Jul 30 05:09:46 ", "2,1,1,", *HEADS[::25]]:
        for prefix in ("", "Jul 30 05:09:46 host kernel: [  749.807367] "):
            ours = seconds(lambda line: classify_line(shipped(), line), prefix + head, size)
            assert ours < max(seconds(nothing.search, prefix + head, size), 0.001) * 20


@pytest.mark.parametrize(
    "line",
    [
        "F2FS-fs (sdb): [26174]: segfault at 0 ip 0 sp 0 error 4 in Bitmap was wrongly set",
        "F2FS-fs (sdb): [26174]: segfault at 0 ip 0 sp 0 error 4 in read error",
        "btrfs: corrupt invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "jfs_mount: page allocation failure: order:4, mode:0xcc0(GFP_KERNEL)",
        "ploop(24002)[26174]: segfault at 0 ip 0 sp 0 error 4",
        "XFS (loop3): C (1): drop_caches: 3",
    ],
)
def test_no_process_names_itself_a_problem(line: str) -> None:
    found = shipped().classify(line)
    assert found is None or not found.problem


def test_no_name_hides_a_problem() -> None:
    line = (
        "EXT4-fs error (device loop3): ext4_find_entry:1455: inode #2: comm x[1]: segfault a: "
        "reading directory lblock 0"
    )
    found = shipped().classify(line)
    assert found is not None
    assert (found.problem, found.device) == (True, "loop3")
