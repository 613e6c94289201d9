"""Segmentation end to end: an FCN is fine-tuned from any start, measured, and shown at work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from masked_scenes import voc_layout
from selfdet import cli
from selfdet.errors import UserError
from selfdet.interchange.segmenters import load_segmenter
from selfdet.interchange.starts import resolve_start
from selfdet.training.rundir import RunDir
from selfdet.verbs.evaluate import evaluate
from selfdet.verbs.finetune import finetune
from selfdet.verbs.predict import predict
from selfdet.verbs.report import report
from tiny_runs import COMMON, flags

SEGMENT: dict[str, Any] = {**COMMON, "task": "segmentation", "image_size": 64, "crop_size": 48, "steps": 2}


def without_charts(patch: pytest.MonkeyPatch) -> None:
    """They take most of the time of so small a run, and are looked at elsewhere."""
    patch.setattr("selfdet.verbs.finetune.plot_training", lambda rows, folder: [])
    patch.setattr("selfdet.verbs.finetune.report_at_the_end", lambda *given: None)


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    without_charts(monkeypatch)


@pytest.fixture(scope="module")
def segmented(scenes: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the scenes in Pascal VOC's layout; not to be changed."""
    folder = tmp_path_factory.mktemp("segmented")
    root = voc_layout(scenes, folder / "voc") / "ImageSets" / "Segmentation"
    words = flags({**SEGMENT, "data": root / "train.txt", "val_data": root / "val.txt", "evaluate_every": 1})
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        assert cli.main(["finetune", "--init", str(pretrained), "--out", str(folder / "run"), *words]) == 0
    return folder / "run"


def test_a_run_leaves_its_segmenter_figures_and_what_was_reused(segmented: Path, pretrained: Path) -> None:
    files = {path.name for path in segmented.iterdir()}
    assert {"segmenter.safetensors", "best.pt", "last.pt", "metrics.jsonl"} <= files
    rows = RunDir(segmented).read_metrics()
    assert [row["step"] for row in rows if "mIoU" in row] == [0, 1, 2]
    text = (segmented / "log.txt").read_text()
    table = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith(("backbone ", "head "))}
    assert table == {"backbone": "100.0%", "head": "0.0%"}
    assert "peak memory: about " in text
    assert "fcn on test_resnet from" in text
    assert "10 of 10 labelled images, with 5 classes" in text


def test_the_backbone_is_the_start_s_own(segmented: Path, scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    data = str(scenes / "train.json")
    frozen = {**SEGMENT, "batch_norm": "frozen", "steps": 1, "lr": 1e-12}
    finetune(init=str(pretrained), data=data, out=str(tmp_path / "a"), **frozen)
    given = load_file(pretrained / "backbone.safetensors")
    taken = load_file(tmp_path / "a" / "segmenter.safetensors")
    for name, value in given.items():
        torch.testing.assert_close(taken[f"backbone.{name}"], value)
    finetune(init=str(segmented), data=data, out=str(tmp_path / "b"), **{**frozen, "backbone": None})
    again = load_file(tmp_path / "b" / "segmenter.safetensors")
    own = load_file(segmented / "segmenter.safetensors")
    assert {name for name in own if not torch.equal(own[name], again[name]) and "num_batches" not in name} >= {
        "classifier.7.weight"
    }
    torch.testing.assert_close(again["classifier.0.weight"], own["classifier.0.weight"])


def test_a_detector_starts_from_a_segmenters_backbone(segmented: Path, scenes: Path, tmp_path: Path) -> None:
    answer = finetune(
        init=str(segmented),
        data=str(scenes / "train.json"),
        out=str(tmp_path / "run"),
        **{**COMMON, "backbone": None, "image_size": 64, "steps": 1, "fpn_channels": 64, "head_convs": 1},
    )
    assert answer["finished"]
    assert "backbone    100.0%" in (tmp_path / "run" / "log.txt").read_text()


def test_an_interrupted_run_ends_as_one_that_was_not(scenes: Path, tmp_path: Path) -> None:
    asked = {**SEGMENT, "init": "scratch", "data": str(scenes / "train.json"), "save_every": 1, "log_every": 1}
    finetune(**asked, out=str(tmp_path / "whole"))
    finetune(**asked, out=str(tmp_path / "parts"), max_time=1e-9)
    finetune(**asked, out=str(tmp_path / "parts"), resume=True)
    whole, parts = (load_file(tmp_path / name / "segmenter.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert RunDir(tmp_path / "whole").read_metrics() == RunDir(tmp_path / "parts").read_metrics()


def test_evaluate_gives_the_scores_of_the_run_and_sliding_over_one_window_the_same(
    segmented: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--init", str(segmented), "--data", str(scenes / "val.json"), "--threads", "1", "--json"]
    assert cli.main(["evaluate", *words]) == 0
    scores = json.loads(capsys.readouterr().out)
    last = [row for row in RunDir(segmented).read_metrics() if "mIoU" in row][-1]
    assert {name: last[name] for name in scores} == scores
    assert set(scores) == {"mIoU", "pixel_accuracy", "per_class", "images"}
    sliding = evaluate(init=str(segmented), data=str(scenes / "val.json"), image_size=48, sliding=True, threads=1)
    assert sliding == evaluate(init=str(segmented), data=str(scenes / "val.json"), image_size=48, threads=1)


def test_predict_writes_a_class_map_of_each_image_and_pictures(segmented: Path, scenes: Path, tmp_path: Path) -> None:
    answer = predict(
        init=str(segmented), images=str(scenes / "images"), out=str(tmp_path / "out"), pictures=2, threads=1
    )
    assert (answer["images"], answer["masks"]) == (15, 15)
    listed = json.loads((tmp_path / "out" / "images.json").read_text())
    _, note = load_segmenter(resolve_start(str(segmented)))
    assert listed["classes"] == note["classes"]
    for entry in listed["images"]:
        with Image.open(tmp_path / "out" / entry["mask"]) as mask:
            assert mask.mode == "P"
            assert mask.size == (entry["width"], entry["height"])
            assert np.array(mask).max() < 5
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 2


def test_the_page_of_a_run_shows_scores_and_class_maps_beside_labels(segmented: Path, tmp_path: Path) -> None:
    report(init=str(segmented), out=str(tmp_path / "page.html"), threads=1)
    page = (tmp_path / "page.html").read_text()
    for words in (
        "The segmenter was trained on 10 labelled images",
        "right pixels",
        "mIoU on held-out images went from",
    ):
        assert words in page
    assert page.count("with labelled classes") == page.count("with found classes") == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detector": "fcos"}, "--detector is for detection"),
        ({"fpn_channels": 64}, "--fpn-channels is for detection"),
        ({"crop_size": 8}, "--crop-size 8 is below 32 px"),
        ({"image_size": 16}, "--image-size 16 is below 32 px"),
        ({"backbone": "test_vit"}, "cannot keep a stride of 8"),
        ({"task": "detection"}, "--crop-size is for --task segmentation"),
        ({"batch_norm": "train", "scale_jitter": (2.0, 1.0)}, "scale jitter"),
    ],
)
def test_what_does_not_belong_together_is_refused_before_a_folder_is_made(
    scenes: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        finetune(
            **{**SEGMENT, "init": "scratch", "data": str(scenes / "train.json"), "out": str(tmp_path / "x"), **changes}
        )
    assert not (tmp_path / "x").exists()


def test_flags_of_detectors_are_refused_for_segmenters_and_the_other_way_round(
    segmented: Path, finetuned: Path, scenes: Path, tmp_path: Path
) -> None:
    data, images = str(scenes / "val.json"), str(scenes / "images")
    with pytest.raises(UserError, match="--out is not for segmentation"):
        evaluate(init=str(segmented), data=data, out=str(tmp_path / "x.json"))
    with pytest.raises(UserError, match="has a head of 2 convolutions, not 1"):
        finetune(init=str(segmented), data=data, out=str(tmp_path / "x"), **{**SEGMENT, "head_convs": 1})
    with pytest.raises(UserError, match="--sliding is not for detection"):
        evaluate(init=str(finetuned), data=data, sliding=True)
    with pytest.raises(UserError, match="--threshold is not for segmentation"):
        predict(init=str(segmented), images=images, out=str(tmp_path / "p"), threshold=0.5)
