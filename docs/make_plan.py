"""Write the tables of docs/how-to-clusters.md from the code and a few assumptions: `python docs/make_plan.py`.

A test holds the committed page to what this writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import Tensor, nn

from selfdet.detectors.zoo import DETECTORS
from selfdet.methods.aligndet import AlignDet
from selfdet.methods.densecl import DenseCL
from selfdet.models.backbones import build_backbone

PAGE = Path(__file__).parent / "how-to-clusters.md"
# Assumed, not measured: images that one GPU takes a second, backbone stage (ResNet-50, 224 px, bf16) and detector stage
# (FCOS on it, 800 px); size of an image file, kB.
BACKBONE_RATE, DETECTOR_RATE = 500, 40
IMAGE_KB = 150
BATCH, DETECTOR_BATCH = 256, 16
# Name, images, epochs of the backbone stage and of the detector stage.
PLANS = (
    ("COCO train2017", 118_287, 800, 12),
    ("ImageNet-1k", 1_281_167, 200, 2),
    ("100 M images", 100_000_000, 2, 0.02),
)
SIDE, CELLS, FEATURES, DIM, QUEUE = 224, 7 * 7, 2048, 128, 65_536
WORLDS = (2, 8, 16, 64)
FLOAT = 4  # bytes


def plan_table() -> str:
    """Steps, GPU-hours and storage of each plan, in Markdown."""
    rows = []
    for name, images, epochs, few in PLANS:
        hours = images * epochs / BACKBONE_RATE / 3600
        more = images * few / DETECTOR_RATE / 3600
        rows.append(
            [
                name,
                f"{epochs} × {images // BATCH:,} = {epochs * (images // BATCH):,}",
                f"{hours:,.0f}",
                f"{round(images * few) // DETECTOR_BATCH:,}",
                f"{more:,.0f}",
                f"{(hours + more) / 8 / 24:.1f}",
                f"{images * IMAGE_KB / 1e9:,.2f}",
            ]
        )
    header = ["images", "backbone: steps", "GPU-hours", "detector: steps", "GPU-hours", "days on 8 GPUs", "images, TB"]
    return _table(header, rows)


def storage_table() -> str:
    """What a run keeps, in Markdown."""
    backbone = densecl()
    detector = AlignDet(DETECTORS["fcos"](1, build_backbone("resnet50"), image_size=800))
    rows = []
    for name, method, product in (
        ("backbone stage: DenseCL, ResNet-50", backbone, backbone.encoder.backbone.net),
        ("detector stage: AlignDet, FCOS on it", detector, detector.detector.net),
    ):
        trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
        checkpoint = bytes_of(method) + FLOAT * trained  # and SGD's momentum
        cells = [name, f"{trained / 1e6:.1f}", f"{checkpoint / 1e6:,.0f}", f"{bytes_of(product) / 1e6:,.0f}"]
        rows.append([*cells, f"{(2 * checkpoint + bytes_of(product)) / 1e9:.2f}"])
    header = ["stage", "trained, millions", "checkpoint, MB", "weights or snapshot, MB", "in all, GB"]
    return _table(header, rows)


def network_table() -> str:
    """Bytes that a process receives in a step of the backbone stage, in Markdown."""
    method = densecl()
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    rows = []
    for world in WORLDS:
        share = (world - 1) / world
        parts = [
            2 * share * FLOAT * trained,
            share * FLOAT * BATCH * image_values(),
            share * FLOAT * BATCH * key_values(),
        ]
        total, seconds = sum(parts), BATCH / (BACKBONE_RATE * world)
        cells = [str(world), *(f"{part / 1e6:,.0f}" for part in parts), f"{total / 1e6:,.0f}"]
        rows.append([*cells, f"{1000 * seconds:,.0f}", f"{8 * total / seconds / 1e9:,.1f}"])
    header = ["processes", "gradients, MB", "key images, MB", "keys, MB", "in all, MB", "a step, ms", "Gbit/s"]
    return _table(header, rows)


@cache
def densecl() -> DenseCL:
    """What the backbone stage trains."""
    return DenseCL(build_backbone("resnet50"), queue_length=QUEUE)


def image_values() -> int:
    """Numbers of an image that is shuffled over the processes."""
    return 3 * SIDE**2


def key_values() -> int:
    """Numbers that come back of one: its key, features and cells; and what enters the two queues."""
    return DIM + CELLS * (FEATURES + DIM) + 2 * DIM


def bytes_of(module: nn.Module) -> int:
    """What the tensors of a module's state take."""
    return sum(value.nbytes for value in module.state_dict().values() if isinstance(value, Tensor))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(text: str) -> str:
    """The page with its tables written anew."""
    for name, table in (("plan", plan_table()), ("storage", storage_table()), ("network", network_table())):
        place = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text = place.sub(lambda found, table=table: found[1] + table + found[2], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
