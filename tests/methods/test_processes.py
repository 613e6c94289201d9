"""Claims about several processes: one queue for all, keys in rank order, shuffling that can be undone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.methods.tiny import tiny_backbone, train
from torch import Tensor, multiprocessing
from torch.nn import functional

from selfdet.methods.contrast import nt_xent
from selfdet.methods.densecl import DenseCL
from selfdet.methods.momentum import Draws, gather, split_batch_norm
from selfdet.methods.simclr import of_all

pytestmark = pytest.mark.slow


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    # Rank 0 holds images 0, 1, 2, rank 1 images 3, 4.
    images = torch.arange(3.0)[:, None] if rank == 0 else torch.arange(3.0, 5.0)[:, None]
    everyone, start = gather(images)
    seen: list[Tensor] = []

    def encode(part: Tensor) -> tuple[Tensor, ...]:
        seen.append(part)
        return part * 10, part.bfloat16()

    times_ten, _ = split_batch_norm(encode, images, Draws(0))
    method = DenseCL(tiny_backbone(), queue_length=24, dim=8, matching="random", negatives="dense")
    train(method, [3 - rank, 5, 1 + rank])
    mine = embeddings()[:, 2 * rank : 2 * rank + 2].clone().requires_grad_()
    nt_xent(*map(of_all, mine), 0.1).backward()
    torch.save(
        {
            "everyone": everyone,
            "start": start,
            "times_ten": times_ten,
            "seen": torch.cat(seen),
            "queues": torch.stack([method.queue, method.dense_queue]),
            "draws": method.cell_draws.get_extra_state(),
            "entered": int(method.queue_entered),
            "gradient": mine.grad,
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


def embeddings() -> Tensor:
    """Both views of four images, two for each process."""
    return functional.normalize(torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)), dim=2)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_gather_concatenates_in_rank_order_what_differs_in_length(results: list[dict]) -> None:
    for result, start in zip(results, (0, 3)):
        assert result["everyone"].equal(torch.arange(5.0)[:, None])
        assert result["start"] == start


def test_key_images_are_shuffled_over_the_processes_and_put_back(results: list[dict]) -> None:
    seen = torch.cat([result["seen"] for result in results])
    assert seen.equal(torch.arange(5.0)[:, None][Draws(0).permutation(5)])
    assert torch.cat([result["times_ten"] for result in results]).equal(torch.arange(5.0)[:, None] * 10)


def test_queues_and_draws_are_the_same_in_all_processes(results: list[dict]) -> None:
    assert results[0]["queues"].equal(results[1]["queues"])
    assert results[0]["draws"].equal(results[1]["draws"])
    assert [result["entered"] for result in results] == [18, 18]


def test_the_mean_gradient_of_simclr_is_that_of_all_images_in_one_process(results: list[dict]) -> None:
    whole = embeddings().requires_grad_()
    nt_xent(*whole, 0.1).backward()
    for rank, result in enumerate(results):
        # What data-parallel training averages over the processes.
        torch.testing.assert_close(result["gradient"] / 2, whole.grad[:, 2 * rank : 2 * rank + 2])
