"""Pseudo classes of proposals: made by the verb or on the way to a transformer, the same ones, and learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfdet.cli import main
from selfdet.errors import UserError
from selfdet.interchange.starts import load_detector, save_backbone
from selfdet.methods.aligndet import AlignDet
from selfdet.models.backbones import build_backbone
from selfdet.proposing.store import read_proposals
from selfdet.verbs.pretrain_detector import DetectorStageSettings
from selfdet.verbs.proposal_clusters import cluster_count
from selfdet.verbs.proposals import proposals
from tiny_runs import tiny_aligndet


@pytest.fixture(scope="module")
def boxes(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Proposals of the scenes without clusters."""
    out = tmp_path_factory.mktemp("clusters") / "boxes.json"
    proposals(images=str(scenes / "images"), out=str(out))
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone's."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_backbone(out, build_backbone("test_resnet"), {})
    return out


def cluster(scenes: Path, boxes: Path, weights: Path, out: Path, **more: Any) -> dict[str, Any]:
    given = {"boxes": str(boxes), "clusters": 7, "backbone_weights": str(weights), **more}
    return proposals(images=str(scenes / "images"), out=str(out), **given)


def numbers(file: Path) -> list[int]:
    return [row["cluster"] for row in json.loads(file.read_text())["annotations"]]


def test_each_box_gets_a_cluster_and_nothing_else_changes(
    scenes: Path, boxes: Path, weights: Path, tmp_path: Path
) -> None:
    out, again = tmp_path / "clustered.json", tmp_path / "again.json"
    assert cluster(scenes, boxes, weights, out)["clusters"] == 7
    assert set(numbers(out)) == set(range(7))
    cluster(scenes, boxes, weights, again)
    assert again.read_bytes() == out.read_bytes()
    for one, other in zip(read_proposals(out, scenes / "images"), read_proposals(boxes, scenes / "images")):
        np.testing.assert_array_equal(one.boxes, other.boxes)
    about = json.loads(out.read_text())["info"]["clusters"]
    assert (about["count"], about["backbone"], len(about["backbone_hash"])) == (7, "test_resnet", 16)


def test_a_finished_file_gets_its_clusters_once(
    scenes: Path, boxes: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "boxes.json"
    given = {"images": str(scenes / "images"), "out": str(out), "resume": True}
    proposals(**given)
    given |= {"clusters": 4, "backbone_weights": str(weights)}
    proposals(**given)
    before = out.read_bytes()
    assert set(numbers(out)) == set(range(4))
    proposals(**given)
    assert out.read_bytes() == before
    assert "has its 4 clusters already" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"has clusters already, of count 4, not 5.*Write others to a new file"):
        proposals(**{**given, "clusters": 5})


def test_what_does_not_fit_is_refused_in_one_line(
    scenes: Path, boxes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["proposals", "--images", str(scenes / "images"), "--out", str(tmp_path / "no.json")]
    for more, expected in {
        ("--clusters", "8"): "--clusters needs a trained backbone",
        ("--clusters", "1", "--backbone-weights", str(weights)): "--clusters is 1, expected 2 or more",
        ("--backbone", "resnet18"): "are for --clusters",
        ("--clusters", "8", "--backbone", "resnet34", "--backbone-weights", str(weights)): "are a test_resnet",
    }.items():
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert [expected in line for line in error] == [True]
    with pytest.raises(UserError, match=r"boxes can't make 5000 clusters"):
        cluster(scenes, boxes, weights, tmp_path / "many.json", clusters=5000)


def test_a_transformer_learns_to_tell_the_clusters_apart(
    scenes: Path, boxes: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    forward = AlignDet.forward

    def look(self: AlignDet, batch: Any) -> Any:
        seen.extend(sample.labels for sample in batch.online if sample.path)  # not the trial's noise
        return forward(self, batch)

    monkeypatch.setattr(AlignDet, "forward", look)
    monkeypatch.setattr("selfdet.verbs.pretrain_detector.plot_training", lambda rows, folder: [])
    monkeypatch.setattr("selfdet.verbs.pretrain.report_at_the_end", lambda *given: None)
    run = {"detector": "detr", "stages": ["detector"], "boxes": str(boxes), "backbone_weights": str(weights)}
    run |= {"steps": 1, "batch_size": 2, "fpn_channels": None, "head_convs": None}
    run |= {"detector_stage": DetectorStageSettings(clusters=5)}
    answer = tiny_aligndet(scenes, tmp_path / "run", **run)
    assert answer["finished"]
    made = tmp_path / "run" / "proposals.json"
    assert set(numbers(made)) == set(range(5))
    labels = set(torch.cat(seen).tolist())
    assert labels <= set(range(5))
    assert len(labels) > 1
    detector, note = load_detector(str(tmp_path / "run"))
    assert detector.num_classes == 5
    assert note["classes"] == [f"object of cluster {number}" for number in range(1, 6)]
    # The clusters of a file are taken as they are, unless others are asked for.
    assert [cluster_count(str(tmp_path / "new"), made, "detr", asked, 750) for asked in (None, 5, 9)] == [5, 5, 9]
    assert cluster_count(str(tmp_path / "new"), boxes, "detr", None, 750) == 75


def test_detectors_that_do_not_classify_refuse_clusters(scenes: Path, boxes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--detector-stage\.clusters 5: fcos does not classify in pre-training"):
        tiny_aligndet(
            scenes, tmp_path / "run", boxes=str(boxes), detector_stage=DetectorStageSettings(clusters=5), steps=1
        )
