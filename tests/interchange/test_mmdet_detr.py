"""DETR out of mmdet's files: it finds what a plain DETR of mmdet's conventions finds, or is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.interchange.mmdet_detr_peer import DETRPeer, detr_state

from selfdet import import_weights, predict
from selfdet.detectors.base import Batch
from selfdet.errors import UserError
from selfdet.interchange.starts import load_detector
from selfdet.models.backbones import evaluating

pytest.importorskip("transformers")
CLASSES, QUERIES, LAYERS = 3, 60, 2
SIZES = [(128, 160), (100, 140)]


def saved(folder: Path, state: dict[str, Any], meta: dict[str, Any] | None = None) -> str:
    torch.save({"meta": {"CLASSES": ("a", "b", "c")} | (meta or {}), "state_dict": state}, folder / "detr.pth")
    return str(folder / "detr.pth")


@pytest.mark.parametrize("version", [2, 3])
def test_an_imported_detr_finds_what_mmdets_finds(tmp_path: Path, version: int) -> None:
    """Of two images at once, of which one has padding: it is not looked at."""
    file = saved(tmp_path, detr_state(CLASSES, QUERIES, LAYERS, version))
    out = str(tmp_path / "w.safetensors")
    answer = import_weights(file=file, out=out, format="mmdet")
    assert (answer["detector"], answer["backbone"], answer["classes"]) == ("detr", "resnet18", ["a", "b", "c"])
    detector, _ = load_detector(out)
    assert {name: detector.options[name] for name in ("queries", "layers")} == {"queries": QUERIES, "layers": LAYERS}
    tensor = torch.zeros(2, 3, *SIZES[0])
    for row, (height, width) in enumerate(SIZES):
        tensor[row, :, :height, :width] = torch.randn(3, height, width, generator=torch.Generator().manual_seed(row))
    with torch.no_grad(), evaluating(detector):
        ours = detector.detections(Batch(tensor, SIZES, [{"boxes": torch.zeros(0, 4)}] * 2))
        theirs = DETRPeer(detr_state(CLASSES, QUERIES, LAYERS)).find(tensor, SIZES)
    for found, (boxes, scores, labels) in zip(ours, theirs):
        assert len(found["boxes"]) == QUERIES
        assert float(boxes.std(0).max()) > 5  # queries tell something apart
        assert torch.allclose(found["boxes"], boxes, atol=0.01)
        assert torch.allclose(found["scores"], scores, atol=1e-4)
        assert torch.equal(found["labels"], labels)


def test_an_imported_detr_predicts(tmp_path: Path) -> None:
    out = str(tmp_path / "w.safetensors")
    import_weights(file=saved(tmp_path, detr_state(CLASSES, QUERIES, 1)), out=out, image_size=96)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (96, 64), (90, 30, 60)).save(tmp_path / "images" / "a.png")
    answer = predict(init=out, images=str(tmp_path / "images"), out=str(tmp_path / "found"))
    assert answer["images"] == 1
    assert answer["detections"] > 0


def broken(state: dict[str, Any], how: str) -> dict[str, Any]:
    made = dict(state)
    name = "encoder.layers.0.self_attn.attn.in_proj_weight"
    if how == "one wrong prefix":
        made["decoder_.layers.0.norms.0.weight"] = made.pop("decoder.layers.0.norms.0.weight")
    elif how == "half":
        made = {each: value for each, value in made.items() if not each.startswith("decoder.layers.1")}
    elif how == "transposed":
        made[name] = made[name].t().contiguous()
    elif how == "not finite":
        made[name] = made[name] * float("nan")
    elif how == "more":
        made["decoder.ref_point_head.layers.0.weight"] = torch.zeros(256, 256)
    return made


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("one wrong prefix", "fits|layers"),
        ("half", "2 encoder and 1 decoder layers"),
        ("transposed", "fits"),
        ("not finite", "not finite"),
        ("more", "layers that ours does not have"),
    ],
)
def test_what_is_no_whole_detr_is_refused(tmp_path: Path, how: str, message: str) -> None:
    file = saved(tmp_path, broken(detr_state(CLASSES, QUERIES, LAYERS), how))
    with pytest.raises(UserError, match=message):
        import_weights(file=file, out=str(tmp_path / "w.safetensors"), format="mmdet")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("loss_cls=dict(type='FocalLoss', use_sigmoid=True)", "sigmoids"),
        ("self_attn_cfg=dict(embed_dims=256, num_heads=16)", "8 heads"),
    ],
)
def test_settings_of_another_network_with_these_names_are_refused(tmp_path: Path, config: str, message: str) -> None:
    file = saved(tmp_path, detr_state(CLASSES, QUERIES, 1), {"cfg": config})
    with pytest.raises(UserError, match=message):
        import_weights(file=file, out=str(tmp_path / "w.safetensors"), format="mmdet")
