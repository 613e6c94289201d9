"""Processes that share a batch train what one process trains on all of it: loss, gradients, queues and weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.methods.tiny import view_batch
from tests.processes import difference, in_processes
from torch import Tensor, nn

from selfdet.data.views import ViewBatch
from selfdet.methods.base import Method
from selfdet.methods.densecl import DenseCL
from selfdet.methods.moco import MoCo
from selfdet.methods.simclr import SimCLR
from selfdet.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from selfdet.training.loop import optimiser_step
from selfdet.training.runtime import Runtime

pytestmark = pytest.mark.slow
STEPS, IMAGES = 3, 8
QUEUE = {"queue_length": 21, "dim": 8, "momentum": 0.9}  # not a multiple of the batch
METHODS: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "moco": (MoCo, QUEUE),
    "densecl": (DenseCL, QUEUE),
    "densecl-geometric": (DenseCL, {**QUEUE, "matching": "geometric"}),
    "densecl-random": (DenseCL, {**QUEUE, "matching": "random", "negatives": "dense", "dense_warmup": 2}),
    "simclr": (SimCLR, {"dim": 8}),
}
TOLERANCE = 1e-6  # of the largest number of a tensor, or of 1


def backbone() -> Backbone:
    """Two strided convolutions in float64 without batch norm: maps of stride 4 and 8."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)
    net = nn.ModuleList([first, second])

    def maps(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        one = net[0](x.double()).relu()
        return {"0": one, "1": net[1](one).relu()}

    return Backbone("plain", "torchvision", net, maps, [8, 16], [4, 8], IMAGENET_MEAN, IMAGENET_STD)


def part(batch: ViewBatch, first: int, count: int) -> ViewBatch:
    rows = slice(first, first + count)
    return ViewBatch(*(getattr(batch, name)[rows] for name in vars(batch)))


def work(runtime: Runtime) -> dict[str, Any]:
    """What `train` returns of each method."""
    return {name: train(runtime, name) for name in METHODS}


def train(runtime: Runtime, name: str) -> dict[str, Any]:
    """Train three steps on this process's share of the global batch; what there is afterwards."""
    fabric = runtime.fabric
    kind, options = METHODS[name]
    method = kind(backbone(), **options).double()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1, momentum=0.9)
    wrapped, optimizer = fabric.setup(method, optimizer)
    share = IMAGES // fabric.world_size
    found: dict[str, Any] = {"losses": [], "gradients": []}
    for step in range(STEPS):
        mine = part(view_batch(IMAGES, seed=step), share * fabric.global_rank, share)
        losses = optimiser_step(wrapped, optimizer, [mine], fabric, 0.0, step + 1)
        gradients = {key: p.grad.clone() for key, p in method.named_parameters() if p.grad is not None}
        method.after_step(step, STEPS)
        found["losses"].append(losses)
        found["gradients"].append(gradients)
    state = {key: value for key, value in method.state_dict().items() if isinstance(value, Tensor)}
    return {**found, "state": copy.deepcopy(state)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return in_processes(1, tmp_path_factory.mktemp("alone"), work)[0]


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, then of four."""
    return in_processes(request.param, tmp_path_factory.mktemp("together"), work)


@pytest.mark.parametrize("name", list(METHODS))
def test_processes_train_what_one_process_trains_on_the_same_batch(
    name: str, alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    for each in together[1:]:
        assert difference(together[0][name], each[name]) == 0, "the processes differ"
    found = {key: difference(value, together[0][name][key]) for key, value in alone[name].items()}
    print(f"{name}, {len(together)} processes: {found}")
    assert max(found.values()) <= TOLERANCE
