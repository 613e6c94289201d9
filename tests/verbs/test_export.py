"""`selfdet export`: what it writes works where selfdet cannot be imported, or it is not there at all."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from tests.detectors.rcnn_scenes import TWO_STAGE, small_c4, small_cascade, small_faster, small_mask
from tests.detectors.scenes import SMALL, small_fcos, small_retinanet

from selfdet import export
from selfdet.cli import main
from selfdet.data.images import read_image
from selfdet.data.labelled import resize_sample
from selfdet.data.masks import encode_masks
from selfdet.data.sample import plain_sample
from selfdet.detectors.fcos import fcos
from selfdet.errors import UserError
from selfdet.interchange import export_detector
from selfdet.interchange.companions import rebuild
from selfdet.interchange.export_check import ExportMismatchError, check_images
from selfdet.interchange.starts import save_backbone, save_detector
from selfdet.interchange.weights import read_weights, write_safetensors
from selfdet.models.backbones import build_backbone
from selfdet.training.rundir import RunDir

SLOW = pytest.mark.slow
BLOCKED = """
import runpy, sys
sys.modules["selfdet"] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_selfdet(program, *words):
    command = [sys.executable, "-B", "-c", BLOCKED, str(program), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def detector_run(path, detector, verb="finetune", classes=("cat", "dog"), category_ids=(17, 18)):
    run = RunDir.open(path, {"verb": verb}, resume=False)
    about = {"classes": list(classes), "category_ids": list(category_ids)}
    note = {**detector.config(), **about, "image_size": detector.options["image_size"]}
    save_detector(run.detector, detector, note)
    return str(path)


def timm_fcos():
    torch.manual_seed(0)
    detector = fcos(2, build_backbone("mobilenetv3_small_050"), fpn_channels=64, head_convs=1, image_size=128)
    with torch.no_grad():
        detector.net.head.classification_head.cls_logits.weight.normal_(std=0.3)
        detector.net.head.regression_head.bbox_reg.bias.fill_(2.0)
    return detector


@pytest.mark.parametrize(
    "build",
    [
        lambda: small_fcos(num_classes=2, neck_norm="gn"),
        pytest.param(timm_fcos, marks=SLOW),
        pytest.param(lambda: small_retinanet(num_classes=2, neck_norm="bn", head_convs=2), marks=SLOW),
        pytest.param(lambda: small_faster(num_classes=2, image_size=64), marks=SLOW),
        pytest.param(
            lambda: small_faster(num_classes=2, image_size=64, box_head="4conv1fc", neck_norm="bn"), marks=SLOW
        ),
        pytest.param(lambda: small_c4(num_classes=2, image_size=64), marks=SLOW),
        lambda: small_mask(num_classes=2, image_size=64, detections=30),
        pytest.param(
            lambda: small_cascade(num_classes=2, image_size=64, box_head="4conv1fc", neck_norm="gn"), marks=SLOW
        ),
    ],
    ids=[
        "fcos",
        "timm_fcos",
        "retinanet",
        "faster_rcnn",
        "faster_rcnn_4conv1fc",
        "faster_rcnn_c4",
        "mask_rcnn",
        "cascade_rcnn",
    ],
)
def test_an_exported_detector_finds_the_same_in_plain_torchvision(tmp_path, build, capsys):
    detector = build()
    out = tmp_path / "exported"
    words = ["--init", detector_run(tmp_path / "run", detector), "--to", "torchvision", "--out", str(out), "--json"]
    assert main(["export", *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "detector"
    assert answer["files"] == sorted(os.listdir(out))
    assert answer["files"] == ["README.md", "detector.json", "detector.safetensors", "rebuild.py"]
    assert answer["check"]["detections"] >= 100
    assert answer["check"]["box_difference"] < 1e-3
    assert answer["check"]["score_difference"] < 1e-6
    assert answer["check"].get("mask_difference", 0) < 1e-3

    size = detector.options["image_size"]
    files = [tmp_path / "large.png", tmp_path / "small.jpg"]
    for file, pixels in zip(files, check_images(size)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
    for listed, file in zip(json.loads(without_selfdet(out / "rebuild.py", *files)), files):
        expected = detector.predict([resize_sample(plain_sample(read_image(file)), size)])[0]
        found = listed["detections"]
        assert listed["file"] == str(file)
        assert len(found) == len(expected["scores"]) > 10
        assert [each["score"] for each in found] == pytest.approx(expected["scores"].tolist(), abs=1e-4)
        assert [(17, 18).index(each["category_id"]) for each in found] == expected["labels"].tolist()
        assert {each["category"] for each in found} <= {"cat", "dog"}
        boxes = torch.tensor([each["bbox"] for each in found])
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(boxes, expected["boxes"], atol=0.05, rtol=0)
        masks = encode_masks(expected["masks"]) if "masks" in expected else [None] * len(found)
        assert [each.get("segmentation") for each in found] == masks


# Their relatives go the same way.
@pytest.mark.parametrize(
    "key", ["fcos", *(pytest.param(key, marks=SLOW) for key in ("mask_rcnn", "retinanet", "faster_rcnn"))]
)
def test_a_detector_that_was_only_pre_trained_goes_out_with_its_one_class(tmp_path, key):
    detector = {**SMALL, **TWO_STAGE}[key](num_classes=1, image_size=64)
    run = detector_run(tmp_path / "run", detector, "pretrain", ["object"], [1])
    answer = export(init=run, to="torchvision", out=str(tmp_path / "exported"))
    assert answer["check"]["detections"] >= 100
    assert answer["check"]["box_difference"] < 1e-3
    described = json.loads((tmp_path / "exported" / "detector.json").read_text())
    assert (described["detector"], described["classes"], described["category_ids"]) == (key, ["object"], [1])


@pytest.mark.parametrize(("name", "house"), [("resnet18", "torchvision"), ("mobilenetv3_small_050", "timm")])
def test_an_exported_backbone_loads_in_its_own_library(tmp_path, name, house):
    run = RunDir.open(tmp_path / "run", {"verb": "pretrain"}, resume=False)
    save_backbone(run.backbone, build_backbone(name), {"method": "densecl"})
    answer = export(init=str(run.path), to=house, out=str(tmp_path / "exported"))
    assert answer["files"] == ["README.md", "backbone.safetensors", "load.py"]
    assert answer["check"] == {"maps": 4, "largest_difference": pytest.approx(0, abs=1e-6)}
    program = tmp_path / "use.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path / 'exported')!r})\n"
        "import torch; from load import load\n"
        "print(*load(num_classes=7).eval()(torch.zeros(1, 3, 64, 64)).shape)\n"
    )
    assert without_selfdet(program).split() == ["1", "7"]


def test_of_a_detector_timm_gets_the_backbone_as_it_was_fine_tuned(tmp_path):
    detector = timm_fcos()
    answer = export(init=detector_run(tmp_path / "run", detector), to="timm", out=str(tmp_path / "exported"))
    assert answer["kind"] == "backbone"
    state, _ = read_weights(tmp_path / "exported" / "backbone.safetensors")
    body = {f"backbone.body.{key}": value for key, value in state.items()}
    trained = detector.net.state_dict()
    assert body.keys() == {key for key in trained if key.startswith("backbone.body.")}
    assert all(torch.equal(value, trained[key]) for key, value in body.items())


def test_the_wrong_library_is_refused_and_the_right_one_named(tmp_path):
    save_backbone(tmp_path / "b.safetensors", build_backbone("mobilenetv3_small_050"), {})
    with pytest.raises(UserError, match=r"timm's mobilenetv3_small_050.*--to timm"):
        export(init=str(tmp_path / "b.safetensors"), to="torchvision", out=str(tmp_path / "exported"))
    assert os.listdir(tmp_path) == ["b.safetensors"]


def test_timm_and_transformers_get_the_resnet_of_a_detector(tmp_path):
    run = detector_run(tmp_path / "run", small_fcos(num_classes=2))
    for to, part in (("timm", None), ("transformers", "backbone")):
        answer = export(init=run, to=to, part=part, out=str(tmp_path / to))
        assert answer["kind"] == "backbone"
        assert answer["check"]["largest_difference"] < 1e-5
    with pytest.raises(UserError, match=r"is a fcos, which transformers does not have.*or --part backbone"):
        export(init=run, to="transformers", out=str(tmp_path / "whole"))


def test_a_detector_that_rebuild_cannot_build_is_refused(tmp_path, monkeypatch):
    run = detector_run(tmp_path / "run", small_retinanet(num_classes=2))
    monkeypatch.delitem(rebuild.NETWORKS, "retinanet")
    with pytest.raises(UserError, match="is a retinanet; export to torchvision writes fcos"):
        export(init=run, to="torchvision", out=str(tmp_path / "exported"))
    assert os.listdir(tmp_path) == ["run"]


def test_a_detector_that_nobody_knows_is_refused_by_name(tmp_path):
    detector = small_fcos(num_classes=2)
    file = tmp_path / "d.safetensors"
    about = {"detector": "yolo", "classes": ["cat", "dog"], "category_ids": [17, 18], "image_size": 128}
    save_detector(file, detector, {**detector.config(), **about})
    with pytest.raises(UserError, match="unknown detector 'yolo'"):
        export(init=str(file), to="torchvision", out=str(tmp_path / "exported"))
    assert os.listdir(tmp_path) == ["d.safetensors"]


def tampered_weights(monkeypatch):
    def save(path, detector, note):
        save_detector(path, detector, note)
        state, metadata = read_weights(path)
        state["head.regression_head.bbox_reg.bias"] += 1e-3
        write_safetensors(path, state, metadata)

    monkeypatch.setattr(export_detector, "save_detector", save)


def tampered_description(monkeypatch):
    true = export_detector.describe
    monkeypatch.setattr(export_detector, "describe", lambda *given: {**true(*given), "image_size": 129})


def tampered_program(monkeypatch):
    write = export_detector.write_text
    monkeypatch.setattr(
        export_detector,
        "write_text",
        lambda path, text: write(path, "import selfdet\n" if path.suffix == ".py" else text),
    )


@pytest.mark.parametrize("tamper", [tampered_weights, tampered_description, tampered_program])
def test_what_does_not_behave_the_same_is_an_error_and_is_not_left_behind(tmp_path, monkeypatch, tamper):
    run = detector_run(tmp_path / "run", small_fcos(num_classes=2))
    tamper(monkeypatch)
    with pytest.raises(ExportMismatchError):
        export(init=run, to="torchvision", out=str(tmp_path / "exported"))
    assert os.listdir(tmp_path) == ["run"]


def test_a_file_with_one_wrong_prefix_is_refused_with_exit_code_2(tmp_path, capsys):
    file = tmp_path / "run" / "detector.safetensors"
    detector_run(tmp_path / "run", small_fcos(num_classes=2))
    state, metadata = read_weights(file)
    write_safetensors(file, {key.replace("backbone.body.layer4", "body.layer4"): state[key] for key in state}, metadata)
    assert main(["export", "--init", str(file), "--to", "torchvision", "--out", str(tmp_path / "exported")]) == 2
    error = capsys.readouterr().err
    assert "body.layer4" in error
    assert str(file) in error
    assert os.listdir(tmp_path) == ["run"]


def test_weights_that_are_not_finite_are_refused(tmp_path):
    backbone = build_backbone("resnet18")
    with torch.no_grad():
        backbone.net["conv1"].weight[0] = torch.nan
    save_backbone(tmp_path / "b.safetensors", backbone, {})
    with pytest.raises(UserError, match=r"conv1\.weight holds values that are not finite"):
        export(init=str(tmp_path / "b.safetensors"), to="torchvision", out=str(tmp_path / "exported"))


@pytest.mark.parametrize("init", ["scratch", "library:resnet18"])
def test_a_start_without_training_is_refused(tmp_path, init):
    with pytest.raises(UserError, match="holds nothing trained"):
        export(init=init, to="torchvision", out=str(tmp_path / "exported"))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    save_backbone(tmp_path / "b.safetensors", build_backbone("resnet18"), {})
    with pytest.raises(UserError, match="is not empty"):
        export(init=str(tmp_path / "b.safetensors"), to="torchvision", out=str(tmp_path))
    assert os.listdir(tmp_path) == ["b.safetensors"]
