"""The page of a check: counts, every finding with its file, and pictures of the worst."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from selfdet.data.box_faults import BOX_FAULTS, BoxFault
from selfdet.data.findings import Findings
from selfdet.data.images import UnreadableImage, read_image
from selfdet.data.inspection import IMAGE_FAULTS
from selfdet.drawing.boxes import draw_boxes, grid
from selfdet.drawing.check_words import advice, headline, name
from selfdet.drawing.report import Picture, Points, Section, Table, Text, write_report

ROWS = 100  # of a fault that are listed; `--json` has all
EACH = 3  # images of a fault that are shown
WORST = 8  # images that are shown for their boxes
PAIRS = 6  # groups of duplicates that are shown
CELL = 360  # pixels, of each picture


def write_check_report(out: Path, findings: Findings) -> Path:
    """Write one HTML file about what a check found; returns `out`."""
    counts = findings.counts
    facts = {"images": f"{counts['images']:,}"}
    if "boxes" in counts:
        facts["boxes"] = f"{counts['boxes']:,}"
        facts["faulty boxes"] = f"{len(findings.boxes):,}"
    facts["can't be trained on"] = f"{counts['left_out']:,}"
    facts["duplicates"] = f"{counts['image_faults']['duplicate']:,}"
    return write_report(
        out,
        title="selfdet check",
        intro=f"{headline(counts)}.",
        facts=facts,
        sections=[
            Section("What to do", [Points(list(advice(counts)) or ["Nothing."])]),
            *_images(findings),
            *_boxes(findings),
            *_sizes(findings),
        ],
    )


def _images(findings: Findings) -> Iterator[Section]:
    for fault, found in findings.images.items():
        if not found:
            continue
        items: list[Text | Table | Picture] = [Text(_sentence(IMAGE_FAULTS[fault]))]
        shown = _pairs(findings.groups) if fault == "duplicate" else _sheet([file for file, _ in found])
        if shown is not None:
            items.append(Picture(shown, alt=f"Images: {name(fault)}", photograph=True, wide=True))
        items.append(Table(["file", "detail"], found[:ROWS], _left_over(len(found))))
        yield Section(f"Images: {name(fault)} ({len(found):,})", items)


def _boxes(findings: Findings) -> Iterator[Section]:
    if not findings.boxes:
        return
    worst: dict[str, list[BoxFault]] = defaultdict(list)
    for each in findings.boxes:
        worst[each.file].append(each)
    files = sorted((file for file in worst if file), key=lambda file: -len(worst[file]))[:WORST]
    kinds = list(BOX_FAULTS)
    pictures, titles = [], []
    for file in files:
        drawn = [each for each in worst[file] if each.box is not None]
        boxes = [
            [each.box[0], each.box[1], each.box[0] + each.box[2], each.box[1] + each.box[3]]
            for each in drawn
            if each.box
        ]
        labels = [kinds.index(each.fault) for each in drawn]
        picture = _drawn(file, boxes, labels, [name(kind) for kind in kinds], findings.told.get(file))
        if picture is not None:
            pictures.append(picture)
            titles.append(f"{len(worst[file])}: {Path(file).name}")
    items: list[Text | Table | Picture] = []
    if pictures:
        sheet = grid(pictures, titles=titles, cell=CELL)
        items.append(Picture(sheet, "The images with most faulty boxes.", photograph=True, wide=True))
    for kind, meaning in BOX_FAULTS.items():
        rows = [[each.file, str(each.annotation), each.detail] for each in findings.boxes if each.fault == kind]
        if rows:
            items.append(Text(f"{name(kind)}: {meaning}."))
            items.append(Table(["file", "annotation", "detail"], rows[:ROWS], _left_over(len(rows))))
    yield Section(f"Boxes ({len(findings.boxes):,})", items)


def _sizes(findings: Findings) -> Iterator[Section]:
    counts = findings.counts
    if "classes" not in counts:
        return
    classes = Table(["class", "boxes"], [[kind, number] for kind, number in counts["classes"].items()])
    found = counts["levels"]
    rows = []
    for level in found["levels"]:
        sizes = f"{level['from']:.0f} to {level['to']:.0f}" if level["to"] else f"{level['from']:.0f} and more"
        rows.append([level["stride"], sizes, f"{level['boxes']:,}"])
    title = f"Boxes in images of {found['image_size']} px, by the level of {found['detector']} that learns their size"
    yield Section("Classes and sizes", [classes, Table(["stride", "size, px", "boxes"], rows, title)])


def _pairs(groups: Sequence[Sequence[str]]) -> Image.Image | None:
    pictures, titles = [], []
    for group in groups[:PAIRS]:
        both = [_drawn(file) for file in group[:2]]
        for file, picture in zip(group, both):
            if picture is not None:
                pictures.append(picture)
                titles.append(Path(file).name)
    return grid(pictures, 4, titles, CELL) if pictures else None


def _sheet(files: Sequence[str]) -> Image.Image | None:
    pictures = [(picture, Path(file).name) for file in files[:EACH] if (picture := _drawn(file)) is not None]
    return grid([picture for picture, _ in pictures], 3, [title for _, title in pictures], CELL) if pictures else None


def _drawn(
    file: str,
    boxes: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
    names: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> Image.Image | None:
    """The image, of the (width, height) that its labels go by, with boxes; None where it can't be read."""
    try:
        return draw_boxes(read_image(file, size), list(boxes), labels=list(labels), names=names, long_side=CELL)
    except (UnreadableImage, MemoryError):
        return None


def _left_over(number: int) -> str:
    return f"The first {ROWS} of {number:,}; --json has all." if number > ROWS else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
