"""The whole detector in one command: boxes, backbone, neck and head, and what fine-tuning takes over of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from selfdet import cli
from selfdet.detectors.zoo import DETECTORS, DetectorKey
from selfdet.errors import UserError
from selfdet.interchange.starts import load_detector
from selfdet.methods.aligndet import AlignDet
from selfdet.training.defaults import TRANSFORMERS
from selfdet.training.rundir import RunDir
from selfdet.verbs.pretrain_detector import DetectorStageSettings
from selfdet.verbs.stages import StageSettings
from tiny_runs import PRETRAIN, WIDTHS, flags, tiny_aligndet, tiny_finetune, tiny_pretrain

ALL = {"stages": ["proposals", "backbone", "detector"], "steps": 3, **WIDTHS}
DETR = {"detector": "detr", "fpn_channels": None, "head_convs": None}
Capture = pytest.CaptureFixture[str]


class Killed(BaseException):
    """The end of a process, as far as a test in that process can have it."""


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of so small a run, and are looked at elsewhere."""
    for verb in ("pretrain_backbone", "pretrain_detector", "finetune"):
        monkeypatch.setattr(f"selfdet.verbs.{verb}.plot_training", lambda rows, folder: [])
    monkeypatch.setattr("selfdet.verbs.finetune.report_at_the_end", lambda *given: None)


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all three stages."""
    out = tmp_path_factory.mktemp("stages") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        for verb in ("pretrain_backbone", "pretrain_detector"):
            patch.setattr(f"selfdet.verbs.{verb}.plot_training", lambda rows, folder: [])
        answer = tiny_pretrain(scenes, out, **ALL)
    assert answer["finished"]
    assert answer["detector"] == str(out / "detector.safetensors")
    return out


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_of_several_stages_keeps_each_in_its_folder_and_the_weights_at_the_top(whole: Path) -> None:
    names = {name for name in tree(whole) if not name.endswith((".png", ".jpg"))}
    each = {"config.yaml", "metrics.jsonl", "timing.jsonl", "last.pt"}
    assert names == {
        *("backbone.safetensors", "config.yaml", "detector.safetensors", "log.txt", "proposals.json", "report.html"),
        *(f"stages/{stage}/{name}" for stage in ("backbone", "detector") for name in each),
    }
    assert " proposals in 15 images: " in (whole / "log.txt").read_text()
    for stage in ("backbone", "detector"):
        assert (whole / "pictures" / stage / "first_views.jpg").is_file()


def test_the_detector_stage_starts_from_the_backbone_stage_and_leaves_it_as_it_is(whole: Path) -> None:
    backbone, detector = load_file(whole / "backbone.safetensors"), load_file(whole / "detector.safetensors")
    assert all(detector[f"backbone.body.{name}"].equal(value) for name, value in backbone.items())


def test_the_same_command_with_resume_leaves_a_finished_run_as_it_is(scenes: Path, whole: Path, capfd: Capture) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert tiny_pretrain(scenes, whole, **ALL, resume=True)["finished"]
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.parametrize("place", ["between", "detector"])
def test_a_run_killed_in_any_stage_ends_like_an_uninterrupted_one(
    scenes: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        if place == "between":
            patch.setattr("selfdet.verbs.pretrain.pretrain_detector", kill)
        else:
            patch.setattr(AlignDet, "after_step", kill)
        with pytest.raises(Killed):
            tiny_pretrain(scenes, out, **ALL)
    assert tiny_pretrain(scenes, out, **ALL, resume=True)["finished"]
    mine, other = tree(out), tree(whole)
    for name in ("detector.safetensors", "backbone.safetensors", "stages/detector/metrics.jsonl"):
        assert mine[name] == other[name], name


def test_the_time_limit_is_of_the_whole_command(scenes: Path, tmp_path: Path) -> None:
    answer = tiny_pretrain(scenes, tmp_path / "run", **ALL, max_time=1e-9)
    assert not answer["finished"]
    assert set(answer["stages"]) == {"backbone"}
    steps = 0
    while not answer["finished"]:
        answer = tiny_pretrain(scenes, tmp_path / "run", **ALL, max_time=1e-9, resume=True)
        steps += 1
    assert steps == 4  # one step a call; the last of a stage finishes it and lets the next begin


def test_other_settings_of_the_whole_are_refused_when_it_is_resumed(scenes: Path, whole: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml: detector is 'fcos' in this run but 'retinanet' now"):
        tiny_pretrain(scenes, whole, **ALL, detector="retinanet", resume=True)


def test_stages_run_alone_or_after_weights(scenes: Path, whole: Path, tmp_path: Path, capfd: Capture) -> None:
    answer = tiny_aligndet(scenes, tmp_path / "alone", backbone_weights=str(whole), steps=2)
    assert answer["detector"] == str(tmp_path / "alone" / "detector.safetensors")
    assert {"contrast", "bbox_regression", "objectness", "box_iou"} <= answer.keys()
    assert (tmp_path / "alone" / "metrics.jsonl").is_file()
    assert not (tmp_path / "alone" / "proposals.json").exists()
    assert "warning" not in capfd.readouterr().err
    answer = tiny_pretrain(scenes, tmp_path / "boxes", stages=["proposals"])
    assert answer == {"out": str(tmp_path / "boxes"), "proposals": str(tmp_path / "boxes" / "proposals.json")}


def test_with_weights_of_a_backbone_its_stage_is_left_out(scenes: Path, whole: Path, tmp_path: Path) -> None:
    settings = {**ALL, "stages": None, "backbone_weights": str(whole / "backbone.safetensors")}
    answer = tiny_pretrain(scenes, tmp_path / "run", **settings)
    assert set(answer["stages"]) == {"detector"}
    assert not (tmp_path / "run" / "backbone.safetensors").exists()


def test_a_random_frozen_backbone_is_warned_of(scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    tiny_aligndet(scenes, tmp_path / "run", steps=1)
    assert "warning: the backbone is random and stays so" in capfd.readouterr().err


def test_the_backbone_is_trained_where_asked(scenes: Path, tmp_path: Path, whole: Path) -> None:
    tiny_aligndet(scenes, tmp_path / "run", steps=2, lr=0.1, backbone_weights=str(whole), train_backbone=True)
    given, trained = load_file(whole / "backbone.safetensors"), load_file(tmp_path / "run" / "detector.safetensors")
    assert any(not trained[f"backbone.body.{name}"].equal(value) for name, value in given.items())


def test_anybodys_boxes_are_filtered_into_the_run(scenes: Path, tmp_path: Path) -> None:
    answer = tiny_aligndet(
        scenes, tmp_path / "run", boxes=str(scenes / "train.json"), images=str(scenes / "train.json")
    )
    made = json.loads(Path(answer["proposals"]).read_text())
    assert answer["proposals"] == str(tmp_path / "run" / "proposals.json")
    assert made["info"]["settings"]["source"] == "train.json"
    assert (tmp_path / "run" / "stages" / "detector" / "metrics.jsonl").is_file()


def test_proposals_of_other_images_are_refused(scenes: Path, tmp_path: Path) -> None:
    images = shutil.copytree(scenes / "images", tmp_path / "images")
    shutil.copy(sorted(images.iterdir())[0], images / "another.jpg")
    with pytest.raises(UserError, match="knows nothing of 1 of the images"):
        tiny_aligndet(scenes, tmp_path / "run", images=str(images))


def test_few_boxes_an_image_are_taken_where_the_method_or_the_user_says_so(scenes: Path, tmp_path: Path) -> None:
    for name, detector, own, most in (("r", "retinanet", {}, 50), ("f", "fcos", {"boxes_per_image": 2}, 2)):
        settings = DetectorStageSettings(**own)
        tiny_aligndet(scenes, tmp_path / name, detector=detector, detector_stage=settings, steps=1)
        assert RunDir(tmp_path / name).read_config()["boxes_per_image"] == most
    assert RunDir(tmp_path / "f").read_metrics()[-1]["proposals_per_image"] <= 2


def test_what_an_rcnns_teacher_compares_is_a_setting_of_its_stage(scenes: Path, tmp_path: Path) -> None:
    settings = DetectorStageSettings(teacher_rois="proposals")
    tiny_aligndet(scenes, tmp_path / "run", detector="faster_rcnn", head_convs=None, detector_stage=settings, steps=1)
    assert RunDir(tmp_path / "run").read_config()["options"]["teacher_rois"] == "proposals"
    with pytest.raises(UserError, match=r"--detector-stage\.teacher-rois is no setting of fcos"):
        tiny_aligndet(scenes, tmp_path / "fcos", detector_stage=settings, steps=1)


def test_each_stage_has_its_own_settings_over_the_shared(scenes: Path, tmp_path: Path) -> None:
    own = {"backbone_stage": StageSettings(steps=1), "detector_stage": DetectorStageSettings(steps=2, temperature=0.3)}
    tiny_pretrain(scenes, tmp_path / "run", **ALL, **own)
    backbone, detector = (RunDir(tmp_path / "run" / "stages" / name).read_config() for name in ("backbone", "detector"))
    assert (backbone["steps"], detector["steps"]) == (1, 2)
    assert (backbone["method_options"]["temperature"], detector["method_options"]["temperature"]) == (0.2, 0.3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"stages": ["detector"]}, "the detector stage needs boxes"),
        ({"stages": []}, "--stages names no stage"),
        ({"stages": ["backbone"], "boxes": "boxes.json"}, "--boxes is for the detector stage"),
        ({"stages": None, "detector": "faster_rcnn", "neck": "c4"}, "--neck c4: such a detector has no neck or head"),
        ({"detector_stage": DetectorStageSettings(temperature=0.0)}, "temperature is 0.0"),
        ({"detector_stage": DetectorStageSettings(momentum=2.0)}, "momentum is 2.0"),
        ({"detector_stage": DetectorStageSettings(lr=-1.0)}, "--lr is -1"),
        ({"detector_stage": DetectorStageSettings(boxes_per_image=0)}, "boxes-per-image is 0, expected 1 or more"),
        (
            {**DETR, "queries": 60, "detector_stage": DetectorStageSettings(boxes_per_image=60)},
            "expected fewer than the 60 queries of detr",
        ),
        ({**DETR, "detector_stage": DetectorStageSettings(samples=9)}, "of detr all queries are compared"),
    ],
)
def test_what_cannot_be_run_is_refused(scenes: Path, tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    run: Callable[..., dict[str, Any]] = tiny_pretrain if "stages" in settings else tiny_aligndet
    with pytest.raises(UserError, match=says):
        run(scenes, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"backbone": "cb-convnext_atto"}, "cb-convnext_atto: two of convnext_atto cannot be composed"),
        ({**DETR, "detector": "rtdetr", "backbone": "vit_tiny_patch16_224"}, "rtdetr needs 3 maps"),
        ({"queries": 100}, "--queries is no setting of fcos"),
        ({"backbone": "swin_tiny_patch4_window7_224", "image_size": 98}, "cannot take 98 × 98 px"),
        ({"detector_stage": DetectorStageSettings(clusters=16)}, "fcos does not classify in pre-training"),
        ({**DETR, "detector_stage": DetectorStageSettings(clusters=0)}, "clusters is 0, expected 1 to"),
        ({"detector_stage": DetectorStageSettings(temperature=0.0)}, "temperature is 0.0"),
        ({"detector_stage": DetectorStageSettings(lr=-1.0)}, "--lr is -1"),
        ({"stages": ["proposals", "detector"], "backbone_weights": "none.pth"}, "none.pth does not exist"),
    ],
)
def test_what_a_later_stage_cannot_run_is_refused_before_the_first(
    scenes: Path, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        tiny_pretrain(scenes, tmp_path / "run", **{"stages": ALL["stages"], **settings})
    assert not (tmp_path / "run").exists()


def test_the_command_line_knows_all_of_it(scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    words = flags({**PRETRAIN, **ALL, "images": scenes / "images", "out": tmp_path / "run"})
    more = ["--detector-stage.steps", "2", "--detector-stage.boxes-per-image", "3", "--proposals-stage.side", "96"]
    assert cli.main(["pretrain", *words, *more, "--detector", "retinanet", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["stages"]["detector"]["step"] == 2
    assert answer["stages"]["detector"]["proposals_per_image"] <= 3


def test_fine_tuning_takes_over_everything_but_the_last_layers(
    scenes: Path, tmp_path: Path, whole: Path, capfd: Capture
) -> None:
    tiny_finetune(scenes, tmp_path / "run", init=str(whole), steps=1, lr=1e-12, weight_decay=0.0)
    given, taken = load_file(whole / "detector.safetensors"), load_file(tmp_path / "run" / "detector.safetensors")
    fresh = {
        name for name, value in taken.items() if "running" not in name and not value.allclose(given[name], atol=1e-6)
    }
    weights = {name for name in fresh if name.endswith("weight")}
    outputs = {"classification_head.cls_logits", "regression_head.bbox_reg", "regression_head.bbox_ctrness"}
    assert weights == {f"head.{name}.weight" for name in outputs}
    said = capfd.readouterr().err
    for part in ("backbone", "neck", "head"):
        assert f"{part:<10}  100.0%" in said


def test_box_outputs_are_kept_where_asked(scenes: Path, tmp_path: Path, whole: Path) -> None:
    settings = {"init": str(whole), "steps": 1, "lr": 1e-12, "weight_decay": 0.0, "keep_box_outputs": True}
    tiny_finetune(scenes, tmp_path / "run", **settings)
    given, taken = load_file(whole / "detector.safetensors"), load_file(tmp_path / "run" / "detector.safetensors")
    for name in ("bbox_reg.weight", "bbox_reg.bias", "bbox_ctrness.weight"):
        key = f"head.regression_head.{name}"
        assert taken[key].allclose(given[key])
    assert taken["head.classification_head.cls_logits.weight"].shape[0] > 1


def test_a_start_without_box_outputs_says_so_where_they_were_to_be_kept(
    scenes: Path, tmp_path: Path, capfd: Capture
) -> None:
    tiny_finetune(scenes, tmp_path / "run", keep_box_outputs=True, steps=1)
    assert "no box outputs to keep: the start is no detector" in capfd.readouterr().err


def test_the_authors_learning_rate_is_offered_with_its_reason_and_not_taken_unasked(
    scenes: Path, tmp_path: Path, whole: Path, finetuned: Path, capfd: Capture
) -> None:
    tiny_finetune(scenes, tmp_path / "run", init=str(whole), steps=1)
    assert "--lr 0.00375 --weight-decay 5e-05" in capfd.readouterr().err
    assert RunDir(tmp_path / "run").read_config()["lr"] == 0.0025
    for name, settings in (("asked", {"init": str(whole), "lr": 0.01}), ("tuned", {"init": str(finetuned)})):
        tiny_finetune(scenes, tmp_path / name, steps=1, **settings)
        assert "AlignDet's authors" not in capfd.readouterr().err


def test_a_start_of_another_detector_is_refused_with_the_way_to_its_backbone(
    scenes: Path, tmp_path: Path, whole: Path
) -> None:
    with pytest.raises(UserError, match="is a fcos, not a retinanet") as refused:
        tiny_finetune(scenes, tmp_path / "run", init=str(whole), detector="retinanet")
    assert "backbone.safetensors suits any detector" in refused.value.hint
    tiny_finetune(
        scenes, tmp_path / "run", init=str(whole / "backbone.safetensors"), detector="retinanet", backbone=None, steps=1
    )


def test_a_pre_trained_detector_predicts_objects(whole: Path, scenes: Path, tmp_path: Path) -> None:
    _, note = load_detector(str(whole))
    assert note["classes"] == ["object"]
    images = sorted((scenes / "images").iterdir())[0]
    assert cli.main(["predict", "--init", str(whole), "--images", str(images), "--out", str(tmp_path / "p")]) == 0
    found = json.loads((tmp_path / "p" / "results.json").read_text())
    assert {row["category_id"] for row in found} <= {1}


# A mask_rcnn is a faster_rcnn with one branch more, a cascade_rcnn one with two stages more; DETRs share their code.
SIBLINGS = ("mask_rcnn", "cascade_rcnn", "deformable_detr", "rtdetr")


@pytest.mark.parametrize(
    "detector",
    [pytest.param(key, marks=pytest.mark.slow) if key in SIBLINGS else key for key in DETECTORS],
)
def test_every_detector_goes_from_pre_training_to_fine_tuning_and_detections(
    scenes: Path, tmp_path: Path, detector: str, capfd: Capture
) -> None:
    own = {"fcos": WIDTHS, "retinanet": WIDTHS, **dict.fromkeys(TRANSFORMERS, ())}.get(detector, ("fpn_channels",))
    widths = {name: WIDTHS[name] for name in own}
    widths = dict.fromkeys(WIDTHS) | widths | ({"queries": 60} if detector in TRANSFORMERS else {})
    tiny_aligndet(scenes, tmp_path / "pre", detector=detector, steps=1, **widths)
    changes = {"init": str(tmp_path / "pre"), "steps": 1, **dict.fromkeys(WIDTHS)}
    tiny_finetune(scenes, tmp_path / "tuned", **changes, val_data=str(scenes / "val.json"))
    said = capfd.readouterr().err
    assert load_detector(str(tmp_path / "tuned"))[0].options.get("queries") == widths.get("queries")
    for part in ("backbone", "neck", "head"):
        assert f"{part:<10}  100.0%" in said
    # Of pre-training and of fine-tuning; both of which take another optimiser.
    assert said.count(f"warning: {detector} learns slowly") == (2 if detector in TRANSFORMERS else 0)
    for run in ("pre", "tuned"):
        config = yaml.safe_load((tmp_path / run / "config.yaml").read_text())
        assert config["optimizer"] == ("adamw" if detector in TRANSFORMERS else "sgd")
    images = sorted((scenes / "images").iterdir())[0]
    for run in ("pre", "tuned"):
        words = ["--init", str(tmp_path / run), "--images", str(images), "--out", str(tmp_path / f"found-{run}")]
        assert cli.main(["predict", *words]) == 0


def test_a_setting_that_a_detector_does_not_have_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--head-convs is no setting of faster_rcnn"):
        tiny_aligndet(scenes, tmp_path / "run", detector="faster_rcnn")
    with pytest.raises(UserError, match="--box-head is no setting of fcos"):
        tiny_finetune(scenes, tmp_path / "run", box_head="2fc")
    with pytest.raises(UserError, match="--queries is no setting of fcos"):
        tiny_finetune(scenes, tmp_path / "run", queries=60)
    with pytest.raises(UserError, match="queries 50"):
        tiny_finetune(scenes, tmp_path / "run", detector="detr", queries=50, **dict.fromkeys(WIDTHS))
    assert not (tmp_path / "run").exists()


def test_the_command_line_offers_every_detector() -> None:
    assert set(DetectorKey.__args__) == set(DETECTORS)
