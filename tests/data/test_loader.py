"""The stream of batches is one fixed sequence: for any number of workers, from any step on, whatever cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from selfdet.data.images import Quarantine, UnreadableImage
from selfdet.data.labelled import LabelledDataset, SampleBatch, collate_samples
from selfdet.data.labels import ImageRecord
from selfdet.data.loader import _received, sample_rng, steps_per_epoch, training_batches
from selfdet.data.workers import DeadWorker
from selfdet.errors import UserError

Draw = tuple[int, int, float]


class Numbers:
    """Items that tell what was asked for; some of them cannot be read."""

    def __init__(self, length: int, unreadable: frozenset[int] = frozenset(), mistake: int = -1) -> None:
        self.length = length
        self.unreadable = unreadable
        self.mistake = mistake

    def __len__(self) -> int:
        return self.length

    def load(self, index: int, epoch: int) -> Draw:
        if index in self.unreadable:
            raise UnreadableImage(f"{index}.jpg", "truncated")
        if index == self.mistake:
            raise UserError(f"{index}.json is wrong", "Mend it")
        return index, epoch, float(sample_rng(5, epoch, index).random())


def as_list(items: list[Draw]) -> list[Draw]:
    return items


def stream(
    dataset: Numbers,
    batch_size: int = 4,
    start: int = 0,
    stop: int = 12,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    quarantine: Quarantine | None = None,
) -> list[tuple[int, int, list[Draw]]]:
    batches = training_batches(
        dataset,
        batch_size=batch_size,
        seed=seed,
        start_step=start,
        total_steps=stop,
        workers=workers,
        collate=as_list,
        rank=rank,
        world=world,
        quarantine=quarantine if quarantine is not None else Quarantine(len(dataset), limit=1.0),
    )
    return list(batches)


def indices(batches: list[tuple[int, int, list[Draw]]]) -> list[int]:
    return [index for _, _, items in batches for index, _, _ in items]


def test_an_epoch_shows_each_item_at_most_once_in_full_batches_and_a_new_order() -> None:
    batches = stream(Numbers(22), stop=10)
    assert [(step, epoch) for step, epoch, _ in batches] == [(step, step // 5) for step in range(10)]
    first, second = indices(batches[:5]), indices(batches[5:])
    assert len(set(first)) == len(set(second)) == 20
    assert first != second
    assert {epoch for _, _, items in batches[5:] for _, epoch, _ in items} == {1}


def test_a_stream_begun_anywhere_goes_on_as_if_never_interrupted() -> None:
    whole = stream(Numbers(22), stop=17)
    for start in (1, 5, 13, 16, 17, 40):
        assert stream(Numbers(22), start=start, stop=17) == whole[start:]


def test_the_seed_decides_the_order() -> None:
    assert stream(Numbers(22), seed=1) != stream(Numbers(22), seed=2)
    assert stream(Numbers(22), seed=-1) == stream(Numbers(22), seed=-1)


def test_ranks_share_the_batches_that_one_process_would_have() -> None:
    together = stream(Numbers(25), batch_size=6)
    shares = [stream(Numbers(25), batch_size=2, rank=rank, world=3) for rank in range(3)]
    for (_, epoch, items), *parts in zip(together, *shares):
        assert items == [draw for _, _, share in parts for draw in share]
        assert {part[1] for part in parts} == {epoch}


def test_fewer_items_than_a_batch_repeat_newly_augmented() -> None:
    assert steps_per_epoch(3, batch_size=8) == 1
    for _, _, items in stream(Numbers(3), batch_size=8, stop=3):
        assert len(items) == len({value for _, _, value in items}) == 8
    draws = [draw for _, _, items in stream(Numbers(3), batch_size=8, stop=3) for draw in items]
    assert len(set(draws)) == len(draws)


def test_no_items_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 items"):
        stream(Numbers(0))


def test_drawing_batches_leaves_torchs_own_generator_alone() -> None:
    before = torch.random.get_rng_state()
    stream(Numbers(22))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_numbers_differ_between_items_epochs_and_seeds() -> None:
    drawn = {sample_rng(seed, epoch, index).random() for seed in range(4) for epoch in range(4) for index in range(4)}
    assert len(drawn) == 64


def test_an_unreadable_item_is_replaced_by_the_same_other_one_each_time_and_counted_once() -> None:
    quarantine = Quarantine(40)
    batches = stream(Numbers(40, frozenset({3, 4})), stop=20, quarantine=quarantine)
    assert sorted(quarantine.paths) == ["3.jpg", "4.jpg"]
    assert all(len(items) == 4 for _, _, items in batches)
    assert not {3, 4} & set(indices(batches))
    healthy = indices(stream(Numbers(40), stop=20))
    changed = [before for before, after in zip(healthy, indices(batches)) if before != after]
    assert set(changed) == {3, 4}
    assert stream(Numbers(40, frozenset({3, 4})), start=7, stop=20) == batches[7:]


def test_more_than_five_percent_unreadable_stops_the_stream_and_names_them() -> None:
    with pytest.raises(UserError, match=r"\d of 40 images cannot be read, .*\d+\.jpg \(truncated\)"):
        stream(Numbers(40, frozenset(range(20))), quarantine=Quarantine(40))
    with pytest.raises(UserError, match=r"[23] of 3 images cannot be read"):
        stream(Numbers(3, frozenset(range(3))), quarantine=Quarantine(3))


def test_a_mistake_of_the_users_stays_one_line_with_its_hint() -> None:
    with pytest.raises(UserError) as caught:
        stream(Numbers(8, mistake=2))
    assert (caught.value.message, caught.value.hint) == ("2.json is wrong", "Mend it")


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """Forty small labelled images, of which two are not images at all."""
    found = []
    for key in range(40):
        path = tmp_path / f"{key}.png"
        Image.fromarray(np.random.default_rng(key).integers(0, 256, (12, 16, 3), np.uint8)).save(path)
        boxes = np.array([[2, 2, 10, 9]], np.float32)[: key % 3]
        labels = np.zeros(len(boxes), np.int64)
        found.append(ImageRecord(key, path, 16, 12, boxes, labels, [None] * len(boxes), list(range(len(boxes)))))
    for key in (5, 6):
        (tmp_path / f"{key}.png").write_text("no image")
    return found


def test_batches_of_workers_are_those_of_one_process(records: list[ImageRecord]) -> None:
    dataset = LabelledDataset(records, image_size=24, seed=0, scale_jitter=(0.5, 1.0))

    def run(workers: int) -> tuple[list[tuple[int, int, SampleBatch]], dict[str, str]]:
        quarantine = Quarantine(len(dataset))
        batches = training_batches(
            dataset,
            batch_size=6,
            seed=3,
            start_step=2,
            total_steps=12,
            workers=workers,
            collate=collate_samples,
            quarantine=quarantine,
        )
        return list(batches), quarantine.reasons

    alone, unreadable = run(0)
    shared, same = run(2)
    assert len(unreadable) == 2
    assert list(same.items()) == list(unreadable.items())
    for (step, epoch, batch), (same_step, same_epoch, same_batch) in zip(alone, shared, strict=True):
        assert (step, epoch) == (same_step, same_epoch)
        for sample, same_sample in zip(batch, same_batch, strict=True):
            assert sample.image_id == same_sample.image_id
            assert torch.equal(sample.image, same_sample.image)
            assert torch.equal(sample.boxes, same_sample.boxes)
            assert sample.boxes.canvas_size == same_sample.boxes.canvas_size


def test_a_mistake_met_in_a_worker_reaches_the_user_as_it_is() -> None:
    with pytest.raises(UserError) as caught:
        stream(Numbers(8, mistake=2), workers=1)
    assert (caught.value.message, caught.value.hint) == ("2.json is wrong", "Mend it")


@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), True),
        (
            ConnectionResetError(104, "reset by peer"),
            True,
        ),  # while its batch is fetched
        (FileNotFoundError(2, "no such socket"), True),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0"), False),
        (RuntimeError("out of memory"), False),
    ],
)
def test_a_worker_that_dies_is_known_by_what_is_met_then(error: Exception, dead: bool) -> None:
    class Loader:
        num_workers = 1

        def __iter__(self) -> Iterator[Any]:
            raise error

    with pytest.raises(DeadWorker if dead else type(error)):
        list(_received(cast(Any, Loader()), own_script=True))
