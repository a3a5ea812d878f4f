"""The C library's memory, in a process that answers many users from many threads for weeks.

Each thread gets a heap of its own by default, and what a request leaves free in one is not used by the next in another:
the process grows though it holds no more. With one heap, and its free pages given back from time to time, it does not.
Where the C library is not glibc, nothing is done.
"""

import ctypes

_ARENA_MAX = -8  # M_ARENA_MAX in glibc's malloc.h


def share_one_heap() -> None:
    """Lets all threads allocate from one heap; called before there are any."""
    configure = getattr(ctypes.CDLL(None), "mallopt", None)
    if configure is not None:
        configure(_ARENA_MAX, 1)


def return_free_memory() -> None:
    """Gives free pages back to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
