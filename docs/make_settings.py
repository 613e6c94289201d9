"""Write the tables of docs/how-to-settings.md from the code that chooses: `python docs/make_settings.py`.

A test holds the committed page to what this writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from selfdet.data.trial import trial_samples
from selfdet.detectors.zoo import DETECTORS
from selfdet.methods.moco import MoCo
from selfdet.methods.supervised import Supervised
from selfdet.models.backbones import build_backbone
from selfdet.training import defaults, memory
from selfdet.training.defaults import Default
from selfdet.training.log import duration
from selfdet.training.presets import LEAST, PRESETS, Preset, PresetName

IMAGES = (100, 1_000, 10_000, 100_000)
DEVICES = ("CPU", "GPU")
NAMES = {"at_most": "image size, at most", "epochs": "epochs, at most"}
OF = {"run": "all", "backbone": "backbone stage", "detector": "detector stage", "finetune": "`finetune`"}


STAGES = ("backbone", "finetune")
# Name, backbone, side of a view, usual batches of both stages, mixed precision, preset.
MACHINES: tuple[tuple[str, str, int, tuple[int, int], bool, PresetName | None], ...] = (
    ("CPU", "resnet50", 224, (64, 8), False, None),
    ("GPU", "resnet50", 224, (256, 8), True, None),
    ("`laptop`", "resnet18", 128, (64, 8), False, "laptop"),
    ("`one-gpu`", "resnet50", 224, (256, 8), True, "one-gpu"),
)
LAPTOP_RATE = 58.8  # images a second, docs/benchmarks.md: ResNet-18, 128 px, batch 64, two cores

PAGE = Path(__file__).parent / "how-to-settings.md"


def preset_table() -> str:
    """Each setting of each preset and its reason, in Markdown."""
    rows = [
        [f"`{preset}`", OF[part], NAMES.get(name, name.replace("_", " ")), f"{setting.value}", setting.why]
        for preset, parts in PRESETS.items()
        for part, settings in parts.items()
        for name, setting in settings.items()
    ]
    return _table(["preset", "of", "setting", "value", "why"], rows) + (
        f"\n\nA length is never brought under {LEAST:,} steps, an image size never raised over that of the data."
    )


def choice_table() -> str:
    """Batch, steps, learning rate and queue of each stage for each number of images, in Markdown."""
    rows: list[list[str]] = []
    machines: list[tuple[str, str, PresetName | None]] = [("CPU", "CPU", None), ("GPU", "GPU", None)]
    machines += [("`laptop`", "CPU", "laptop"), ("`one-gpu`", "GPU", "one-gpu")]
    for label, device, preset in machines:
        for images in IMAGES:
            backbone, detector, finetune = (
                _length(part, preset, images, batches[DEVICES.index(device)])
                for part, batches in defaults.BATCHES.items()
            )
            rate = defaults.contrastive_lr(images, int(backbone[0].value), pretrained=False)
            queue = defaults.queue_length(images)
            cells = [label, f"{images:,}", f"{queue.value:,.0f}", f"{rate.value:.3g}"]
            for batch, steps in (backbone, detector, finetune):
                cells += [f"{batch.value:g} × {steps.value:,.0f}"]
            rates = [defaults.detector_lr(int(batch.value), "fcos").value for batch, _ in (detector, finetune)]
            rows.append([*cells, " · ".join(f"{value:.3g}" for value in rates)])
    header = [
        "on",
        "images",
        "queue",
        "lr",
        "backbone: batch × steps",
        "detector stage",
        "`finetune`",
        "their lr (FCOS)",
    ]
    return _table(header, rows)


def cost_table() -> str:
    """Memory of each stage and time of the one whose speed was measured, in Markdown."""
    rows = []
    for label, backbone, side, batch, mixed, small in MACHINES:
        images = [int(_length(part, small, 10_000, batch[number])[0].value) for number, part in enumerate(STAGES)]
        encoder = MoCo(build_backbone(backbone), queue_length=256).encoder
        each = memory.kept_bytes(encoder, side, mixed) or 0.0
        cells = [label, backbone, f"{_gigabytes(encoder, each * images[0])} ({images[0]} × {side} px)"]
        long_side = 400 if small == "laptop" else 640
        net = DETECTORS["fcos"](1, build_backbone(backbone), image_size=long_side)
        each = memory.kept_of_two(Supervised(net), trial_samples, long_side**2, mixed) or 0.0
        cells.append(f"{_gigabytes(net, each * images[1])} ({images[1]} × {long_side} px)")
        rows.append(cells)
    table = _table(["on", "backbone", "backbone stage, GB", "`finetune` with FCOS, GB"], rows)
    times = []
    for count in IMAGES:
        batch_size, steps = _length("backbone", "laptop", count, defaults.BATCHES["backbone"][0])
        seen = batch_size.value * steps.value
        times.append([f"{count:,}", f"{seen:,.0f}", f"{duration(seen / LAPTOP_RATE)}"])
    words = f"Backbone stage of `laptop`, at {LAPTOP_RATE} images a second (bfloat16, as measured):"
    return f"{table}\n\n{words}\n\n" + _table(["images", "images passed", "time"], times)


def _gigabytes(network: nn.Module, kept: float) -> str:
    """Weights, gradient, momentum and what a pass keeps."""
    return f"{(12 * sum(value.numel() for value in network.parameters()) + kept) / 1e9:.1f}"


def _length(part: str, preset: PresetName | None, images: int, usual: int) -> tuple[Default, Default]:
    steps = {
        "backbone": defaults.contrastive_steps,
        "detector": defaults.box_domain_steps,
        "finetune": defaults.finetune_steps,
    }[part]
    of = Preset(preset, part)
    length = defaults.length(
        images,
        batch=None,
        usual_batch=of.number("batch_size", Default(usual, "default")),
        shares=1,
        epochs=None,
        steps=None,
        usual_steps=of.steps(steps),
    )
    return length.batch, length.steps


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(text: str) -> str:
    """The page with its tables written anew."""
    for name, table in (("presets", preset_table()), ("choices", choice_table()), ("costs", cost_table())):
        place = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text = place.sub(lambda found, table=table: found[1] + table + found[2], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
