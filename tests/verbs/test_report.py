"""`selfdet report` shows a run as it is: finished or not, with its images or without."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning_fabric import Fabric

from selfdet import cli
from selfdet.data.labels import load_labels
from selfdet.data.subset import fraction_subset
from selfdet.drawing.run_stages import read_run
from selfdet.errors import UserError
from selfdet.training.log import Reporter
from selfdet.verbs.report import examples_of, report, report_at_the_end, usual_settings

Capture = pytest.CaptureFixture[str]


def text_of(run: Path, out: Path, **changes: Any) -> str:
    return Path(report(init=str(run), out=str(out / "page.html"), threads=1, **changes)["report"]).read_text("utf-8")


def changed(run: Path, out: Path, **settings: Any) -> Path:
    """A copy of a run with other settings in its config.yaml."""
    shutil.copytree(run, out)
    config = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump(config | settings))
    return out


class Finds:
    """A detector that finds its class 0 in a corner of every image."""

    has_masks = False

    def find(self, samples: list[Any]) -> list[dict[str, torch.Tensor]]:
        found = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.ones(1), "labels": torch.zeros(1).long()}
        return [found for _ in samples]


def test_the_command_shows_held_out_images_with_labels_and_detections(
    finetuned: Path, tmp_path: Path, capfd: Capture
) -> None:
    out = tmp_path / "pages" / "page.html"
    assert cli.main(["report", "--init", str(finetuned), "--out", str(out), "--threads", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"report": str(out), "finished": True}
    html = out.read_text("utf-8")
    assert html.count("with labelled boxes") == html.count("with detected boxes") == 5
    assert "val_00000.jpg" in html
    shown = (finetuned / "report.html").read_text("utf-8")  # written when training ended
    assert "not finished" not in shown
    assert shown.count("with detected boxes") == 5
    # What the run was told, and what was reused of its start, is read from the run as it was written.
    for said in ("given", "usually", "backbone</td>", "share reused", "100.0%", "torchvision"):
        assert said in html


def test_a_pretraining_run_shows_its_views_and_what_was_learned(pretrained: Path, tmp_path: Path) -> None:
    html = text_of(pretrained, tmp_path)
    for said in ("The backbone: DenseCL", "pure chance is", "dots of one number", "started from random weights"):
        assert said in html


def test_without_an_out_the_page_stands_in_the_run(pretrained: Path, tmp_path: Path) -> None:
    run = changed(pretrained, tmp_path / "run")
    assert report(init=str(run))["report"] == str(run / "report.html")
    assert (run / "report.html").is_file()


def test_files_that_are_gone_or_changed_are_said_to_be(finetuned: Path, tmp_path: Path) -> None:
    gone = changed(finetuned, tmp_path / "gone", val_data="gone/val.json")
    html = text_of(gone, tmp_path)
    assert "gone/val.json" in html
    assert "can&#39;t be shown any more" in html
    other = changed(finetuned, tmp_path / "other", val_data_hash="0")
    assert "has changed since" in text_of(other, tmp_path)


def test_a_run_that_is_not_finished_shows_its_last_checkpoint_or_that_it_has_none(
    finetuned: Path, tmp_path: Path
) -> None:
    run = changed(finetuned, tmp_path / "run")
    (run / "detector.safetensors").unlink()
    html = text_of(run, tmp_path)
    assert "This run is not finished" in html
    assert "with detected boxes" in html
    (run / "last.pt").unlink()
    assert "no weights yet" in text_of(run, tmp_path)


def test_without_held_out_labels_images_outside_the_labelled_fraction_are_shown(
    finetuned: Path, scenes: Path, tmp_path: Path
) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    whole = read_run(changed(finetuned, tmp_path / "all", val_data=None))
    assert "No images were held out" in examples_of(whole, Finds(), fabric).words  # type: ignore[arg-type]
    labels = load_labels(scenes / "train.json")
    half = fraction_subset([record.image_id for record in labels.records], 0.5, 7)
    whole = read_run(changed(finetuned, tmp_path / "half", val_data=None, fraction=asdict(half)))
    found = examples_of(whole, Finds(), fabric)  # type: ignore[arg-type]
    used = {record.path.name for record in labels.subset(half.image_ids).records}
    assert "were not among those that were learned from" in found.words
    assert len(found.images) == 5
    assert not used & {example.name for example in found.images}


def test_classes_keep_their_names_where_label_files_number_them_otherwise(finetuned: Path, tmp_path: Path) -> None:
    classes = read_run(finetuned).config["classes"][::-1]
    whole = read_run(changed(finetuned, tmp_path / "run", classes=classes))
    found = examples_of(whole, Finds(), Fabric(accelerator="cpu", devices=1))  # type: ignore[arg-type]
    assert {found.names[example.found["labels"][0]] for example in found.images} == {classes[0]}


def test_every_setting_of_a_run_is_known_as_one_or_as_a_fact(finetuned: Path, pretrained: Path) -> None:
    usual = usual_settings(read_run(finetuned))["finetune"]
    assert usual["init"] is ...
    assert usual["weight_decay"] == 1e-4
    assert usual["lr_scale.neck"] == 1.0
    stages = usual_settings(read_run(pretrained))
    assert stages["backbone"]["temperature"] == 0.2
    assert stages["detector"]["temperature"] == 0.5


def test_what_is_no_run_and_what_may_not_be_written_over_is_refused(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        report(init=str(tmp_path))
    (tmp_path / "config.yaml").write_text("verb: os")
    with pytest.raises(UserError, match="not of a run of pretrain or finetune"):
        report(init=str(tmp_path))
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    with pytest.raises(UserError, match="is no report"):
        report(init=str(pretrained), out=str(notes))
    with pytest.raises(UserError, match="is a folder"):
        report(init=str(pretrained), out=str(tmp_path))
    assert notes.read_text() == "mine"


def test_a_page_that_fails_does_not_fail_the_run(finetuned: Path, tmp_path: Path, capfd: Capture) -> None:
    class Fails:
        has_masks = False

        def find(self, samples: list[Any]) -> list[dict[str, torch.Tensor]]:
            raise RuntimeError("out of memory")

    run = changed(finetuned, tmp_path / "run")
    runtime = SimpleNamespace(first=True, fabric=Fabric(accelerator="cpu", devices=1))
    report_at_the_end(run, runtime, Reporter(), Fails())  # type: ignore[arg-type]
    assert "out of memory" in capfd.readouterr().err
    report_at_the_end(run, runtime, Reporter(), Finds())  # type: ignore[arg-type]
    assert "found: 1 object" in (run / "report.html").read_text("utf-8")
