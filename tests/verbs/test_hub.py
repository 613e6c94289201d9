"""`selfdet push` and `pull`: weights as the hub has them, here in a folder; nothing is overwritten unasked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.detectors.scenes import small_fcos

from selfdet import pull, push
from selfdet.errors import UserError
from selfdet.interchange.starts import (
    build_detector,
    detector_note,
    load_backbone,
    resolve_start,
    save_backbone,
    save_detector,
)
from selfdet.models.backbones import build_backbone


@pytest.fixture
def run(tmp_path: Path) -> str:
    detector = small_fcos(num_classes=2)
    note = detector_note(detector, ["cat", "a\n---\nlicense: mit"], [17, 18], 128)
    save_detector(tmp_path / "own.safetensors", detector, {**note, "method": "aligndet"})
    return str(tmp_path / "own.safetensors")


def test_what_is_pulled_is_a_start(tmp_path: Path, run: str) -> None:
    assert push(init=run, to=str(tmp_path / "hub"), licence="apache-2.0")["kind"] == "detector"
    assert sorted(os.listdir(tmp_path / "hub")) == ["README.md", "config.json", "model.safetensors"]
    answer = pull(init=str(tmp_path / "hub"), out=str(tmp_path / "model"))
    assert answer["files"] == ["README.md", "config.json", "model.safetensors"]
    start, own = resolve_start(str(tmp_path / "model")), resolve_start(run)
    assert start.note == own.note
    assert all(torch.equal(value, own.state[name]) for name, value in start.state.items())
    assert build_detector(start, 5, None, None, {})[1] is not None
    about = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (about["library_name"], about["detector"], about["backbone"]) == ("selfdet", "fcos", "resnet18")


def test_the_card_has_the_front_matter_of_the_hub(tmp_path: Path, run: str) -> None:
    push(init=run, to=str(tmp_path / "hub"), licence="apache-2.0")
    _, front, text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "apache-2.0",
        "library_name": "selfdet",
        "pipeline_tag": "object-detection",
        "tags": ["selfdet", "fcos", "resnet18"],
    }
    # A name from a stranger's label file is no front matter.
    assert '1. "a\\n---\\nlicense: mit"' in text
    assert '* method: "aligndet"' in text
    push(init=run, to=str(tmp_path / "other"))
    assert 'license: "unknown"' in (tmp_path / "other" / "README.md").read_text()


def test_a_backbone_goes_the_same_way(tmp_path: Path) -> None:
    save_backbone(tmp_path / "b.safetensors", build_backbone("resnet18"), {"method": "densecl"})
    push(init=str(tmp_path / "b.safetensors"), to=str(tmp_path / "hub"))
    pull(init=str(tmp_path / "hub"), out=str(tmp_path / "model"))
    _, report = load_backbone("resnet18", str(tmp_path / "model"))
    assert report is not None
    assert report.rows["backbone"].share == 1
    assert resolve_start(str(tmp_path / "model")).note["method"] == "densecl"


def test_nothing_is_overwritten_unasked(tmp_path: Path, run: str) -> None:
    push(init=run, to=str(tmp_path / "hub"))
    (tmp_path / "hub" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"has model\.safetensors, config\.json, README\.md already"):
        push(init=run, to=str(tmp_path / "hub"))
    assert (tmp_path / "hub" / "README.md").read_text() == "mine"
    push(init=run, to=str(tmp_path / "hub"), overwrite=True)
    assert (tmp_path / "hub" / "README.md").read_text() != "mine"
    with pytest.raises(UserError, match="is not empty"):
        pull(init=str(tmp_path / "hub"), out=str(tmp_path / "hub"))


@pytest.mark.parametrize("place", ["hf://", "hf://name", "hf://a/b/c", "hf:a/b", "hf://a/../b"])
def test_what_is_no_repository_is_refused(tmp_path: Path, run: str, place: str) -> None:
    with pytest.raises(UserError, match="is no repository of the hub"):
        push(init=run, to=place)
    with pytest.raises(UserError, match="is no repository of the hub"):
        pull(init=place, out=str(tmp_path / "model"))
    assert os.listdir(tmp_path) == ["own.safetensors"]


def test_what_holds_no_weights_is_refused_and_not_kept(tmp_path: Path, run: str) -> None:
    (tmp_path / "empty").mkdir()
    write = tmp_path / "other"
    write.mkdir()
    (write / "model.safetensors").write_bytes(b"PK not weights")
    for place, message in (
        ("empty", "has no model.safetensors"),
        ("other", "other/model.safetensors holds more than plain tensors"),
        ("no", "no such"),
    ):
        with pytest.raises(UserError, match=message):
            pull(init=str(tmp_path / place), out=str(tmp_path / "model"))
    assert sorted(os.listdir(tmp_path)) == ["empty", "other", "own.safetensors"]


def test_only_the_three_files_are_taken(tmp_path: Path, run: str) -> None:
    push(init=run, to=str(tmp_path / "hub"))
    (tmp_path / "hub" / "handler.py").write_text("raise SystemExit")
    pull(init=str(tmp_path / "hub"), out=str(tmp_path / "model"))
    assert sorted(os.listdir(tmp_path / "model")) == ["README.md", "config.json", "model.safetensors"]


def test_the_hub_is_asked_as_its_library_wants_it(tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    place, asked = tmp_path / "remote", []

    def upload(**given: Any) -> None:
        asked.append(("upload", given["repo_id"], given["revision"]))
        shutil.copytree(given["folder_path"], place)

    def download(name: str, *, revision: str | None, allow_patterns: list[str], local_dir: str) -> None:
        asked.append(("download", name, revision))
        for file in allow_patterns:
            shutil.copy(place / file, local_dir)

    monkeypatch.setattr(hub, "file_exists", lambda name, file, revision: (place / file).exists())
    monkeypatch.setattr(hub, "create_repo", lambda name, private, exist_ok: asked.append(("create", name, private)))
    monkeypatch.setattr(hub, "upload_folder", upload)
    monkeypatch.setattr(hub, "snapshot_download", download)
    push(init=run, to="hf://me/cats@v1")
    pull(init="hf://me/cats@v1", out=str(tmp_path / "model"))
    assert asked == [("create", "me/cats", True), ("upload", "me/cats", "v1"), ("download", "me/cats", "v1")]
    assert resolve_start(str(tmp_path / "model")).kind == "detector"
    with pytest.raises(UserError, match="already"):
        push(init=run, to="hf://me/cats")

    def offline(*given: Any, **more: Any) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="hf://me/cats: 'no network'"):
        pull(init="hf://me/cats", out=str(tmp_path / "again"))
