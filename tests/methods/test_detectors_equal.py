"""Detectors in several processes: the step of one process that took the mean over their shares, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.detectors.rcnn_scenes import masked, spread
from tests.detectors.scenes import sample, view_batch
from tests.processes import difference, in_processes
from torch import Tensor

from selfdet.data.box_views import BoxViewBatch
from selfdet.detectors.base import Detector
from selfdet.detectors.zoo import DETECTORS
from selfdet.methods.aligndet import AlignDet
from selfdet.methods.base import Method
from selfdet.methods.supervised import Supervised
from selfdet.models.backbones import build_backbone
from selfdet.training.loop import optimiser_step
from selfdet.training.runtime import Runtime

pytestmark = pytest.mark.slow
BOXES = [[10, 12, 40, 60], [50, 20, 120, 90]]
# What each of four processes sees in each step; two processes see the first two of them.
# An image without boxes on one only, a whole batch without boxes on one, and on all.
SEEN: list[list[list[Any]]] = [
    [[BOXES, BOXES[:1]], [BOXES[1:], []], [BOXES], [BOXES[:1]]],
    [[BOXES], [[], []], [BOXES[1:]], [[]]],
    [[[]], [[], []], [[]], [[]]],
]
KINDS = ("fcos", "faster_rcnn", "mask_rcnn")
METHODS = ("aligndet", "supervised")
CLIP = 1.0
TOLERANCE = 1e-6  # of the largest number of a tensor, or of 1


def build(method: str, kind: str, **options: Any) -> Any:
    """The method over a tiny detector in the state that a seed gives it, its backbone's batch norm frozen."""
    torch.manual_seed(0)
    widths = {"fpn_channels": 64, "image_size": 128, "batch_norm": "frozen"}
    detector = DETECTORS[kind](1, build_backbone("test_resnet"), **widths)
    if kind != "fcos":
        spread(detector)
    return AlignDet(detector, embedding_dim=16, **options) if method == "aligndet" else Supervised(detector)


def batch(method: str, detector: Detector, boxes: list[Any], seed: int) -> Any:
    """Noise images with these boxes: pairs of views, or samples with labels."""
    if method == "aligndet":
        return view_batch(*boxes, seed=seed)
    rows = [sample(128, 128, each, [0] * len(each), seed=seed + row) for row, each in enumerate(boxes)]
    return [masked(row) for row in rows] if detector.has_masks else rows


def train(runtime: Runtime, method: str, kind: str, world: int) -> dict[str, Any]:
    """Three steps; of one process on the mean over the shares of `world`, computed one after the other."""
    fabric = runtime.fabric
    made = build(method, kind, **({"samples": 60} if method == "aligndet" else {}))
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], 1e-3, momentum=0.9)
    wrapped, optimizer = fabric.setup(made, optimizer)
    found: dict[str, Any] = {"losses": [], "gradients": []}
    for step, shares in enumerate(SEEN):
        ranks = list(range(world)) if fabric.world_size == 1 else [fabric.global_rank]
        parts = [batch(method, made.detector, shares[rank], 100 * step + 10 * rank) for rank in ranks]
        with drawing_as(made, step, ranks):
            found["losses"].append(optimiser_step(wrapped, optimizer, parts, fabric, CLIP, step + 1))
        found["gradients"].append(
            {key: p.grad.clone() for key, p in made.named_parameters() if p.grad is not None and p.grad.any()}
        )
        made.after_step(step, len(SEEN))
    return {**found, "state": {key: value for key, value in made.state_dict().items() if isinstance(value, Tensor)}}


@contextmanager
def drawing_as(made: Method, step: int, ranks: list[int]) -> Iterator[None]:
    """Let each pass draw the places that the process which has this share draws, here or there."""
    waiting = list(ranks)
    draws = made.draws.get_extra_state() if isinstance(made, AlignDet) else None

    def seed(*_: Any) -> None:
        torch.manual_seed(1000 * step + waiting.pop(0))
        if draws is not None:  # these are the same in all processes
            made.draws.set_extra_state(draws)

    hook = made.register_forward_pre_hook(seed)
    yield
    hook.remove()


def work(runtime: Runtime, world: int) -> dict[str, Any]:
    """What `train` returns of each method over each detector, and `contrast` of each detector."""
    trained = {f"{method} {kind}": train(runtime, method, kind, world) for method in METHODS for kind in KINDS}
    return trained | {f"contrast {kind}": contrast(runtime, kind, world) for kind in KINDS}


def contrast(runtime: Runtime, kind: str, world: int) -> dict[str, Any]:
    """The contrast with gathered negatives and its gradient, mean over processes; of one process on the whole batch."""
    fabric = runtime.fabric
    made = build("aligndet", kind, samples=10**6, negatives="gathered")
    shares = [batch("aligndet", made.detector, SEEN[0][rank], 10 * rank) for rank in range(world)]
    if fabric.world_size == 1:
        views = zip(*((each.online, each.teacher) for each in shares))
        mine = BoxViewBatch(*([row for each in view for row in each] for view in views))
    else:
        mine = shares[fabric.global_rank]
    loss = made(mine)["contrast"]
    loss.backward()
    found = {key: p.grad for key, p in made.named_parameters() if p.grad is not None} | {"loss": loss.detach()}
    return {key: fabric.all_reduce(value, reduce_op="mean") for key, value in found.items()}


@pytest.fixture(scope="module", params=[2, 4])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process found, and each of several."""
    folder, world = tmp_path_factory.mktemp("detectors"), request.param
    return [*in_processes(1, folder, work, world), *in_processes(world, folder, work, world)]


@pytest.mark.parametrize("name", [f"{method} {kind}" for method in METHODS for kind in KINDS])
def test_processes_take_the_step_of_the_mean_over_their_shares(name: str, runs: list[dict[str, Any]]) -> None:
    alone, *together = (run[name] for run in runs)
    for each in together[1:]:
        assert difference(together[0], each) == 0, "the processes differ"
    found = {key: difference(value, together[0][key]) for key, value in alone.items()}
    print(f"{name}, {len(together)} processes: {found}")
    assert max(found.values()) <= TOLERANCE


@pytest.mark.parametrize("kind", list(KINDS))
def test_gathered_negatives_contrast_as_one_process_does_on_the_whole_batch(
    kind: str, runs: list[dict[str, Any]]
) -> None:
    alone, first, *_ = (run[f"contrast {kind}"] for run in runs)
    assert float(alone["loss"]) > 0
    found = difference(alone, first)
    print(f"gathered {kind}, {len(runs) - 1} processes: {found}")
    assert found <= 10 * TOLERANCE  # float32, summed in another order
