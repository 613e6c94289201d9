"""Loops over pixels and regions, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile a function of arrays and numbers at its first call, and keep the machine code on disk.

    It is kept beside the source file, or in the user's cache folder where that can't be written (`NUMBA_CACHE_DIR`
    names another); where neither can be, every process compiles for itself. The interpreter lock is released meanwhile.
    Floating-point sums keep their order, so that every machine finds the same.
    """
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # no folder for the cache
        return cast(Function, numba.njit(nogil=True)(function))
