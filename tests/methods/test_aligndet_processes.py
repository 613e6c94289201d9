"""AlignDet in two processes: one detector, one teacher and one order of draws, whatever each of them sees."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from tests.detectors.rcnn_scenes import TWO_STAGE
from tests.detectors.scenes import SMALL, view_batch
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from selfdet.methods.aligndet import AlignDet

pytestmark = pytest.mark.slow
BOXES = [[10, 12, 40, 60], [50, 20, 120, 90]]
STEPS = 3
DETECTORS = {**SMALL, **TWO_STAGE}
# A layer that gives boxes, of each kind of detector.
LAYERS = dict.fromkeys(SMALL, "head.regression_head.bbox_reg") | dict.fromkeys(
    TWO_STAGE, "roi_heads.box_predictor.bbox_pred"
)


def work(rank: int, folder: str, key: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    method = AlignDet(DETECTORS[key](num_classes=1), embedding_dim=16, samples=60)
    # As the loop's engine wraps it, with buffers left alone.
    wrapped = DistributedDataParallel(method, broadcast_buffers=False)
    rate = 0.05 if key in SMALL else 1e-4  # the R-CNNs' random outputs are spread wider
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], rate, momentum=0.9)
    losses = []
    for step in range(STEPS):
        # Different images, of different numbers; the second process has no proposals at all in one step.
        boxes = [BOXES] if rank == 0 else [[] if step == 1 else BOXES[:1], []]
        loss = wrapped(view_batch(*boxes, seed=10 * step + 5 * rank))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step, STEPS)
        losses.append(float(loss.detach()))
    torch.save({"state": method.state_dict(), "losses": losses}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("key", list(DETECTORS))
def test_two_processes_stay_in_step(key: str, tmp_path) -> None:
    multiprocessing.spawn(work, (str(tmp_path), key), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["losses"] != second["losses"]
    for name, value in first["state"].items():
        assert value.equal(second["state"][name]), name
    fresh = DETECTORS[key](num_classes=1).net.state_dict()
    name = f"{LAYERS[key]}.weight"
    assert not first["state"][f"detector.net.{name}"].equal(fresh[name])
