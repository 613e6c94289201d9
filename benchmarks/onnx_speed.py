"""A detector in onnxruntime beside eager PyTorch, on a CPU: one image at a time, from bytes to boxes.

    python benchmarks/onnx_speed.py                       # FCOS on a ResNet-18, 320 px
    python benchmarks/onnx_speed.py --detector retinanet --size 512 --threads 2

Both get the same prepared image, normalise it by themselves and suppress boxes. They take turns, round by round, in one
process, so that whatever else the machine does meets both; the figure is the median of the rounds' ratios. A random
network's scores are spread so that there is about as much to suppress as in a trained one. The exported file is the one
that `selfdet export --to onnx` writes and checks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision import tv_tensors

from selfdet import export
from selfdet.data.sample import plain_sample
from selfdet.detectors.zoo import DETECTORS
from selfdet.interchange.export_check import check_images
from selfdet.interchange.starts import detector_note, save_detector
from selfdet.models.backbones import build_backbone


def seconds(run: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def resident() -> float:
    """GB that this process holds."""
    with open("/proc/self/statm") as now:
        return int(now.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def main() -> None:
    """Print the medians, their ratio and the memory of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detector", default="fcos")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    detector = DETECTORS[asked.detector](80, build_backbone(asked.backbone), image_size=asked.size)
    with torch.no_grad():
        for name, value in detector.net.named_parameters():
            if name.endswith(("cls_logits.weight", "cls_score.weight")):
                value.normal_(std=0.05)
    detector.eval()
    image = check_images(2 * asked.size)[0][:, : asked.size * 3 // 4, : asked.size].contiguous()
    sample = plain_sample(tv_tensors.Image(image))
    with tempfile.TemporaryDirectory() as folder:
        note = detector_note(detector, [f"class {row}" for row in range(80)], range(80), asked.size)
        save_detector(Path(folder) / "d.safetensors", detector, note)
        checked = export(init=f"{folder}/d.safetensors", to="onnx", out=f"{folder}/out")["check"]
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = asked.threads
        before = resident()
        session = onnxruntime.InferenceSession(f"{folder}/out/detector.onnx", options)
    height, width = detector.padded_size(*image.shape[1:])
    bytes_in = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    bytes_in[0, :, : image.shape[1], : image.shape[2]] = image
    inputs = {"images": bytes_in.numpy(), "sizes": torch.tensor([image.shape[1:]]).numpy()}

    def eager() -> object:
        with torch.inference_mode():
            return detector.detections(detector.prepare([sample]))

    def served() -> object:
        return session.run(None, inputs)

    for run in (eager, served):
        seconds(run, asked.times)
    held = resident() - before
    rounds = []
    for number in range(asked.rounds):
        turns = (eager, served) if number % 2 else (served, eager)  # nobody is always first
        took = {run: seconds(run, asked.times) for run in turns}
        rounds.append((took[eager], took[served]))
    one, other = (statistics.median(column) for column in zip(*rounds))
    ratio = statistics.median(first / second for first, second in rounds)
    print(f"checked: {checked}")
    print(f"{asked.detector} on {asked.backbone}, {asked.size} px, {asked.threads} threads, {asked.rounds} rounds")
    print(f"eager {1000 * one:.1f} ms, onnxruntime {1000 * other:.1f} ms: {ratio:.2f} times as fast")
    print(f"memory of the session once it has run: {held:.2f} GB")


if __name__ == "__main__":
    main()
