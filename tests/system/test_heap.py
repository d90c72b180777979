"""What the C library keeps of memory, in a process of its own: it cannot be undone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# How many arenas threads have made, and how much of what they took is given back.
_SCRIPT = """
import ctypes, re, sys, threading
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from fswatchd.kernel import heap

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def take(count):
    taken = [libc.malloc(64 << 10) for _ in range(count)]
    for place in taken:
        ctypes.memset(place, 1, 64 << 10)
    return taken

if sys.argv[3] == "one":
    heap.use_one_arena()
together = threading.Barrier(4)
def work():
    together.wait()
    taken = take(4)
    together.wait()
    for place in taken:
        libc.free(place)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()

taken = take(200)
pinned = take(1)  # what is behind the free ones keeps them
for place in taken:
    libc.free(place)
before = resident()
heap.give_back()
given = before - resident()

file = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
print(len(re.findall("<heap nr", Path(sys.argv[2]).read_text())), given)
"""


def measured(work: Path, arenas: str) -> tuple[int, int]:
    """How many arenas there are in the end, and how many bytes were given back."""
    project = str(Path(__file__).parents[2])
    argv = [sys.executable, "-c", _SCRIPT, project, str(work / "heap.xml"), arenas]
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    count, given = told.split()
    return int(count), int(given)


def test_all_threads_share_one_arena_and_what_is_free_is_given_back(work: Path) -> None:
    count, given = measured(work, "one")
    assert count == 1
    assert given > 8 << 20


def test_each_thread_would_have_its_own(work: Path) -> None:
    count, _ = measured(work, "many")
    assert count > 1
