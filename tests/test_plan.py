"""The figures of docs/how-to-clusters.md follow from the code and from the assumptions that it states."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

SCRIPT = Path(__file__).parent.parent / "docs" / "make_plan.py"


def test_the_plan_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_plan", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    plan = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plan)
    text = plan.PAGE.read_text("utf-8")
    assert "| COCO train2017 |" in text
    assert plan.page(text) == text, "run `make reference`"
    for assumed in (f"{plan.BACKBONE_RATE} images a second", f"and {plan.DETECTOR_RATE} in the", f"{plan.IMAGE_KB} kB"):
        assert assumed in " ".join(text.split())
    # What is gathered of a batch: the images, and all that the encoder makes of them.
    encoder = plan.densecl().encoder.eval()
    images = torch.zeros(1, 3, plan.SIDE, plan.SIDE)
    assert images.numel() == plan.image_values()
    with torch.no_grad():
        made = sum(output.numel() for output in encoder(images))
    assert made + 2 * plan.DIM == plan.key_values()
