"""The combinations of docs/matrix.md: each goes all the way, and the page is what the record says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.matrix import ROWS, Row, whole_way
from tests.test_documents import module

from selfdet.detectors.zoo import DETECTORS
from selfdet.models.backbones import build_backbone

ROOT = Path(__file__).parent.parent
SCRIPT = module(ROOT / "docs/make_matrix.py")


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_combination_goes_all_the_way(row: Row, tmp_path: Path) -> None:
    line = whole_way(row, tmp_path)
    kept = [known for known in SCRIPT.record() if SCRIPT.same(known, row)]
    assert all(known[name] == json.loads(json.dumps(value)) for known in kept for name, value in line.items())


def test_every_detector_and_each_kind_of_it_with_each_kind_of_backbone_has_a_row() -> None:
    assert {row.detector for row in ROWS} == set(DETECTORS)
    kinds = {(SCRIPT.kind(row.backbone), SCRIPT.kind_of_detector(row.detector)) for row in ROWS}
    assert len(kinds) == len({one for one, _ in kinds}) * len({other for _, other in kinds}) == 24
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_page_of_the_matrix_is_what_the_record_says() -> None:
    text = SCRIPT.page(SCRIPT.record())
    assert SCRIPT.PAGE.read_text("utf-8") == text, "run `python docs/make_matrix.py`"
    for known in SCRIPT.record():
        assert f"| {known['backbone']} " in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["swin_large_patch4_window7_224", "convnext_base", "tf_efficientnet_lite4", "resnet152"]
)
def test_what_is_too_large_for_a_row_is_built(name: str) -> None:
    with torch.device("meta"):
        assert build_backbone(name).strides == [4, 8, 16, 32]
