"""How the C library hands out memory: what training on a CPU wants differs from what it does unasked."""

from __future__ import annotations

import ctypes

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed blocks for the next training step instead of giving them back to the kernel.

    A step frees its activations and the next one asks for blocks of the same sizes. Given back, each of their pages
    must be faulted in and zeroed again: a tenth of a U-Net's step (docs/speed.md). The process keeps its peak
    until it ends, and the peak itself stays.

    Returns:
        Whether the C library took the setting; False where it is another one (macOS, Windows, musl), and nothing
        changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows opens no library without a name
        return False
    # in this order: large blocks in mappings of their own while nothing may be trimmed cost twice the step
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
