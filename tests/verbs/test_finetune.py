"""Fine-tuning starts from what it is told, at the rates and with the batch norm it is told, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from selfdet import cli
from selfdet.data.labels import load_labels
from selfdet.data.subset import fraction_subset
from selfdet.errors import UserError
from selfdet.interchange.starts import load_detector, save_backbone
from selfdet.methods.supervised import Supervised
from selfdet.models.backbones import build_backbone
from selfdet.training.checkpoint import load_checkpoint
from selfdet.training.rundir import RunDir
from selfdet.verbs.finetune_choices import PartScales
from tiny_runs import FINETUNE, WIDTHS, flags, tiny_finetune

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of so small a run, and are looked at elsewhere."""
    monkeypatch.setattr("selfdet.verbs.finetune.plot_training", lambda rows, folder: [])
    monkeypatch.setattr("selfdet.verbs.finetune.report_at_the_end", lambda *given: None)


def log(out: Path) -> str:
    return (out / "log.txt").read_text()


def test_a_finished_run_has_every_file_and_no_other(finetuned: Path) -> None:
    assert sorted(path.name for path in finetuned.iterdir()) == [
        *("best.pt", "config.yaml", "detector.safetensors", "last.pt"),
        *("log.txt", "metrics.jsonl", "pictures", "report.html", "timing.jsonl"),
    ]
    assert {path.name for path in (finetuned / "pictures").iterdir()} == {"loss.png", "ap.png", "learning_rate.png"}
    for path in (finetuned / "pictures").iterdir():
        with Image.open(path) as picture:
            picture.verify()


def test_metrics_hold_losses_and_the_scores_of_every_evaluation(finetuned: Path) -> None:
    rows = RunDir(finetuned).read_metrics()
    assert [row["step"] for row in rows if "AP" in row] == [0, 2, 4, 5]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 5]
    last = rows[-1]
    assert set(last) == {"step", "AP", "AP50", "AP75", "APs", "APm", "APl", "per_class", "images", "detections"}
    losses = next(row for row in rows if "loss" in row)
    parts = [losses[name] for name in ("classification", "bbox_regression", "bbox_ctrness")]
    assert losses["loss"] == pytest.approx(sum(parts))


def test_the_log_says_what_was_reused_and_what_starts_afresh(finetuned: Path, pretrained: Path) -> None:
    text = log(finetuned)
    assert f"fcos on test_resnet from {pretrained / 'backbone.safetensors'}; cpu, fp32, 1 thread" in text
    table = {line.split()[0]: line.split()[1:4] for line in text.splitlines() if line.startswith(("b", "n", "h", "l"))}
    assert table["backbone"][0] == "100.0%"
    for part in ("neck", "head", "last"):
        share, reused, fresh = table[part]
        assert (share, reused) == ("0.0%", "0")
        assert int(fresh.replace(",", "")) > 0


def test_the_backbone_is_the_start_s_own(scenes: Path, tmp_path: Path, pretrained: Path) -> None:
    tiny_finetune(scenes, tmp_path / "run", init=str(pretrained), steps=1, lr=1e-12, batch_norm="frozen")
    given = load_file(pretrained / "backbone.safetensors")
    taken = load_file(tmp_path / "run" / "detector.safetensors")
    for name, value in given.items():
        torch.testing.assert_close(taken[f"backbone.body.{name}"], value)


def test_from_a_detector_all_but_the_last_layers_is_kept(scenes: Path, tmp_path: Path, finetuned: Path) -> None:
    settings = {"init": str(finetuned), "steps": 1, "lr": 1e-12, "fpn_channels": None, "head_convs": None}
    tiny_finetune(scenes, tmp_path / "run", **settings, batch_norm="frozen", seed=5)
    given = load_file(finetuned / "detector.safetensors")
    taken = load_file(tmp_path / "run" / "detector.safetensors")
    last = ("head.classification_head.cls_logits", "head.regression_head.bbox_")
    for name, value in taken.items():
        if not name.startswith(last):
            torch.testing.assert_close(value, given[name])
    fresh = "head.classification_head.cls_logits.weight"
    assert not taken[fresh].allclose(given[fresh], atol=1e-4)
    assert RunDir(tmp_path / "run").read_config()["options"]["fpn_channels"] == 64


def test_each_part_moves_at_its_own_rate(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[dict[str, float]] = []
    ordinary = torch.optim.SGD.step

    def step(self: torch.optim.SGD, closure: Any = None) -> Any:
        rates.append({group["name"]: group["lr"] for group in self.param_groups})
        return ordinary(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    scales = PartScales(backbone=0.1, neck=0.5, last=2.0)
    tiny_finetune(scenes, tmp_path / "run", steps=1, lr=0.01, warmup_steps=0, lr_scale=scales)
    assert rates == [pytest.approx({"backbone": 0.001, "neck": 0.005, "head": 0.01, "last": 0.02})]


def test_a_rate_of_a_part_that_the_detector_lacks_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--lr-scale\.rpn is of no part of this detector") as refused:
        tiny_finetune(scenes, tmp_path / "run", lr_scale=PartScales(rpn=0.1))
    assert refused.value.hint == "It has backbone, neck, head, last"
    assert not (tmp_path / "run").exists()


def test_a_c4_detector_takes_a_backbone_in_both_halves_and_is_a_start_itself(scenes: Path, tmp_path: Path) -> None:
    backbone = build_backbone("resnet18")
    save_backbone(tmp_path / "backbone.safetensors", backbone, {})
    elements = sum(value.numel() for value in backbone.net.state_dict().values() if value.is_floating_point())
    settings: dict[str, Any] = {"detector": "faster_rcnn", "backbone": None, "steps": 1, **dict.fromkeys(WIDTHS)}
    settings |= {"image_size": 32, "batch_size": 1}  # few regions: the last stage of a ResNet takes its time for each
    given = {"init": str(tmp_path / "backbone.safetensors"), "neck": "c4", "lr_scale": PartScales(rpn=0.5)}
    tiny_finetune(scenes, tmp_path / "c4", **settings, **given)
    assert f"{'backbone':<10}  100.0%{elements:>15,}" in log(tmp_path / "c4")
    assert RunDir(tmp_path / "c4").read_config()["options"]["neck"] == "c4"
    tiny_finetune(scenes, tmp_path / "again", **settings, init=str(tmp_path / "c4"))
    for part in ("backbone", "rpn"):
        assert f"{part:<10}  100.0%" in log(tmp_path / "again")


@pytest.mark.parametrize(
    ("start", "settings", "line"),
    [
        ("scratch", {"batch_size": 2}, "batch norm: train (statistics of 2 images at a time)"),
        ("run", {}, "batch norm: train (statistics of 4 images at a time)"),
        ("run", {"accumulate": 2}, "batch norm: frozen (2 images at a time are too few for statistics of their own)"),
        ("run", {"batch_size": 1}, "batch norm: frozen (1 image at a time are too few for statistics of their own)"),
        ("run", {"batch_norm": "frozen"}, "batch norm: frozen (given)"),
        ("scratch", {"batch_norm": "sync"}, "batch norm: sync (given)"),
    ],
)
def test_the_batch_norm_fits_the_start_unless_it_is_said(
    scenes: Path, tmp_path: Path, pretrained: Path, start: str, settings: dict[str, Any], line: str
) -> None:
    out = tmp_path / "run"
    init = str(pretrained) if start == "run" else start
    tiny_finetune(scenes, out, init=init, **{"steps": 1, "max_time": 1e-9, **settings})
    assert line in log(out)
    names = [name for name in load_file(out / "detector.safetensors") if name.endswith("bn1.running_mean")]
    moved = load_file(out / "detector.safetensors")[names[0]]
    before = load_file(pretrained / "backbone.safetensors")[names[0].removeprefix("backbone.body.")]
    if "frozen (" in line and start == "run":
        assert moved.equal(before)
    else:
        assert not moved.equal(before)


def test_weights_of_a_library_keep_their_statistics(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfdet.interchange import starts

    ordinary = starts.build_backbone
    monkeypatch.setattr(starts, "build_backbone", lambda name, weights=None: ordinary(name))
    tiny_finetune(scenes, tmp_path / "run", init="library:test_resnet", backbone=None, steps=1)
    assert "batch norm: frozen (weights of a library keep their statistics)" in log(tmp_path / "run")


def test_a_fraction_is_the_nested_subset_named_in_the_log(scenes: Path, tmp_path: Path) -> None:
    tiny_finetune(scenes, tmp_path / "run", fraction=0.4, seed=3, steps=1)
    ids = [record.image_id for record in load_labels(scenes / "train.json").records]
    subset = fraction_subset(ids, 0.4, 3)
    text = log(tmp_path / "run")
    assert "4 of 10 labelled images, with " in text
    assert f" boxes (nested 0.4, seed 3, hash {subset.hash[:12]})" in text
    assert RunDir(tmp_path / "run").read_config()["fraction"]["hash"] == subset.hash


def test_a_fraction_without_a_box_is_warned_of(scenes: Path, tmp_path: Path) -> None:
    labels = json.loads((scenes / "train.json").read_text())
    ids = fraction_subset([record.image_id for record in load_labels(scenes / "train.json").records], 0.1, 0).image_ids
    labels["annotations"] = [each for each in labels["annotations"] if each["image_id"] not in ids]
    (tmp_path / "train.json").write_text(json.dumps(labels))
    tiny_finetune(
        scenes,
        tmp_path / "run",
        data=str(tmp_path / "train.json"),
        images=str(scenes / "images"),
        fraction=0.1,
        steps=1,
    )
    assert "warning: no box in the chosen images (1 of 10)" in log(tmp_path / "run")


def test_the_published_splits_are_another_scheme(scenes: Path, tmp_path: Path) -> None:
    tiny_finetune(scenes, tmp_path / "run", fraction=0.5, fraction_scheme="coco-splits", steps=1, batch_size=2)
    assert "(coco-splits 0.5, seed 0, hash " in log(tmp_path / "run")


def test_boxes_that_are_left_out_are_counted(scenes: Path, tmp_path: Path) -> None:
    labels = json.loads((scenes / "train.json").read_text())
    for annotation, box in zip(labels["annotations"], ([5, 5, 0, 9], [5, 5, -2, 9], [500, 5, 9, 9])):
        annotation["bbox"] = box
    (tmp_path / "train.json").write_text(json.dumps(labels))
    data = str(tmp_path / "train.json")
    tiny_finetune(scenes, tmp_path / "run", data=data, images=str(scenes / "images"), steps=1)
    assert f"left out of {data}: 2 boxes (degenerate)" in log(tmp_path / "run")
    assert f"left out of {data}: 1 box (out of image)" in log(tmp_path / "run")


def test_fewer_images_than_a_batch_lower_it(scenes: Path, tmp_path: Path) -> None:
    tiny_finetune(scenes, tmp_path / "run", batch_size=64, accumulate=4, steps=1)
    assert "batch size: 8 (lowered from 64 for 10 images: a batch repeats none)" in log(tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_with_exit_code_2_and_a_sound_checkpoint(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    ordinary = Supervised.forward
    seen: list[str] = []

    def forward(self: Supervised, batch: Any) -> dict[str, torch.Tensor]:
        losses = ordinary(self, batch)
        if not (path := batch[0].path):  # of the trial that says how much memory it will take
            return losses
        seen.append(path)
        return {**losses, "loss": losses["loss"] * float("nan")} if len(seen) == 4 else losses

    monkeypatch.setattr(Supervised, "forward", forward)
    words = ["--data", str(scenes / "train.json"), "--out", str(tmp_path / "run"), *flags(FINETUNE)]
    assert cli.main(["finetune", *words]) == 2
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.startswith("selfdet: error: the loss (loss) is not finite at step 4; the images of the batch begin")
    assert seen[-1] in message
    assert "Lower --lr" in message
    kept = load_checkpoint(tmp_path / "run" / "last.pt")
    assert kept["progress"]["step"] == 3
    assert all(value.isfinite().all() for value in kept["method"].values() if value.is_floating_point())


def test_unreadable_labelled_images_are_counted_or_stop_the_run(scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    labels = load_labels(scenes / "train.json")
    for bad, code in ((1, 0), (2, 2)):
        images = tmp_path / f"images{bad}"
        images.mkdir()
        for number, record in enumerate(labels.records):
            (images / record.path.name).write_bytes(b"" if number < bad else record.path.read_bytes())
        words = ["--data", str(scenes / "train.json"), "--images", str(images), "--out", str(tmp_path / f"run{bad}")]
        assert cli.main(["finetune", *words, *flags({**FINETUNE, "steps": 8})]) == code
        err = capfd.readouterr().err
        assert ("1 unreadable image of 10 replaced by others" in err) == (code == 0)
        assert ("2 of 10 images cannot be read, more than 5%: " in err) == (code == 2)


def test_evaluation_leaves_out_what_cannot_be_read_and_says_so(scenes: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (scenes / "images").iterdir():
        (images / path.name).write_bytes(b"" if path.name == "val_00002.jpg" else path.read_bytes())
    held_out = {"val_data": str(scenes / "val.json"), "images": str(images), "evaluate_every": 1}
    answer = tiny_finetune(scenes, tmp_path / "run", steps=1, **held_out)
    assert answer["images"] == 4
    assert f"unreadable, left out of the evaluation: {images / 'val_00002.jpg'}" in log(tmp_path / "run")


def test_the_best_checkpoint_can_be_used_like_a_run(finetuned: Path) -> None:
    best, note = load_detector(str(finetuned / "best.pt"))
    assert note == load_detector(str(finetuned))[1]
    kept = load_checkpoint(finetuned / "best.pt")["method"]
    assert all(value.equal(kept[f"detector.net.{name}"]) for name, value in best.net.state_dict().items())


def test_evaluating_needs_labels_of_the_same_classes(scenes: Path, tmp_path: Path) -> None:
    labels = json.loads((scenes / "val.json").read_text())
    labels["categories"][0]["name"] = "unicorn"
    (tmp_path / "val.json").write_text(json.dumps(labels))
    val = {"val_data": str(tmp_path / "val.json"), "images": str(scenes / "images")}
    with pytest.raises(UserError, match=r"val\.json has no category"):
        tiny_finetune(scenes, tmp_path / "run", **val)
    with pytest.raises(UserError, match="--evaluate-every needs labels"):
        tiny_finetune(scenes, tmp_path / "run", evaluate_every=2)
    with pytest.raises(UserError, match="--evaluate-every is 0"):
        tiny_finetune(scenes, tmp_path / "run", val_data=str(scenes / "val.json"), evaluate_every=0)
    assert not (tmp_path / "run").exists()


def test_the_command_line_answers_with_one_json_object(scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    words = ["--data", str(scenes / "train.json"), "--out", str(tmp_path / "run"), *flags(FINETUNE), "--json"]
    assert cli.main(["finetune", *words, "--lr-scale.backbone", "0.5"]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert (answer["finished"], answer["step"]) == (True, 5)
    assert Path(answer["detector"]).is_file()
    assert err == log(tmp_path / "run")
