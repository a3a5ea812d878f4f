"""Memory of a process with many threads: one heap, and what is free goes back."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAPS = """
import ctypes, sys, tempfile, threading
from app.memory import return_free_memory, share_one_heap
libc = ctypes.CDLL(None)
libc.fdopen.restype, libc.malloc.restype = ctypes.c_void_p, ctypes.c_void_p
if sys.argv[1] == "one":
    share_one_heap()
together = threading.Barrier(6)
def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
return_free_memory()
with tempfile.TemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fdopen(file.fileno(), b"w"))
    libc.malloc_info(0, stream)
    libc.fflush(stream)
    file.seek(0)
    print(file.read().count(b"<heap nr="))
"""


def test_threads_share_a_heap() -> None:
    heaps = [
        int(subprocess.run([sys.executable, "-c", HEAPS, kind], cwd=ROOT, capture_output=True, check=True).stdout)
        for kind in ("one", "many")
    ]
    assert heaps[0] <= 2 < heaps[1]
