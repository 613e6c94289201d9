"""Each DETR from boxes without labels to detections in transformers' own code, on generated scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.detectors.detr_scenes import KEYS

from selfdet import cli
from selfdet.interchange.companions import detect
from selfdet.interchange.starts import load_detector
from selfdet.verbs.evaluate import evaluate
from selfdet.verbs.pretrain_detector import DetectorStageSettings
from tiny_runs import WIDTHS, tiny_aligndet, tiny_finetune


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_a_detr_goes_through_every_verb(scenes: Path, tmp_path: Path, key: str) -> None:
    none = dict.fromkeys(WIDTHS)
    clusters = DetectorStageSettings(clusters=3)
    tiny_aligndet(scenes, tmp_path / "pre", detector=key, steps=2, batch_size=2, detector_stage=clusters, **none)
    detector, note = load_detector(str(tmp_path / "pre"))
    assert detector.num_classes == len(note["classes"]) == 3
    answer = tiny_finetune(scenes, tmp_path / "ft", init=str(tmp_path / "pre"), steps=2, batch_size=2, **none)
    assert answer["finished"]
    classes = json.loads((scenes / "train.json").read_text())["categories"]
    detector, note = load_detector(str(tmp_path / "ft"))
    assert detector.num_classes == len(classes)  # whatever the number of pseudo classes was
    scores = evaluate(init=str(tmp_path / "ft"), data=str(scenes / "val.json"), threads=1)
    assert 0 <= scores["AP"] <= 1
    image = sorted((scenes / "images").iterdir())[0]
    words = ["predict", "--init", str(tmp_path / "ft"), "--images", str(image), "--out", str(tmp_path / "found")]
    assert cli.main([*words, "--precision", "fp32"]) == 0
    out = tmp_path / "exported"
    assert cli.main(["export", "--init", str(tmp_path / "ft"), "--to", "transformers", "--out", str(out)]) == 0
    net, processor, settings = detect.load(out)
    assert list(net.config.id2label.values()) == note["classes"] == settings["classes"]
    found = detect.find(detect.read(image), net, processor, settings)
    rows = json.loads((tmp_path / "found" / "results.json").read_text())
    assert len(found["scores"]) == len(rows)
    assert found["scores"][:3].tolist() == pytest.approx([row["score"] for row in rows[:3]], abs=1e-4)
