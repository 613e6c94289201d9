"""A run's page tells somebody who was not there what was done, whatever is missing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from selfdet.data.masks import encode_masks
from selfdet.drawing.run_pictures import Example, Examples
from selfdet.drawing.run_report import write_run_report
from selfdet.drawing.run_stages import read_run
from selfdet.errors import UserError

EVIL = "<script>alert('x')</script>"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
DEVICE = "cpu, fp32, 1 thread, torch 2.14.1"
SCORES = {"AP50": 0.5, "AP75": None, "APs": None, "APm": 0.1, "APl": 0.2, "images": 5, "detections": 9}
FINETUNE: dict[str, Any] = {
    "verb": "finetune",
    "init": "runs/pre",
    "data": f"labels/{EVIL}.json",
    "detector": "fcos",
    "backbone": "resnet18",
    "classes": [EVIL, "dog"],
    "fraction": {"image_ids": 100, "fraction": 0.1},
    "steps": 20,
    "lr": 0.01,
}


def write(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]] | None = None, log: str = "") -> Path:
    """A run's folder as training leaves it, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or []))
    (folder / "timing.jsonl").write_text(
        "".join(
            json.dumps({"step": row["step"], "seconds": row["step"], "images_per_second": 9, "data_wait": 0.5}) + "\n"
            for row in rows or []
        )
    )
    if log:
        (folder / "log.txt").write_text(log)
    return folder


def finetuned(folder: Path) -> Path:
    rows = [{"step": step, "loss": 3 - step / 10, "lr": 0.01} for step in range(1, 21)]
    scores = [{"step": step, "AP": step / 50, "per_class": {EVIL: 0.3, "dog": None}, **SCORES} for step in (0, 10, 20)]
    log = f"fcos on resnet18 from {EVIL}; {DEVICE}\nlearning rate: 0.01 (given)\nabout 3 s\nstep 1/20\n"
    return write(folder, FINETUNE, [*rows, *scores], log)


def examples(side: int = 64) -> Examples:
    image = torch.randint(0, 255, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[4.0, 4, 40, 50], [10, 10, 30, 30]])
    truth = {"boxes": boxes, "labels": torch.tensor([0, 1])}
    found = {**truth, "scores": torch.tensor([0.9, 0.1])}
    return Examples("Held-out images.", [EVIL, "dog"], [Example(f"{EVIL}.jpg", image, truth, found)] * 6)


def page(run: Path, **pieces: Any) -> str:
    return write_run_report(read_run(run), **{"usual": {}, **pieces}).read_text("utf-8")


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html[html.index("<body>") :]).split())


def test_a_finetuned_run_shows_its_figures_its_curves_and_what_it_finds(tmp_path: Path) -> None:
    run = finetuned(tmp_path / "run")
    (run / "detector.safetensors").write_bytes(b"")
    usual = {"finetune": {"lr": None, "steps": 5}}
    text = text_of(html := page(run, examples=examples(), usual=usual))
    assert "AP 40.0\xa0%" in html.replace("</dt><dd>", " ")
    for said in ("selfdet finetune: FCOS on resnet18", "100 labelled images, 10 % of those", "lr 0.01 given"):
        assert said in text
    for said in ("steps 20 usually 5", "found: 1 object", "labels: 2 objects", DEVICE, "still rising", "--workers"):
        assert said in text
    assert "not finished" not in text
    assert html.count('class="chart"') == 3


def test_the_figures_of_masks_stand_below_those_of_boxes_and_masks_are_drawn(tmp_path: Path) -> None:
    run = finetuned(tmp_path / "run")
    last = {"step": 20, "AP": 0.4, "per_class": {"cat": 0.5, "dog": 0.3}, **SCORES}
    masks = {
        **{name: value for name, value in last.items() if name not in ("step", "images", "detections")},
        "AP": 0.21,
    }
    (run / "metrics.jsonl").write_text(json.dumps({**last, "mask": {**masks, "per_class": {"cat": 0.2, "dog": None}}}))
    plain, masked = examples(), examples()
    for example in masked.images:
        filled = torch.zeros(2, 64, 64, dtype=torch.bool)
        filled[:, 20:40, 10:30] = True
        example.found["masks"] = encode_masks(filled)  # type: ignore[index]
    text = text_of(page(run, examples=masked))
    assert "AP of masks went from 21.0 % to 21.0 %." in text
    for said in ("AP of masks 21.0", "of AP AP50", "boxes 40 50", "masks 21 50", "cat 50 20", "dog 30 –"):
        assert said in text
    assert page(run, examples=masked) != page(run, examples=plain)


def test_markup_in_class_and_file_names_is_shown_not_run(tmp_path: Path) -> None:
    html = page(finetuned(tmp_path / EVIL.replace("/", "")), examples=examples())
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 10


def test_the_page_stays_small(tmp_path: Path) -> None:
    """Noise is what compresses worst."""
    run = finetuned(tmp_path / "run")
    (run / "pictures").mkdir()
    Image.effect_noise((4000, 3000), 90).convert("RGB").save(run / "pictures" / "first_views.jpg")
    assert len(page(run, examples=examples(2000))) < 5_000_000


def test_an_unfinished_run_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    text = text_of(page(finetuned(tmp_path / "run")))
    assert "This run is not finished. Training stands at step 20 of 20" in text
    assert "--resume" in text


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_run_of_which_only_the_settings_are_left_has_a_page(tmp_path: Path, verb: str) -> None:
    text = text_of(page(write(tmp_path, {"verb": verb, "stages": ["backbone"], "steps": 3})))
    assert "stands at step 0 of 3" in text


def test_each_stage_of_a_run_has_its_part(tmp_path: Path) -> None:
    about = {"verb": "pretrain", "stages": ["proposals", "backbone", "detector"], "images": "photos", "images_found": 9}
    log = f"densecl on 9 images of photos; {DEVICE}\nqueue length: 256 (9 images are few)\nstep 1/2\n"
    run = write(tmp_path, {**about, "boxes": None, "seed": 0, "backbone": "resnet18", "detector": "retinanet"}, log=log)
    own = {"method": "densecl", "steps": 2, "queue_length": 256, "method_options": {"queue_length": 256}}
    rows = [{"step": 2, "loss": 5.0, "global": 5.0, "lr": 0.1}]
    write(run / "stages" / "backbone", {**about, **own}, rows)
    (run / "backbone.safetensors").write_bytes(b"")
    text = text_of(page(run, usual={"backbone": {"queue_length": None}}))
    assert "selfdet pretrain: RetinaNet on resnet18" in text
    assert "boxes that may hold objects, the backbone and neck and head" in text
    assert "The backbone: DenseCL" in text
    assert "The global loss is 5.00; pure chance is" in text
    assert "256 9 images are few" in text
    assert "The detector stage has not begun" in text
    with pytest.raises(UserError, match="one stage of a run"):
        read_run(run / "stages" / "backbone")


def test_figures_of_another_version_do_not_keep_the_page_from_being_written(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0, "match_accuracy": 0.1, "feature_std": 0.5}]
    config = {"verb": "pretrain", "stages": ["backbone"], "method": "moco", "steps": 1, "method_options": {}}
    assert "another version" in text_of(page(write(tmp_path, config, rows)))


def test_broken_pictures_and_cut_off_files_are_left_out(tmp_path: Path) -> None:
    run = finetuned(tmp_path / "run")
    (run / "pictures").mkdir()
    (run / "pictures" / "first_views.jpg").write_bytes(b"no picture")
    for name in ("metrics.jsonl", "timing.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 21, "lo')
    assert "first images" not in page(run)


def test_boxes_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    config = {"verb": "pretrain", "stages": ["detector"], "method": "aligndet", "steps": 1, "boxes": "gone.json"}
    assert "gone.json, can no longer be shown" in text_of(page(write(tmp_path, config)))


def test_the_same_page_again_is_left_as_it_is(tmp_path: Path) -> None:
    run = finetuned(tmp_path / "run")
    page(run, examples=examples())
    before = (run / "report.html").stat().st_mtime_ns
    page(run, examples=examples())
    assert (run / "report.html").stat().st_mtime_ns == before


def shot(folder: Path, html: Path, *flags: str) -> Image.Image:
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
        *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000", f"--screenshot={folder / 'shot.png'}"),
        *(*flags, f"file://{html}"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    return Image.open(folder / "shot.png").convert("RGB")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")
def test_a_browser_shows_it_light_and_dark_and_as_narrow_as_a_phone(tmp_path: Path) -> None:
    run = finetuned(tmp_path / "run")
    (run / "pictures").mkdir()
    Image.new("RGB", (1500, 900), "red").save(run / "pictures" / "first_views.jpg")
    html = page(run, examples=examples())
    light = shot(tmp_path, run / "report.html", "--window-size=1000,800")
    assert min(light.getpixel((3, 3))) > 200  # type: ignore[type-var]
    dark = shot(tmp_path, run / "report.html", "--window-size=1000,800", "--blink-settings=preferredColorScheme=0")
    assert max(dark.getpixel((3, 3))) < 60  # type: ignore[type-var]
    # A window has a least width, a frame in it has none: what is wider than 360 px paints the ground blue.
    data = base64.b64encode(html.encode()).decode()
    (tmp_path / "frame.html").write_text(
        "<iframe id=f style='width:360px;height:900px;border:0'></iframe><script>"
        "f.onload = () => { if (f.contentDocument.documentElement.scrollWidth > 360)"
        " document.body.style.background = 'blue' };"
        f"f.srcdoc = new TextDecoder().decode(Uint8Array.from(atob('{data}'), c => c.charCodeAt(0)));</script>"
    )
    phone = shot(tmp_path, tmp_path / "frame.html", "--window-size=600,950")
    assert phone.getpixel((590, 940)) == (255, 255, 255)
