"""Pre-training leaves a run that says what it did and why, and a backbone under its library's names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file

from selfdet import cli
from selfdet.errors import UserError
from selfdet.training.checkpoint import load_checkpoint
from selfdet.training.rundir import RunDir
from selfdet.verbs.stages import StageSettings
from tiny_runs import BACKBONE, PRETRAIN, flags, tiny_pretrain

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of so small a run, and are looked at elsewhere."""
    monkeypatch.setattr("selfdet.verbs.pretrain_backbone.plot_training", lambda rows, folder: [])
    monkeypatch.setattr("selfdet.verbs.pretrain.report_at_the_end", lambda out, runtime, reporter: None)


def config(out: Path) -> dict[str, Any]:
    return RunDir(out).read_config()


def test_a_finished_run_has_every_file_and_no_other(pretrained: Path) -> None:
    assert sorted(path.name for path in pretrained.iterdir()) == [
        *("backbone.safetensors", "config.yaml", "last.pt", "log.txt"),
        *("metrics.jsonl", "pictures", "report.html", "timing.jsonl"),
    ]
    pictures = {path.name for path in (pretrained / "pictures").iterdir()}
    assert {"first_views.jpg", "loss.png", "match_accuracy.png", "similarity.png", "spread.png"} <= pictures
    for path in (pretrained / "pictures").iterdir():
        with Image.open(path) as picture:
            picture.verify()


def test_the_backbone_has_its_librarys_own_names(pretrained: Path) -> None:
    state = load_file(pretrained / "backbone.safetensors")
    net = timm.create_model(BACKBONE, num_classes=0)
    assert not set(net.load_state_dict(state, strict=False).unexpected_keys)
    assert set(state) >= {name for name, _ in net.named_parameters() if not name.startswith(("fc.", "head."))}


def test_metrics_hold_losses_health_and_the_matches_before_and_after(pretrained: Path) -> None:
    rows = RunDir(pretrained).read_metrics()
    assert [row["step"] for row in rows] == [0, 2, 4, 5, 5]
    before, first, after = rows[0], rows[1], rows[-1]
    for row in (before, after):
        assert 0 <= row["match_accuracy"] <= 1
        assert row["match_chance"] == 1 / 4  # 64 px are 2 × 2 cells of 32
    assert first["loss"] == pytest.approx((first["global"] + first["dense"]) / 2)
    assert first["loss_chance"] == pytest.approx(math.log(65))
    assert {"pos_similarity", "neg_similarity", "feature_std", "effective_rank", "lr", "epoch"} <= set(first)


def test_the_log_gives_each_choice_with_its_reason_and_the_figures_in_words(pretrained: Path) -> None:
    text = (pretrained / "log.txt").read_text()
    for line in (
        "batch size: 4 (given)",
        "steps: 5 (given)",
        "learning rate: 0.0046875 (0.3 × 4/256, for 15 images)",
        "queue length: 64 (given)",
        "pure chance is log(64 + 1) = 4.17",
        "Dense matches hit the true cell exactly in",
        f"backbone: {pretrained / 'backbone.safetensors'}",
    ):
        assert line in text


def test_the_key_encoder_is_averaged_once_a_step_whatever_the_micro_batches(scenes: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 3, "accumulate": 2, "momentum": 0.0}
    for resume in (False, True):
        tiny_pretrain(scenes, tmp_path / "run", **settings, max_time=1e-9, resume=resume)
    two = load_checkpoint(tmp_path / "run" / "last.pt")["method"]
    tiny_pretrain(scenes, tmp_path / "run", **settings, resume=True)
    three = load_checkpoint(tmp_path / "run" / "last.pt")["method"]
    # With momentum 0 the key encoder is the encoder as it was before the third step.
    names = [name for name in two if name.startswith("encoder.") and name.endswith("weight") and two[name].ndim > 1]
    assert len(names) > 10
    for name in names:
        assert three[f"key_{name}"].equal(two[name])
        assert not three[name].equal(two[name])


def test_moco_has_no_dense_loss(scenes: Path, tmp_path: Path) -> None:
    answer = tiny_pretrain(scenes, tmp_path / "run", method="moco", steps=2)
    assert "dense" not in answer
    assert answer["loss"] == answer["global"]


def test_the_stage_s_own_settings_come_before_the_shared_ones(scenes: Path, tmp_path: Path) -> None:
    own = StageSettings(epochs=1, image_size=96, lr=0.5)
    tiny_pretrain(scenes, tmp_path / "run", steps=50, lr=0.1, backbone_stage=own)
    found = config(tmp_path / "run")
    assert (found["steps"], found["image_size"], found["lr"], found["batch_size"]) == (3, 96, 0.5, 4)


def test_a_run_begins_from_another_run_with_a_report_of_what_was_reused(
    scenes: Path, tmp_path: Path, pretrained: Path, finetuned: Path
) -> None:
    for name, start in (("backbone", pretrained), ("detector", finetuned)):
        tiny_pretrain(scenes, tmp_path / name, backbone_weights=str(start), steps=1, lr=1e-12, momentum=1.0)
        assert "backbone    100.0%" in (tmp_path / name / "log.txt").read_text()
    given = load_file(finetuned / "detector.safetensors")
    taken = load_file(tmp_path / "detector" / "backbone.safetensors")
    for key, value in taken.items():
        if value.is_floating_point() and "running" not in key:
            torch.testing.assert_close(value, given[f"backbone.body.{key}"])


def test_trained_weights_get_a_tenth_of_the_learning_rate(scenes: Path, tmp_path: Path, pretrained: Path) -> None:
    tiny_pretrain(scenes, tmp_path / "run", backbone_weights=str(pretrained), steps=1)
    assert (
        "learning rate: 0.00046875 (0.03 × 4/256, for weights that are already trained)"
        in (tmp_path / "run" / "log.txt").read_text()
    )


def test_a_torchvision_resnet_comes_out_as_torchvision_s(scenes: Path, tmp_path: Path) -> None:
    tiny_pretrain(scenes, tmp_path / "run", backbone="resnet18", steps=1)
    missing = torchvision.models.resnet18().load_state_dict(
        load_file(tmp_path / "run" / "backbone.safetensors"), strict=False
    )
    assert not missing.unexpected_keys
    assert missing.missing_keys == ["fc.weight", "fc.bias"]


def test_the_command_line_answers_with_one_json_object(scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    words = ["--images", str(scenes / "images"), "--out", str(tmp_path / "run"), *flags(PRETRAIN), "--json"]
    assert cli.main(["pretrain", *words]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["finished"] is True
    assert answer["step"] == 5
    assert Path(answer["backbone"]).is_file()
    assert err == (tmp_path / "run" / "log.txt").read_text()


def test_the_settings_of_a_run_are_resolved_and_plain(pretrained: Path) -> None:
    found = yaml.safe_load((pretrained / "config.yaml").read_text())
    assert found["lr"] == 0.0046875
    assert found["images_found"] == 15
    assert found["method_options"]["queue_length"] == 64
    assert found["precision"] == "fp32"


def test_one_image_is_enough_where_its_map_is_more_than_a_cell(scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    one = str(scenes / "images" / "val_00000.jpg")
    answer = tiny_pretrain(scenes, tmp_path / "run", images=one, steps=2)
    assert math.isfinite(answer["loss"])
    assert "batch size: 1 (lowered from 4 for 1 image: a batch repeats none)" in capfd.readouterr().err
    with pytest.raises(UserError, match="one image of 32 px at a time leaves batch norm one value"):
        tiny_pretrain(scenes, tmp_path / "small", images=one, steps=2, image_size=32)
    assert not (tmp_path / "small").exists()


def test_simclr_trains_and_says_what_its_figures_mean(scenes: Path, tmp_path: Path) -> None:
    answer = tiny_pretrain(scenes, tmp_path / "run", method="simclr", queue_length=None)
    assert answer["finished"]
    assert config(tmp_path / "run")["method_options"] == {"temperature": 0.1, "seed": 0}
    said = (tmp_path / "run" / "log.txt").read_text()
    assert "queue" not in said
    assert "pure chance is 1.95" in said  # log(2 · 4 − 1)
    assert "to other images" in said


def test_a_queue_for_simclr_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--queue-length 64: simclr has no queue"):
        tiny_pretrain(scenes, tmp_path / "run", method="simclr", queue_length=64)


@pytest.mark.slow
def test_of_a_composite_backbone_the_plain_network_is_trained_once_for_both(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = tiny_pretrain(scenes, out, backbone="cb-resnet18", steps=1, stages=["backbone"])
    state = load_file(answer["backbone"])
    plain = torchvision.models.resnet18().state_dict()
    assert state.keys() == plain.keys() - {"fc.weight", "fc.bias"}
    assert "both copies of cb-resnet18 start from this resnet18" in (out / "log.txt").read_text()
