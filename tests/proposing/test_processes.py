"""Several processes give the same answers as one, and an image that ends its process costs the others nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import joblib
import pytest
from PIL import Image

from selfdet.data.listing import ListedImage, numbered_images
from selfdet.data.synthetic import make_scenes
from selfdet.proposing.filters import Filters
from selfdet.proposing.finding import Task
from selfdet.proposing.processes import default_processes, find_all
from selfdet.proposing.selective_search import Search


class Deadly:
    """A path that ends the process which unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    make_scenes(tmp_path, count=5, size=64)
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "z.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"none")
    return [Task(image, Filters(), Search()) for image in numbered_images(tmp_path / "images")]


def answers(tasks: list[Task], processes: int | None) -> dict[int, dict[str, Any]]:
    return {found.image_id: found.to_dict() for found in find_all(tasks, processes, lambda: False)}


def test_several_processes_give_the_same_answers_as_one(tasks: list[Task]) -> None:
    alone = answers(tasks, 1)
    assert len(alone) == len(tasks)
    assert sum(found.get("fault") == "unreadable" for found in alone.values()) == 1
    assert answers(tasks, 2) == alone
    # A backend that gives its answers all at once.
    with joblib.parallel_config(backend="multiprocessing", n_jobs=1):
        assert answers(tasks, None) == alone


def test_no_more_images_are_taken_up_once_stopped(tasks: list[Task]) -> None:
    questions = iter([False, False, True])
    assert len(list(find_all(tasks, 1, lambda: next(questions)))) == 2


def test_few_images_are_not_worth_a_process() -> None:
    assert default_processes(1) == default_processes(20) == 1
    assert default_processes(100_000) == joblib.cpu_count()


@pytest.mark.slow
def test_an_image_that_ends_its_process_is_counted_and_the_others_go_on(tasks: list[Task]) -> None:
    deadly = Task(ListedImage(99, Deadly(), "deadly.png"), Filters(), Search())  # type: ignore[arg-type]
    expected = answers(tasks, 1)
    found = answers([*tasks[:2], deadly, *tasks[2:]], 2)
    assert found.pop(99)["fault"] == "crashed"
    assert found == expected


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_answers(tasks: list[Task]) -> None:
    distributed = pytest.importorskip("distributed")
    expected = answers(tasks, 1)
    cluster = distributed.Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None)
    with cluster, joblib.parallel_config(backend="dask"):
        assert answers(tasks, None) == expected
