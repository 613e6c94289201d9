"""The card that goes along with an export: README.md with the front matter of Hugging Face's model cards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selfdet.interchange.history import HISTORY
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.models.backbones import Backbone
from selfdet.training.rundir import write_text

CARD = "README.md"
UNKNOWN = "unknown"  # what Hugging Face calls a licence that nobody has said
TASKS = {"detector": "object-detection", "segmenter": "image-segmentation", "backbone": "image-feature-extraction"}
# How each is used, where it is not the same for all kinds by kind.
USES: dict[str, str | dict[str, str]] = {
    "torchvision": {
        "detector": "`python rebuild.py photo.jpg`, or `from rebuild import build`; its first lines say more.",
        "segmenter": "`python rebuild.py photo.jpg`, or `from rebuild import build`; its first lines say more.",
        "backbone": "`from load import load; net = load()`; its first lines say more.",
    },
    "timm": "`from load import load; net = load()`; its first lines say more.",
    "transformers": {
        "detector": "`python detect.py photo.jpg` finds what was checked. `from_pretrained` on this folder gives "
        "the same network; its image processor's sizes are near those of training, not the same, and so are its boxes.",
        "backbone": "`ResNetBackbone.from_pretrained(FOLDER).eval()` gives four maps, `AutoModel` the last of them; "
        "`AutoImageProcessor` normalises and resizes nothing.",
    },
    "lightly-train": "`from load import load`, and `lightly_train.pretrain(model=load(), …)`; see its first lines.",
    "mmdet": "`config.py` has the model's settings and where its weights are; it belongs on top of a dataset's and a "
    "schedule's.",
    "detectron2": "`config.yaml` goes into `cfg.merge_from_file` on top of detectron2's defaults.",
    "selfdet": "`selfdet pull --init hf://USER/NAME --out model`, then `--init model` for every verb of selfdet.",
    "onnx": {
        "detector": "`python run.py photo.jpg` (numpy, Pillow, onnxruntime), or by yourself:",
        "segmenter": "In onnxruntime, or whatever runs ONNX:",
        "backbone": "In onnxruntime, or whatever runs ONNX:",
    },
    "torch-export": "`torch.export.load(FILE).module(check_guards=False)` after `import torchvision`; without selfdet.",
}
GRAPHS = ("onnx", "torch-export")
GRAPH = """
* `images` (B, 3, H, W) uint8, red first; H and W are multiples of {step}: pad at the right and bottom, {padding}.
{more}
"""
INPUTS = {
    "sizes": "* `sizes` (B, 2) int64: height and width of each image inside the padding.",
    "threshold": "* `threshold` (1,) float32: the score above which something is found{default}.",
    "boxes": "* `boxes` x1 y1 x2 y2 in pixels of the image as it goes in",
    "scores": "* `scores`",
    "labels": "* `labels` int64: places in the list of classes",
    "rows": "* `rows` int64: which of the images",
    "masks": "* `masks` (M, 28, 28): probabilities in the frame of the box",
}


def write_card(folder: Path, given: Outgoing, to: str, written: Written, licence: str | None) -> None:
    """Write README.md: what the network is, what it takes, its classes, where it comes from, what was checked.

    `licence`: that of the weights, as the user says; of what they were trained on nobody here knows.
    """
    write_text(folder / CARD, card(given, to, written, licence))


def card(given: Outgoing, to: str, written: Written, licence: str | None) -> str:
    """The text of a card."""
    note, kind = given.note, given.kind
    backbone = _backbone(given)
    name = backbone.name if kind == "backbone" else f"{note[kind]} over {backbone.name}"
    front = {
        "license": licence or UNKNOWN,
        "library_name": to,
        "pipeline_tag": TASKS[kind],
        "tags": ["selfdet", *([] if kind == "backbone" else [note[kind]]), backbone.library_name],
    }
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# {name}, for {to}", "", "## Use", "", _use(given, to, written), "## The network", ""]
    lines += [f"* backbone: {backbone.library}'s {backbone.library_name}"]
    if kind != "backbone":
        lines += [f"* {kind}: {note[kind]}, {_told(given.network.config()['options'])}"]
    lines += ["", "## Images", "", *_images(given, to, backbone), ""]
    if classes := note.get("classes"):
        lines += [
            "## Classes",
            "",
            *(f"{row}. {json.dumps(each, ensure_ascii=False)}" for row, each in enumerate(classes)),
        ]
        lines += [""]
    lines += ["## What was checked", "", f"{written.line}.", "", "## Where it comes from", "", *_provenance(note), ""]
    lines += ["## Licence", "", _licence(licence), ""]
    return "\n".join(lines)


def _backbone(given: Outgoing) -> Backbone:
    found: Backbone = given.network if given.kind == "backbone" else given.network.backbone
    return found


def _use(given: Outgoing, to: str, written: Written) -> str:
    known = USES.get(to, "")
    text = known if isinstance(known, str) else known[given.kind]
    about: Mapping[str, Any] | None = written.graph
    if to not in GRAPHS or about is None:
        return f"{text}\n"
    default = f", {about['threshold']} if left out" if to == "onnx" and "threshold" in about else ""
    more = [INPUTS[each].format(default=default) for each in about["inputs"] if each in INPUTS]
    more += ["", f"Out come {', '.join(f'`{each}`' for each in about['outputs'])}:", ""]
    more += _outputs(given, about["outputs"])
    padding = "whatever with"
    if given.kind != "detector":  # which is told how large its images are
        mean = ", ".join(str(round(255 * value)) for value in _backbone(given).mean)
        padding = f"with the mean colour ({mean}), as what is near the padding sees it"
    return text + "\n" + GRAPH.format(step=about["step"], padding=padding, more="\n".join(more))


def _outputs(given: Outgoing, names: Sequence[str]) -> list[str]:
    if given.kind == "segmenter":
        classes = given.network.num_classes
        return [
            f"* `scores` (B, {classes}, H, W) float32, before the softmax: the place of a pixel's highest is its class."
        ]
    if given.kind == "backbone":
        sizes = zip(names, given.network.channels, given.network.strides)
        return [f"* `{name}` (B, {channels}, H / {stride}, W / {stride}) float32." for name, channels, stride in sizes]
    return [f"{INPUTS[each]}." for each in names if each in INPUTS]


def _told(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)


def _images(given: Outgoing, to: str, backbone: Backbone) -> list[str]:
    size = given.note.get("image_size")
    lines = [] if not size else [f"* resized, bilinear and antialiased, to a long side of {size} px"]
    if to in GRAPHS:
        return [*lines, "* bytes, red first: the network takes off the mean and divides by the deviation by itself"]
    mean, std = (", ".join(f"{each:.4g}" for each in values) for values in (backbone.mean, backbone.std))
    return [*lines, f"* RGB in 0…1, minus the mean ({mean}), divided by the deviation ({std})"]


def _provenance(note: Mapping[str, Any]) -> list[str]:
    told = {name: note[name] for name in ("method", "trained_as", "pixels", "imported") if name in note}
    lines = [f"* {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in told.items()]
    made = ", ".join(f"{name} {version(name)}" for name in ("selfdet", "torch", "torchvision", "timm"))
    done = []
    for row, step in enumerate(note.get(HISTORY, []), 1):
        figures = ", ".join(f"{name} {value}" for name, value in step.items() if name != "done")
        done.append(f"{row}. {step['done']}: {figures}")
    return [*done, *([""] if done else []), *lines, f"* written with {made}"]


def _licence(licence: str | None) -> str:
    if licence:
        return f"`{licence}`, as whoever exported it says."
    return (
        "Nobody has said. Weights carry the conditions of the images, labels and weights that they were made from; "
        "`selfdet export --licence NAME` writes yours here."
    )
