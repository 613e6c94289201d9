"""Every mistake in a command or its files is one line, exit code 2, and nothing written."""

from __future__ import annotations

import json
import pickle
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfdet import cli
from tiny_runs import FINETUNE, PRETRAIN, flags

Capture = pytest.CaptureFixture[str]


class Malicious:
    """Would create a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def refused(capfd: Capture, out: Path, verb: str, settings: dict[str, Any], said: str = "") -> str:
    """Run a command that must fail, with no more on stdout than begins with `said`; returns its one line."""
    words = flags({name: value for name, value in settings.items() if value is not None})
    assert cli.main([verb, *words, "--out", str(out)]) == 2
    stdout, stderr = capfd.readouterr()
    assert stdout.startswith(said)
    assert stdout.count("\n") == bool(said)
    assert stderr.startswith("selfdet: error: ")
    assert stderr.count("\n") == 1, stderr
    assert not out.exists()
    return stderr


def pretrain_settings(scenes: Path, **changes: Any) -> dict[str, Any]:
    return {"images": scenes / "images", **PRETRAIN, **changes}


def finetune_settings(scenes: Path, **changes: Any) -> dict[str, Any]:
    return {"data": scenes / "train.json", **FINETUNE, **changes}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": "/nowhere/at/all"}, "--images /nowhere/at/all does not exist. Give a folder, a glob"),
        ({"backbone": "resnet51"}, "unknown backbone 'resnet51'. Nearest: "),
        ({"image_size": 16}, "--image-size 16: below the stride 32 of backbone test_resnet. Use at least 32"),
        ({"image_size": 0}, "--image-size 0: below the stride 32"),
        ({"batch_size": 0}, "--batch-size is 0, expected 1 or more"),
        ({"accumulate": 3}, "--batch-size 4 can't be shared by 1 process × 3 micro-batches. Use a multiple of 3"),
        ({"accumulate": 0}, "--accumulate is 0, expected 1 or more"),
        ({"steps": 0}, "--steps 0 is not positive"),
        ({"lr": -1.0}, "--lr is -1, expected a number above 0"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0. 0.2 is usual"),
        ({"queue_length": 0}, "queue length is 0, expected 1 or more"),
        ({"dense_weight": 1.5}, "dense weight is 1.5, expected 0 to 1"),
        ({"backbone_weights": "/nowhere.pt"}, "--backbone-weights /nowhere.pt does not exist"),
        ({"backbone_weights": "library:resnet18"}, "--backbone-weights library:resnet18 and --backbone test_resnet"),
        ({"method": "mocco"}, "--method is 'mocco', expected one of densecl, moco, simclr. Did you mean moco?"),
        ({"log_every": 0}, "--log-every is 0"),
        ({"workers": -1}, "--workers is -1"),
        ({"devices": 99}, "--devices 99: this machine has"),
    ],
)
def test_pretrain_refuses(scenes: Path, tmp_path: Path, capfd: Capture, change: dict[str, Any], expected: str) -> None:
    assert expected in refused(capfd, tmp_path / "run", "pretrain", pretrain_settings(scenes, **change))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data": "/nowhere.json"}, "label file /nowhere.json does not exist"),
        ({"init": "runs/none"}, "--init runs/none does not exist. Give scratch, a run directory, a weights file or"),
        ({"init": "library:"}, "--init library: names no backbone"),
        ({"init": "library:resnet18"}, "--init library:resnet18 and --backbone test_resnet disagree"),
        ({"backbone": "rsnet50"}, "unknown backbone 'rsnet50'"),
        ({"image_size": 16}, "--image-size 16: below the stride"),
        ({"fraction": 0.0}, "--fraction 0 is not a share of the images"),
        ({"fraction": 1.5}, "--fraction 1.5 is not a share of the images"),
        ({"fpn_channels": 50}, "fpn_channels 50"),
        ({"head_convs": 0}, "head_convs 0"),
        ({"lr": 0.0}, "--lr is 0, expected a number above 0"),
        ({"epochs": -3, "steps": None}, "--epochs -3 is not positive"),
        ({"accumulate": 20}, "10 images can't be shared by 20 processes and micro-batches"),
        ({"threads": -2}, "--threads -2"),
    ],
)
def test_finetune_refuses(scenes: Path, tmp_path: Path, capfd: Capture, change: dict[str, Any], expected: str) -> None:
    if "accumulate" in change:
        change = change | {"batch_size": 20}
    assert expected in refused(capfd, tmp_path / "run", "finetune", finetune_settings(scenes, **change))


@pytest.mark.parametrize("scale_jitter", [["1.2", "0.8"], ["0", "1"]])
def test_a_scale_jitter_that_is_no_range_is_refused(
    scenes: Path, tmp_path: Path, capfd: Capture, scale_jitter: list[str]
) -> None:
    words = ["finetune", *flags(finetune_settings(scenes)), "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--scale-jitter", *scale_jitter]) == 2
    assert "scale jitter" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    """A change of a label file's content as one of its text."""

    def apply(text: str) -> str:
        labels = json.loads(text)
        change(labels)
        return json.dumps(labels)

    return apply


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda text: text[:200], "is not JSON"),
        (lambda text: "[1, 2]", "is not COCO"),
        (changed(lambda coco: coco.pop("categories")), 'is not COCO: it has no list "categories"'),
        (changed(lambda coco: coco["images"][0].update(file_name="absent.jpg")), "1 of the 10 images in"),
        (changed(lambda coco: coco["images"][0].update(file_name="../secret.jpg")), "leaves the images' folder"),
        (changed(lambda coco: coco["images"][0].update(file_name="/etc/secret.jpg")), "is outside"),
        (changed(lambda coco: coco["images"][1].update(id=1)), '1 ids repeat in "images", the first of them 1'),
        (changed(lambda coco: coco["annotations"][1].update(id=1)), '1 ids repeat in "annotations"'),
        (changed(lambda coco: coco["annotations"][0].update(image_id=999)), "has the unknown image_id 999"),
        (changed(lambda coco: coco["annotations"][0].update(category_id=999)), "has the unknown category_id 999"),
        (changed(lambda coco: coco["annotations"][0].update(bbox=[1, 2])), 'has no "bbox" of four numbers'),
        (changed(lambda coco: coco.update(images=[], annotations=[])), 'the list "images" is empty'),
    ],
)
def test_a_spoiled_label_file_is_refused_by_every_verb_that_reads_one(
    scenes: Path, finetuned: Path, tmp_path: Path, capfd: Capture, spoil: Callable[[str], str], expected: str
) -> None:
    data = tmp_path / "labels.json"
    data.write_text(spoil((scenes / "train.json").read_text()))
    images = scenes / "images"
    spoiled = finetune_settings(scenes, data=data, images=images)
    assert expected in refused(capfd, tmp_path / "run", "finetune", spoiled)
    held_out = finetune_settings(scenes, val_data=data, images=images)
    assert expected in refused(capfd, tmp_path / "run", "finetune", held_out)
    asked = {"init": finetuned, "data": data, "images": images}
    assert expected in refused(capfd, tmp_path / "results.json", "evaluate", asked)


@pytest.mark.parametrize("verb", ["pretrain", "predict"])
def test_a_folder_without_images_is_refused(
    scenes: Path, finetuned: Path, tmp_path: Path, capfd: Capture, verb: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    settings = pretrain_settings(scenes) if verb == "pretrain" else {"init": finetuned}
    line = refused(capfd, tmp_path / "run", verb, {**settings, "images": tmp_path / "empty"})
    assert f"no image in the folder {tmp_path / 'empty'}" in line


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "predict"])
def test_a_folder_that_is_not_empty_is_refused_and_kept(
    scenes: Path, finetuned: Path, tmp_path: Path, capfd: Capture, verb: str
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("do not touch")
    settings = {
        "pretrain": pretrain_settings(scenes),
        "finetune": finetune_settings(scenes),
        "predict": {"init": finetuned, "images": scenes / "images"},
    }[verb]
    assert cli.main([verb, *flags(settings), "--out", str(kept)]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"selfdet: error: --out {kept} is not empty. Name a new folder")
    assert ("--resume" in err) == (verb != "predict")
    assert [path.name for path in kept.iterdir()] == ["thesis.txt"]


def test_weights_of_another_architecture_are_refused_with_what_to_add(
    scenes: Path, pretrained: Path, finetuned: Path, tmp_path: Path, capfd: Capture
) -> None:
    for start in (pretrained, finetuned):
        settings = finetune_settings(scenes, init=start, backbone="resnet18")
        line = refused(capfd, tmp_path / "run", "finetune", settings)
        assert "of the backbone fits, expected 90%" in line
        assert "These weights are a test_resnet: add --backbone test_resnet" in line
        line = refused(
            capfd, tmp_path / "run", "pretrain", pretrain_settings(scenes, backbone_weights=start, backbone="resnet18")
        )
        assert "add --backbone test_resnet" in line


def test_a_backbone_file_with_a_wrong_prefix_is_refused_with_the_right_one(
    scenes: Path, pretrained: Path, tmp_path: Path, capfd: Capture
) -> None:
    state = load_file(pretrained / "backbone.safetensors")
    file = tmp_path / "wrapped.safetensors"
    save_file({f"module.{name}": value for name, value in state.items()}, file)
    for verb, settings in (
        ("finetune", finetune_settings(scenes, init=file)),
        ("pretrain", pretrain_settings(scenes, backbone_weights=file)),
    ):
        line = refused(capfd, tmp_path / "run", verb, settings)
        assert f"{file}: only 0.0% of the backbone fits" in line
        assert "Strip the prefix 'module.'" in line


def test_a_file_that_is_not_plain_tensors_is_refused_and_never_executed(
    scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    done = tmp_path / "done"
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Malicious(done)))
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": Malicious(done)}, tmp_path / "b.pth")
    (tmp_path / "c.safetensors").write_bytes(b"not tensors at all")
    for name in ("a.pt", "b.pth", "c.safetensors"):
        for verb, settings in (
            ("finetune", finetune_settings(scenes, init=tmp_path / name)),
            ("pretrain", pretrain_settings(scenes, backbone_weights=tmp_path / name)),
            ("predict", {"init": tmp_path / name, "images": scenes / "images"}),
        ):
            assert str(tmp_path / name) in refused(capfd, tmp_path / "run", verb, settings)
    assert not done.exists()


def test_a_library_that_cannot_be_reached_is_one_line(
    scenes: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    for verb, settings in (
        ("finetune", finetune_settings(scenes, init="library:resnet18", backbone=None)),
        ("pretrain", pretrain_settings(scenes, backbone_weights="library", backbone="resnet18")),
    ):
        line = refused(capfd, tmp_path / "run", verb, settings, said="Downloading")
        assert "backbone resnet18: the library's weights could not be fetched" in line
        assert "no network" in line


def test_a_run_without_weights_yet_and_one_of_the_wrong_kind_are_refused(
    scenes: Path, pretrained: Path, tmp_path: Path, capfd: Capture
) -> None:
    unfinished = tmp_path / "unfinished"
    words = ["pretrain", *flags(pretrain_settings(scenes, max_time=1e-9)), "--out", str(unfinished)]
    assert cli.main(words) == 0
    capfd.readouterr()
    line = refused(capfd, tmp_path / "run", "finetune", finetune_settings(scenes, init=unfinished))
    assert f"{unfinished} holds no weights yet. Finish the run with its own command and --resume" in line
    line = refused(capfd, tmp_path / "run", "finetune", finetune_settings(scenes, init=tmp_path))
    assert "has no config.yaml, so it is not a run directory" in line
    line = refused(capfd, tmp_path / "x.json", "evaluate", {"init": pretrained, "data": scenes / "val.json"})
    assert f"--init {pretrained} holds no detector (backbone). Name a run made by finetune" in line
