"""What many tests share: a few generated scenes, one pre-training run and one fine-tuning run."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdet.data.synthetic import make_scenes
from tiny_runs import tiny_finetune, tiny_pretrain


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.json` (10 scenes of 96 px), `val.json` (5) and `images/`; not to be changed."""
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, count=10, size=96)
    make_scenes(folder, count=5, size=96, split="val")
    return folder


@pytest.fixture(scope="session")
def pretrained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training run; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    tiny_pretrain(scenes, out)
    return out


@pytest.fixture(scope="session")
def finetuned(scenes: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fine-tuning run from it, evaluated on `val.json`; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "finetuned"
    tiny_finetune(scenes, out, init=str(pretrained), val_data=str(scenes / "val.json"), evaluate_every=2)
    return out
