"""Many paths held as bytes are the paths they were."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from selfdet.data.path_list import PathList

NAMES = ["photos/a.jpg", "b.png", "photos/ü ✓/c.jpg", "line\nbreak.jpg", "half \udce4.jpg"]
PATHS = [Path(name) for name in NAMES]


def test_it_is_the_sequence_of_its_paths() -> None:
    paths = PathList(NAMES)
    assert list(paths) == [paths[place] for place in range(len(paths))] == PATHS
    assert paths[-1] == PATHS[-1]
    assert paths[1:4] == PATHS[1:4]
    assert paths[::-2] == PATHS[::-2]
    assert Path("b.png") in paths
    assert paths == PATHS == paths
    assert paths != PATHS[:-1]
    assert list(PathList([])) == []
    with pytest.raises(IndexError):
        paths[len(NAMES)]


def test_a_loader_process_gets_it_as_it_is_and_small() -> None:
    names = [f"folder/{number % 1000:04d}/photograph_{number:07d}.jpg" for number in range(20_000)]
    packed = pickle.dumps(PathList(names), protocol=5)
    assert pickle.loads(packed) == [Path(name) for name in names]
    assert len(packed) < 50 * len(names) < sum(sys.getsizeof(name) for name in names)
