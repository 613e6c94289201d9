"""What one step of the detector stage and of fine-tuning costs, by part, memory layout, precision and threads.

    python benchmarks/detector_step.py

EfficientNet-Lite0, 96 channels, two convolutions a tower, 8 photograph-sized random images of 320 × 240 px with 50
boxes each (detector stage) or 6 (fine-tuning); medians of 7 steps after 2. The momentum side must cost no pass of the
backbone: the images of both views go through it together, once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from selfdet.data.box_views import BoxViewBatch
from selfdet.data.sample import Sample
from selfdet.detectors.base import Detector
from selfdet.detectors.zoo import DETECTORS
from selfdet.methods import aligndet
from selfdet.methods.aligndet import AlignDet
from selfdet.methods.base import Method
from selfdet.methods.supervised import Supervised
from selfdet.models.backbones import build_backbone

WARM, TIMED, BATCH = 2, 7, 8


class Clock:
    """Adds up what named calls take."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)

    def around(self, owner: Any, name: str, label: str) -> None:
        """Time every call of `owner.name` under `label`."""
        ordinary = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(label):
                return ordinary(*args, **kwargs)

        object.__setattr__(owner, name, timed) if isinstance(owner, nn.Module) else setattr(owner, name, timed)

    @contextmanager
    def part(self, label: str) -> Iterator[None]:
        """Time a block."""
        begun = time.perf_counter()
        yield
        self.seconds[label] += time.perf_counter() - begun
        self.calls[label] += 1


def detector(key: str) -> Detector:
    """The detector of benchmarks/person.py with random weights."""
    torch.manual_seed(0)
    backbone = build_backbone("tf_efficientnet_lite0")
    return DETECTORS[key](1, backbone, fpn_channels=96, head_convs=2, image_size=320, batch_norm="frozen")


def samples(boxes: int, labelled: bool) -> list[Sample]:
    """A batch of random images with random boxes."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(BATCH):
        corner = torch.rand(boxes, 2, generator=generator) * torch.tensor([240.0, 160.0])
        sides = 16 + 64 * torch.rand(boxes, 2, generator=generator)
        image = torch.randint(0, 256, (3, 240, 320), generator=generator, dtype=torch.uint8)
        made.append(
            Sample(
                tv_tensors.Image(image),
                tv_tensors.BoundingBoxes(torch.cat([corner, corner + sides], 1), format="XYXY", canvas_size=(240, 320)),
                torch.arange(boxes),
                torch.zeros(boxes, dtype=torch.int64) if labelled else None,
            )
        )
    return made


def median_step(method: Method, batch: Any, bf16: bool = False, watch: Callable[[], Clock] | None = None) -> float:
    """Seconds of a step: losses, gradient, SGD."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
    method.train()
    times = []
    for step in range(WARM + TIMED):
        if watch is not None and step == WARM:
            clock = watch()
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss: Tensor = method(batch)["loss"]
        forward = time.perf_counter()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - begun)
        if watch is not None and step >= WARM:
            clock.seconds["backward, SGD"] += time.perf_counter() - forward
        method.after_step(step, 100)
    return statistics.median(times[WARM:])


def parts(key: str) -> None:
    """Where the time of a detector-stage step goes."""
    method = AlignDet(detector(key)).to(memory_format=torch.channels_last)
    clock = Clock()

    def watch() -> Clock:
        clock.around(method.detector, "prepare", "prepare")
        clock.around(method.detector, "body", "backbone, both views")
        clock.around(method.detector, "neck", "neck, online")
        clock.around(method.teacher, "neck", "neck, teacher")
        clock.around(method.detector, "regions", "head and assigner, online")
        clock.around(method.teacher, "regions", "head and assigner, teacher")
        clock.around(aligndet, "instance_contrast", "instance_contrast")
        return clock

    ordinary = aligndet.instance_contrast
    step = median_step(method, BoxViewBatch(samples(50, False), samples(50, False)), watch=watch)
    aligndet.instance_contrast = ordinary
    passes = clock.calls["backbone, both views"] / TIMED
    print(f"\n{key}, detector stage: {step:.3f} s a step, of {passes:g} pass of the backbone")
    for label, seconds in clock.seconds.items():
        print(f"  {label:<28}{seconds / TIMED:7.3f} s  {seconds / TIMED / step:5.0%}")


def variants(key: str) -> None:
    """Steps of both kinds in each memory layout, precision and number of threads."""
    print(f"\n{key}: seconds a step")
    print(f"{'threads':>8} {'precision':>10} {'layout':>14} {'fine-tuning':>12} {'detector stage':>15}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for bf16 in (False, True):
            for layout in (torch.contiguous_format, torch.channels_last):
                tune = Supervised(detector(key)).to(memory_format=layout)
                pre = AlignDet(detector(key)).to(memory_format=layout)
                first = median_step(tune, samples(6, True), bf16)
                second = median_step(pre, BoxViewBatch(samples(50, False), samples(50, False)), bf16)
                words = f"{'bf16' if bf16 else 'fp32':>10} {str(layout).removeprefix('torch.'):>14}"
                print(f"{threads:>8} {words.replace('contiguous_format', 'contiguous')} {first:>12.3f} {second:>15.3f}")


def main() -> None:
    """Print both tables for each detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", default=["fcos", "retinanet"], choices=list(DETECTORS))
    for key in parser.parse_args().detectors:
        torch.set_num_threads(1)
        parts(key)
        variants(key)


if __name__ == "__main__":
    main()
