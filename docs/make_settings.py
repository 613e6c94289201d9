"""Write the tables of docs/how-to-settings.md from the code that chooses: `python docs/make_settings.py`.

A test holds the committed page to what this writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from selfdet.training import defaults
from selfdet.training.defaults import Default
from selfdet.training.presets import LEAST, PRESETS, Preset, PresetName

IMAGES = (100, 1_000, 10_000, 100_000)
DEVICES = ("CPU", "GPU")
NAMES = {"at_most": "image size, at most", "epochs": "epochs, at most"}
OF = {"run": "all", "backbone": "backbone stage", "detector": "detector stage", "finetune": "`finetune`"}


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
    for name, table in (("presets", preset_table()), ("choices", choice_table())):
        place = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text = place.sub(lambda found, table=table: found[1] + table + found[2], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
