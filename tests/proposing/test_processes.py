"""Several processes give the same answers as one, and an image that ends its process costs the others nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import joblib
import pytest
from PIL import Image

from deadly import DeadlyPath
from selfdet.data.listing import ListedImage, numbered_images
from selfdet.data.synthetic import make_scenes
from selfdet.errors import UserError
from selfdet.proposing import processes
from selfdet.proposing.filters import Filters
from selfdet.proposing.finding import Found, Task, find_boxes
from selfdet.proposing.processes import default_processes, find_all
from selfdet.proposing.selective_search import Search

DEADLY = ListedImage(99, DeadlyPath(), "deadly.png")  # type: ignore[arg-type]


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    make_scenes(tmp_path, count=5, size=64)
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "z.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"none")
    return [Task(image, Filters(), Search()) for image in numbered_images(tmp_path / "images")]


def answers(tasks: list[Task], count: int | None) -> dict[int, dict[str, Any]]:
    return {found.image_id: found.to_dict() for found in find_all(tasks, count, lambda: False)}


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
    expected = answers(tasks, 1)
    found = answers([*tasks[:2], Task(DEADLY, Filters(), Search()), *tasks[2:]], 2)
    assert found.pop(99)["fault"] == "crashed"
    assert found == expected


class Cluster:
    """A backend of joblib's that is not on this machine."""

    supports_return_generator = True


@pytest.mark.parametrize("answered", [0, 1])
def test_tasks_that_a_cluster_loses_are_done_here_and_a_silent_cluster_is_given_up(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch, answered: int
) -> None:
    expected = answers(tasks, 1)
    alone: list[int] = []

    def lossy(left: list[Task], begun: list[Task], *_: object) -> Iterator[Found]:
        begun += left[: answered + 2]
        yield from map(find_boxes, left[:answered])
        raise TimeoutError

    def here(task: Task) -> Found:
        alone.append(task.image.image_id)
        return find_boxes(task)

    monkeypatch.setattr(processes, "get_active_backend", lambda: (Cluster(), None))
    monkeypatch.setattr(processes, "_together", lossy)
    monkeypatch.setattr(processes, "_alone", here)
    if answered:
        assert answers(tasks, None) == expected
        assert alone == [2, 3, 5, 6]
    else:
        with pytest.raises(UserError, match="the processes of joblib's Cluster gave no answer"):
            answers(tasks, None)
        assert alone == [1, 2]


@pytest.fixture
def dask() -> Iterator[None]:
    """joblib's processes are those of a dask cluster."""
    distributed = pytest.importorskip("distributed", reason="pip install selfdet[cluster]")
    with distributed.Client(n_workers=1, threads_per_worker=4, dashboard_address=None) as client:
        client.run(import_module, processes.__name__)  # torch may take longer than the patience of these tests
        with joblib.parallel_config(backend="dask"):
            yield


@pytest.mark.slow
@pytest.mark.usefixtures("dask")
def test_a_dask_cluster_gives_the_same_answers_and_survives_an_image_that_ends_its_workers(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    with joblib.parallel_config(backend="loky"):
        expected = answers(tasks, 1)
    assert answers(tasks, None) == expected
    monkeypatch.setattr(processes, "LEAST_PATIENCE", 5.0)
    found = answers([replace(task, timeout=4) for task in (*tasks[:2], Task(DEADLY, Filters()), *tasks[2:])], None)
    assert found.pop(99)["fault"] == "crashed"
    assert found == expected
