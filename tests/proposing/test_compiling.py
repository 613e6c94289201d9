"""Loops are compiled, also where the result can't be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import pytest

from selfdet.proposing.compiling import kernel


def double(value: int) -> int:
    return 2 * value


def test_a_function_is_compiled_and_computes_the_same() -> None:
    assert kernel(double)(21) == 42


def test_where_no_folder_takes_the_machine_code_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def read_only(**options: Any) -> Callable[..., Any]:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", read_only)
    assert kernel(double)(21) == 42
