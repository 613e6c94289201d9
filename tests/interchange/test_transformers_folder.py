"""Folders of transformers: what its own networks find, ours finds; with one fault they are refused whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.detectors.detr_scenes import KEYS, small
from tests.interchange.rebuilding import note_of
from torch import Tensor

from selfdet import finetune, import_weights
from selfdet.detectors.base import Batch
from selfdet.detectors.queries import pixel_mask
from selfdet.errors import UserError
from selfdet.interchange.export_transformers import write_transformers
from selfdet.interchange.imports import NotTakenError
from selfdet.interchange.starts import load_detector
from selfdet.interchange.weights import read_weights
from selfdet.models.backbones import build_backbone, evaluating

transformers = pytest.importorskip("transformers")
State = dict[str, Tensor]
RESNET = {
    "embedding_size": 64,
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}


def exported(folder: Path, key: str) -> Any:
    """A small detector, and its folder as `export --to transformers` writes it."""
    detector = small(key, layers=1, image_size=64)
    write_transformers(folder, detector, note_of(detector))
    return detector


def published(folder: Path, key: str = "detr", **changes: Any) -> Any:
    """A network that transformers made, over its own ResNet-18, and its folder."""
    kind = {"detr": "Detr", "deformable_detr": "DeformableDetr", "rtdetr": "RTDetr"}[key]
    levels = ["stage4"] if key == "detr" else ["stage2", "stage3", "stage4"]
    channels = {"encoder_in_channels": [128, 256, 512]} if key == "rtdetr" else {}
    layers = {"decoder_layers": 1} if key == "rtdetr" else {"encoder_layers": 1, "decoder_layers": 1}
    more = {"with_box_refine": True, "tie_word_embeddings": False} if key == "deformable_detr" else {}
    names = dict(enumerate(["N/A", "person", "N/A"]))
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=transformers.ResNetConfig(**RESNET, out_features=levels),
        num_queries=60,
        id2label=names,
        label2id={label: row for row, label in names.items()},
        **{**channels, **layers, **more, **changes},
    )
    net = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    with torch.no_grad():
        for name, value in net.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    net.save_pretrained(folder)
    getattr(transformers, f"{kind}ImageProcessor")(
        do_normalize=True, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ).save_pretrained(folder)
    return net


def changed(folder: Path, file: str = "config.json", **settings: Any) -> None:
    """The folder with other settings in one of its files; None takes one away."""
    path = folder / file
    content = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.mark.parametrize("key", KEYS)
def test_what_goes_out_comes_in_again(tmp_path: Path, key: str) -> None:
    (tmp_path / "out").mkdir()
    detector = exported(tmp_path / "out", key)
    answer = import_weights(file=str(tmp_path / "out"), out=str(tmp_path / "in.safetensors"))
    assert (answer["format"], answer["detector"], answer["image_size"]) == ("transformers", key, 64)
    again, note = load_detector(str(tmp_path / "in.safetensors"))
    assert again.config() == detector.config()
    assert note["classes"] == ["class 0", "class 1", "class 2"]
    assert note["category_ids"] == [10, 20, 30]
    own, back = detector.net.state_dict(), again.net.state_dict()
    assert own.keys() == back.keys()
    assert all(torch.equal(own[name], back[name]) for name in own)


@pytest.mark.parametrize("key", KEYS)
def test_what_transformers_finds_ours_finds(tmp_path: Path, key: str) -> None:
    """Over its own ResNet, whose layers have other names; two images at once, of which one has padding."""
    (tmp_path / "hf").mkdir()
    net = published(tmp_path / "hf", key)
    out = str(tmp_path / "w.safetensors")
    answer = import_weights(file=str(tmp_path / "hf"), out=out)
    assert answer["backbone"] == "resnet18"
    assert answer["classes"] == ["N/A (0)", "person", "N/A (2)"]
    assert answer["image_size"] == (640 if key == "rtdetr" else 1333)
    assert "2 classes with a name of others" in answer["done"][0]
    detector, note = load_detector(out)
    assert note["category_ids"] == [0, 1, 2]
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    sizes = [(96, 128), (70, 128)]
    if not detector.masked:
        sizes[1] = sizes[0]
    images[1, :, sizes[1][0] :] = 0
    batch = Batch(images, sizes, [{"boxes": torch.zeros(0, 4)}] * 2)
    mask = pixel_mask(batch)
    with torch.no_grad(), evaluating(detector):
        ours = detector.queries(detector.features(batch), mask)
        theirs = net(images, **({"pixel_mask": mask.long()} if detector.masked else {}))
    torch.testing.assert_close(ours.logits[-1], theirs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.boxes[-1], theirs.pred_boxes, atol=1e-5, rtol=1e-4)


def test_a_resnet_that_only_classifies_is_a_backbone(tmp_path: Path) -> None:
    net = transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET)).eval()
    net.save_pretrained(tmp_path)
    out = str(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"is a 'resnet' of transformers; .* with --part backbone"):
        import_weights(file=str(tmp_path), out=out, part="detector")
    assert import_weights(file=str(tmp_path), out=out)["backbone"] == "resnet18"
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    backbone = build_backbone("resnet18")
    backbone.net.load_state_dict(read_weights(out)[0])
    with torch.no_grad(), evaluating(backbone):
        found = backbone(images)["3"]
        torch.testing.assert_close(found, net.resnet(images).last_hidden_state, atol=1e-5, rtol=1e-4)


def test_a_folder_of_an_older_version_asks_nothing_of_a_hub(tmp_path: Path) -> None:
    """Versions before 5 named timm's backbone in other settings, and asked for its pretrained weights."""
    exported(tmp_path, "detr")
    older = {"backbone_config": None, "use_timm_backbone": True, "use_pretrained_backbone": True}
    changed(tmp_path, **older, backbone="test_resnet", backbone_kwargs={"out_indices": [1, 2, 3, 4]})
    answer = import_weights(file=str(tmp_path / "model.safetensors"), out=str(tmp_path / "w.safetensors"))
    assert (answer["detector"], answer["backbone"]) == ("detr", "test_resnet")


def test_it_can_be_fine_tuned(tmp_path: Path, scenes: Path) -> None:
    (tmp_path / "hf").mkdir()
    exported(tmp_path / "hf", "detr")
    import_weights(file=str(tmp_path / "hf"), out=str(tmp_path / "w.safetensors"), classes=["x", "y", "z"])
    small_run = {"steps": 1, "batch_size": 2, "image_size": 64, "workers": 0, "threads": 1, "precision": "fp32"}
    data = {"data": str(scenes / "train.json"), "images": str(scenes / "images")}
    finetune(init=str(tmp_path / "w.safetensors"), out=str(tmp_path / "run"), **data, **small_run)
    assert (tmp_path / "run" / "detector.safetensors").is_file()


def one_wrong_prefix(state: State) -> State:
    return {name.replace("layer3.0.", "layer3_.0."): value for name, value in state.items()}


def half(state: State) -> State:
    return {name: value for row, (name, value) in enumerate(state.items()) if row % 2}


def transposed(state: State) -> State:
    name = next(each for each in state if each.endswith("layers.0.fc1.weight"))
    return {**state, name: state[name].t().contiguous()}


def not_finite(state: State) -> State:
    name = next(each for each in state if each.endswith("layers.0.fc1.weight"))
    return {**state, name: state[name] * torch.nan}


def extra_class(state: State) -> State:
    return {name: torch.cat([v, v[:1]]) if "class_labels_classifier" in name else v for name, v in state.items()}


def extra_layer(state: State) -> State:
    return {**state, "model.decoder.layers.1.final_layer_norm.weight": torch.ones(256)}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (one_wrong_prefix, "0 %|only"),
        (half, "only"),
        (transposed, "only"),
        (not_finite, "not finite"),
        (extra_class, "only"),
        (extra_layer, "has layers that ours does not have: model.decoder.layers.1"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_folder_with_one_fault_is_refused(tmp_path: Path, fault: Callable[[State], State], message: str) -> None:
    exported(tmp_path, "detr")
    file = tmp_path / "model.safetensors"
    save_file(fault(load_file(file)), file, metadata={"format": "pt"})
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        import_weights(file=str(tmp_path), out=str(tmp_path / "w.safetensors"))
    assert sorted(os.listdir(tmp_path)) == before
    if fault is not not_finite:
        assert isinstance(caught.value, NotTakenError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "yolos"}, "is a 'yolos' of transformers; taken are detr, deformable_detr, rt_detr"),
        ({"architectures": ["DetrForSegmentation"]}, "DetrForSegmentation"),
        ({"encoder_ffn_dim": 512}, "is another network than ours: encoder_ffn_dim 512, not 2048"),
        ({"decoder_attention_heads": 4}, "decoder_attention_heads 4, not 8"),
        ({"num_queries": 10}, "queries 10"),
        ({"num_queries": 10**9}, "says of itself options"),
        ({"d_model": "wide"}, "transformers cannot make a network of it"),
        ({"backbone_config": {"model_type": "rt_detr_resnet"}}, "has the backbone 'rt_detr_resnet'"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "hf_hub:x/y"}}, "which is none of timm's"),
    ],
    ids=str,
)
def test_settings_of_another_network_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    exported(tmp_path, "detr")
    changed(tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        import_weights(file=str(tmp_path), out=str(tmp_path / "w.safetensors"))
    assert not (tmp_path / "w.safetensors").exists()


def test_other_pixels_are_refused(tmp_path: Path) -> None:
    exported(tmp_path, "detr")
    changed(tmp_path, "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    with pytest.raises(UserError, match=r"pixels are normalised with .*0\.1"):
        import_weights(file=str(tmp_path), out=str(tmp_path / "w.safetensors"))
    changed(tmp_path, "preprocessor_config.json", do_normalize=False)
    with pytest.raises(UserError, match="pixels are not normalised"):
        import_weights(file=str(tmp_path), out=str(tmp_path / "w.safetensors"))


def test_what_is_no_folder_of_transformers_is_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"is a folder without model\.safetensors"):
        import_weights(file=str(tmp_path), out=out)
    exported(tmp_path, "detr")
    with pytest.raises(UserError, match="--pixels: transformers' own config"):
        import_weights(file=str(tmp_path), out=out, pixels="bgr")
    with pytest.raises(UserError, match="has 3 classes, and --classes names 1"):
        import_weights(file=str(tmp_path), out=out, classes=["one"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        import_weights(file=str(tmp_path), out=out)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json beside it"):
        import_weights(file=str(tmp_path), out=out)
