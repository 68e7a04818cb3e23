"""The bound on the memory that a process keeps, in a process of its own."""

import subprocess
import sys

import pytest

_ARENAS = """
import ctypes, sys, threading
from process.memory import share_free_memory
if "bounded" in sys.argv:
    share_free_memory()
threads, together = 8, threading.Barrier(8)
def work():
    together.wait()
    held = [bytearray(10_000) for _ in range(100)]
    together.wait()
for thread in (started := [threading.Thread(target=work) for _ in range(threads)]):
    thread.start()
for thread in started:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="arenas are those of glibc")
@pytest.mark.parametrize(("words", "arenas"), [(["bounded"], range(1, 3)), ([], range(3, 99))])
def test_threads_share_what_is_free(words: list[str], arenas: range) -> None:
    program = [sys.executable, "-c", _ARENAS, *words]
    told = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert told.count("<heap nr=") in arenas
