"""Whatever bytes a reader is given, it answers or raises our own error: random files, and sound ones changed."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from readers import OWN, READERS, prepare, seeds

SEEDS = seeds()
JSON = ("coco", "coco_checked", "given", "proposals", "unfinished", "lease", "config", "yolo", "mask")
KEYS = st.sampled_from(
    ["id", "image_id", "category_id", "bbox", "images", "annotations", "categories", "file_name", "name", "info"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 10**400, -1, 0])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a.png", "../a.png", "a\0", "\ud800", "\n"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
FEW = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
MANY = settings(FEW, max_examples=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("readers"))


def read(name: str, folder: Path, content: bytes) -> None:
    """Read, and let only our own errors pass for an answer."""
    with suppress(*OWN):
        READERS[name](folder, content)


def changed(content: bytes, seed: int) -> bytes:
    """Bytes with some replaced, dropped, doubled or put elsewhere."""
    rng, left = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(len(left) + 1)
        end = min(len(left), start + rng.choice([1, 1, 2, 8, 64]))
        part = bytes(left[start:end])
        left[start:end] = rng.choice(
            [b"", part * 2, rng.randbytes(len(part)), b"[", b'"', b"9" * 30, b"-", b"\xff", b"<"]
        )
    return bytes(left)


def replaced(value: Any, place: random.Random, instead: Any) -> Any:
    """A JSON value with one of its parts replaced."""
    if isinstance(value, dict) and value and place.random() < 0.9:
        key = place.choice(sorted(value))
        return {**value, key: replaced(value[key], place, instead)}
    if isinstance(value, list) and value and place.random() < 0.9:
        number = place.randrange(len(value))
        return [*value[:number], replaced(value[number], place, instead), *value[number + 1 :]]
    return instead


def check_bytes(name: str, folder: Path, times: settings) -> None:
    @times
    @given(st.binary(max_size=200))
    def some(content: bytes) -> None:
        read(name, folder, content)

    @times
    @given(st.integers(0, 10**9))
    def near(seed: int) -> None:
        read(name, folder, changed(SEEDS[name], seed))

    some()
    near()


def check_values(name: str, folder: Path, times: settings) -> None:
    @times
    @given(VALUES)
    def anything(value: Any) -> None:
        read(name, folder, json.dumps(value).encode())

    @times
    @given(st.integers(0, 10**9), VALUES)
    def one_part(seed: int, instead: Any) -> None:
        text = SEEDS[name].splitlines()[-1]
        sound = json.loads(text if text[:1] in b"{[" else b'{"names": ["a"], "train": "images", "steps": 3}')
        read(name, folder, json.dumps(replaced(sound, random.Random(seed), instead)).encode())

    anything()
    one_part()


@pytest.mark.parametrize("name", sorted(READERS))
def test_the_seed_of_a_reader_is_read(name: str, folder: Path) -> None:
    READERS[name](folder, SEEDS[name])


@pytest.mark.parametrize("name", sorted(READERS))
def test_any_bytes_are_read_or_refused(name: str, folder: Path) -> None:
    check_bytes(name, folder, FEW)


@pytest.mark.parametrize("name", JSON)
def test_any_value_is_read_or_refused(name: str, folder: Path) -> None:
    check_values(name, folder, FEW)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(READERS))
def test_many_bytes_are_read_or_refused(name: str, folder: Path) -> None:
    check_bytes(name, folder, MANY)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", JSON)
def test_many_values_are_read_or_refused(name: str, folder: Path) -> None:
    check_values(name, folder, MANY)
