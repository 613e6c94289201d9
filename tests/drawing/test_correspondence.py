"""The page of matches answers to being pointed at, runs its own script only, and shows names as text."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.evaluation.patches import noise, pixels

from selfdet.data.geometry import Crop, view_affine
from selfdet.data.views import Recipe, ViewPair, render
from selfdet.drawing.correspondence import BESIDE, RIGHT, WRONG, Row, bends, draw_heat, draw_matches, match_kinds
from selfdet.drawing.correspondence_page import write_page
from selfdet.evaluation.correspondence import Matches, Pair, counts, match_pairs, mutual_nearest

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=y>"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


def shifted() -> Pair:
    """The second view lies one cell of four to the right."""
    image, size = noise(128, 128), 64
    crops = Crop(0, 0, size, size), Crop(0, 16, size, size)
    views = [render(image, Recipe(crop, False, (), False, 0.0), size) for crop in crops]
    return Pair(EVIL, ViewPair(views[0], views[1], *(view_affine(crop, False, size) for crop in crops)))


def page(folder: Path) -> Path:
    pair = shifted()
    found = match_pairs(pixels(), [pair])
    rows = [Row("untrained", found), Row(EVIL, found)]
    models = [{"name": row.name, "grid": 4, "counts": [counts(found, 0.9)]} for row in rows]
    figures = {"models": models, "pairs": 1, "image_size": 64, "without_overlap": []}
    pictures = {0.9: draw_matches([pair], rows, folder / "matches.png", 0.9)}
    heat = draw_heat(pair, rows, [5, 5], folder / "heat.png")
    return write_page(folder / "page.html", [pair], rows, figures, pictures, heat)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page(tmp_path_factory.mktemp("page"))


def test_right_beside_and_wrong_are_three_kinds() -> None:
    similarity = torch.tensor([[0.9, 0, 0, 0], [0, 0, 0, 0.8], [0, 0, 0.7, 0], [0, 0.6, 0, 0]])
    true, points = torch.tensor([0, 1, 1, -1]), torch.tensor([[5.0, 5.0], [15.0, 7.0], [15.0, 5.0], [99.0, 99.0]])
    found = Matches(similarity, *mutual_nearest(similarity), size=20, true=true, points=points)
    assert match_kinds(found) == [RIGHT, BESIDE, WRONG, WRONG]
    assert match_kinds(replace(found, true=None, points=None)) is None


def test_level_lines_of_one_row_are_bent_apart_within_their_row() -> None:
    similarity = torch.eye(16)
    found = Matches(similarity, *mutual_nearest(similarity), size=64)
    bent = bends(found, torch.arange(16) != 0)  # the first row draws three lines, the others four
    by_row = [[bent[place] for place in range(16) if int(found.query[place]) // 4 == row] for row in range(4)]
    assert by_row[0][0] == 0.0
    assert [len(set(row)) for row in by_row[1:]] == [4, 4, 4]
    assert max(map(abs, bent)) < 64 / 4 / 2


def test_names_with_markup_are_text_and_only_the_pages_own_script_may_run(written: Path) -> None:
    html = written.read_text("utf-8")
    assert html.count("<script") == 2
    assert "<script>document" not in html
    data = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert data
    told = json.loads(data[1])
    assert [model["name"] for model in told["models"]] == ["untrained", EVIL]
    assert len(base64.b64decode(told["models"][0]["pairs"][0]["similarity"])) == 16 * 16
    assert re.search(r"script-src &#39;sha256-[\w+/]+=&#39;\"", html)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")
@pytest.mark.parametrize("pointer", ["mouse", "touch", "keys"])
def test_a_cell_that_is_pointed_at_shows_its_matches(written: Path, tmp_path: Path, pointer: str) -> None:
    # The cell in the second row and column shows what the other view has in the second row, first column.
    act = {
        "mouse": "at('pointermove', 'mouse');",
        "touch": "at('pointerdown', 'touch');",
        "keys": "for (const key of ['Enter', 'ArrowUp', 'ArrowUp', 'ArrowLeft'])"
        " svg.dispatchEvent(new inner.KeyboardEvent('keydown', {key, cancelable: true}));",
    }[pointer]
    html = base64.b64encode(written.read_bytes()).decode()
    frame = f"""<iframe id=f style='width:390px;height:900px;border:0'></iframe><script>
        f.onload = () => {{
          const inner = f.contentWindow, svg = inner.document.querySelector('.correspondence svg');
          const before = svg.querySelectorAll('.match').length, box = svg.getBoundingClientRect();
          const at = (name, pointerType) => svg.dispatchEvent(new inner.PointerEvent(name, {{
            pointerType, clientX: box.left + box.width * 1.5 / 8.2, clientY: box.top + box.height * 1.5 / 4 }}));
          {act}
          document.title = ['shows', before, svg.querySelectorAll('.heat').length,
            svg.querySelectorAll('.truth').length, inner.document.documentElement.scrollWidth, inner.document.title,
            inner.document.querySelector('.correspondence p').textContent].join('|');
        }};
        f.srcdoc = new TextDecoder().decode(Uint8Array.from(atob('{html}'), c => c.charCodeAt(0)));</script>"""
    (tmp_path / "frame.html").write_text(frame)
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--window-size=1400,1000"),
        *("--dump-dom", f"file://{tmp_path / 'frame.html'}"),
    ]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"<title>shows\|(.*?)</title>", shown)
    assert found, shown[:2000]
    lines, heat, rings, width, title, words = found[1].split("|")
    assert (lines, heat, rings) == ("12", "16", "1")
    assert int(width) <= 390
    assert title == "What is taken for the same place"
    assert words.startswith(
        "From row 2, column 2: most similar is row 2, column 1 (1.00); mutual nearest is row 2, col"
    )
    assert words.endswith("right; the ring is the same point.")
