"""How this process holds memory on CPU: memory that one step frees, the next one reuses."""

import ctypes

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory; does nothing under other C libraries.

    By default glibc returns every block above 32 MiB to the kernel, and at B=4096 the activations of 8 experts of width
    512 are 64 MiB: every step got them anew, page by page, in 44,000 page faults that took a sixth of its time. The
    process keeps the memory of its largest step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
