"""Where weights come from goes along with them, from file to file and onto the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.interchange.foreign_files import moco

from selfdet import import_weights
from selfdet.errors import UserError
from selfdet.interchange.cards import card
from selfdet.interchange.history import HISTORY, history_from, history_of, pretrained
from selfdet.interchange.outgoing import Written
from selfdet.interchange.starts import NOTE, Start, resolve_start, save_backbone
from selfdet.interchange.targets import open_outgoing
from selfdet.interchange.weights import write_safetensors
from selfdet.models.backbones import build_backbone

ABOUT = {"images": "/home/somebody/photos", "images_found": 8, "images_hash": "53df"}


def test_what_was_done_before_comes_first_and_the_card_says_all_of_it(tmp_path: Path) -> None:
    torch.save(moco(), tmp_path / "moco.pth")
    import_weights(file=str(tmp_path / "moco.pth"), out=str(tmp_path / "moco.safetensors"))
    before = history_from(str(tmp_path / "moco.safetensors"), "resnet18")
    assert [step["done"] for step in before] == ["import-weights"]
    assert before[0]["file"] == "moco.pth"
    note = {HISTORY: [*before, pretrained("densecl", ABOUT, 20, 3)]}
    save_backbone(tmp_path / "b.safetensors", build_backbone("resnet18"), note)
    again = resolve_start(str(tmp_path / "b.safetensors"))
    assert history_of(again) == note[HISTORY]
    text = card(open_outgoing(str(tmp_path / "b.safetensors")), "timm", Written({}, "nothing"), None)
    assert "1. import-weights: file moco.pth, format moco, pixels rgb, sha256 " in text
    assert "2. pretrain with densecl: images 8, of photos, images_hash 53df, steps 20, seed 3" in text
    assert "somebody" not in text


def test_starts_without_a_file_of_selfdet_are_told_too() -> None:
    assert history_from(None, "resnet18") == history_from("scratch", "resnet18") == []
    assert history_from("library", "resnet18") == [{"done": "a library's weights", "network": "resnet18"}]
    assert history_of(Start("backbone", "far/away/theirs.pth")) == [{"done": "a file's weights", "file": "theirs.pth"}]


@pytest.mark.parametrize("told", ["x", [1], [{}], [{"done": 1}], [{"done": "x", "y": [1]}], [{"done": "a\nb"}]])
def test_a_history_of_another_kind_is_refused(tmp_path: Path, told: object) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {"w": torch.ones(1)}, {NOTE: json.dumps({"backbone": "resnet18", HISTORY: told})})
    with pytest.raises(UserError, match="says of itself history"):
        resolve_start(str(file))
