"""A report is one file that shows everything, loads nothing and runs nothing."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from selfdet.drawing.report import Code, Picture, Points, Section, Table, Text, write_report
from selfdet.errors import UserError

EVIL = "<script>alert('x')</script>\"&'<img src=http://evil.example/x onerror=y>"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


class Page(HTMLParser):
    """What a page would load and show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def png(size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 1 if mode in "1LP" else None).save(file, "PNG")
    return file.getvalue()


def everything(out: Path, words: str = "words") -> Path:
    picture = out.parent / "chart.png"
    picture.write_bytes(png())
    return write_report(
        out,
        title=words,
        intro=f"{words}\n\n{words}",
        facts={words: words, "AP": 0.25},
        sections=[
            Section(
                words,
                [
                    Text(words),
                    Points([words]),
                    Code(words),
                    Table([words, "AP"], [[words, 1.5], [words, None]], words),
                    Picture(picture, words, words),
                    Picture(Image.new("RGB", (2000, 900), (200, 30, 30)), words, words, photograph=True),
                ],
            ),
            Section("empty"),
        ],
    )


def images(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_text_tables_and_pictures_are_all_there(tmp_path: Path) -> None:
    html = everything(tmp_path / "report.html").read_text("utf-8")
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert page.tags.count("h1") == 1
    assert page.tags.count("h2") == 2
    assert page.tags.count("li") == 1
    assert page.tags.count("tr") == 3
    assert [picture.size for picture in images(html)] == [(40, 30), (2000, 900)]
    assert [picture.format for picture in images(html)] == ["PNG", "JPEG"]
    assert ("width", "2000") in page.attributes
    assert "0.25" in page.text
    assert "–" in page.text


def test_markup_in_names_and_paths_is_shown_not_run(tmp_path: Path) -> None:
    html = everything(tmp_path / "report.html", EVIL).read_text("utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert page.tags.count("img") == 2
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count(EVIL) == 16
    assert ("alt", EVIL) in page.attributes


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    html = everything(tmp_path / "report.html", EVIL).read_text("utf-8")
    page = Page(html)
    assert page.loads
    assert all(address.startswith("data:") for address in page.loads)
    styles = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in styles
    assert "@import" not in styles
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


def test_the_page_follows_the_readers_light_or_dark_setting_and_prints(tmp_path: Path) -> None:
    html = everything(tmp_path / "report.html").read_text("utf-8")
    for expected in ("prefers-color-scheme: dark", "@media print", 'name="viewport"', "overflow-x: auto"):
        assert expected in html


def test_a_failure_leaves_the_report_of_before(tmp_path: Path) -> None:
    out = write_report(tmp_path / "report.html", title="before")
    (tmp_path / "broken.png").write_bytes(png()[:40])
    for picture in (tmp_path / "missing.png", tmp_path / "broken.png", b"no picture"):
        with pytest.raises(UserError, match="not a picture that can be read"):
            write_report(out, title="after", sections=[Section("s", [Picture(picture)])])
    assert "before" in out.read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "report.html"]


def test_a_png_file_goes_in_as_it_is(tmp_path: Path) -> None:
    html = write_report(tmp_path / "r.html", title="t", sections=[Section("s", [Picture(png())])]).read_text("utf-8")
    assert base64.b64encode(png()).decode() in html


def test_photographs_are_upright_small_and_without_metadata(tmp_path: Path) -> None:
    """A phone's photograph carries its orientation, and where it was taken."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    exif[0x010F] = "maker"
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.jpg", exif=exif)
    html = write_report(
        tmp_path / "r.html", title="t", sections=[Section("s", [Picture(tmp_path / "photo.jpg", photograph=True)])]
    ).read_text("utf-8")
    (picture,) = images(html)
    assert picture.size == (40, 60)
    assert not picture.getexif()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("photograph", [False, True])
def test_pictures_of_any_mode_are_taken(tmp_path: Path, mode: str, photograph: bool) -> None:
    picture = Picture(Image.new(mode, (20, 10)), photograph=photograph)
    html = write_report(tmp_path / "r.html", title="t", sections=[Section("s", [picture])]).read_text("utf-8")
    assert images(html)[0].size == (20, 10)


def test_transparent_photographs_lie_on_white(tmp_path: Path) -> None:
    picture = Picture(Image.new("RGBA", (20, 10), (0, 0, 0, 0)), photograph=True)
    html = write_report(tmp_path / "r.html", title="t", sections=[Section("s", [picture])]).read_text("utf-8")
    assert min(images(html)[0].getpixel((5, 5))) > 250


def test_figures_of_a_column_share_their_digits_and_stand_right(tmp_path: Path) -> None:
    table = Table(
        ["start", "AP", "steps", "p"], [["a", 11.0, 600, 1e-9], ["b", 9.25, 60, 0.5], ["c", None, None, None]]
    )
    html = write_report(tmp_path / "r.html", title="t", sections=[Section("s", [table])]).read_text("utf-8")
    assert re.findall(r'<td class="figure">([^<]*)', html) == ["11.00", "600", "1e-09", "9.25", "60", "0.5", *"–––"]
    assert html.count('<th scope="col" class="figure">') == 3
    with pytest.raises(ValueError, match="a row of 1 cells under a header of 2"):
        write_report(tmp_path / "r.html", title="t", sections=[Section("s", [Table(["a", "b"], [["x"]])])])


def test_a_table_without_rows_and_a_report_without_anything_are_fine(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", title="t", sections=[Section("s", [Table(["a"], [])])]).read_text())
    assert page.tags.count("th") == 1


def test_file_names_that_are_no_text_are_shown_as_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"photo_\xff.jpg")
    html = write_report(tmp_path / "r.html", title=name, sections=[Section("s", [Text(name)])]).read_text("utf-8")
    assert html.count("photo_\\udcff.jpg") == 3


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_no_width_of_window_makes_the_page_scroll_sideways(tmp_path: Path, width: int) -> None:
    """Wide tables, code and pictures scroll or shrink within their own boxes."""
    header = [f"a long heading {i}" for i in range(14)]
    wide = Section(
        "wide",
        [
            Table(header, [["value" * 4] * 14]),
            Code("selfdet " * 60),
            Text("x" * 900),
            Picture(Image.new("RGB", (3000, 200), (10, 200, 10)), "c" * 300, photograph=True),
            Picture(png((1800, 700)), "chart"),
        ],
    )
    html = write_report(tmp_path / "r.html", title="t" * 200, facts={"f" * 99: "v" * 99}, sections=[wide]).read_text()
    # A browser's window has a least width, a frame in it has none.
    frame = (
        f"<iframe id=f style='width:{width}px;height:900px;border:0'></iframe><script>"
        "f.onload = () => { document.title = 'inner width ' + f.contentDocument.documentElement.scrollWidth };"
        f"f.srcdoc = new TextDecoder().decode(Uint8Array.from(atob('{base64.b64encode(html.encode()).decode()}'),"
        "c => c.charCodeAt(0)));</script>"
    )
    (tmp_path / "frame.html").write_text(frame)
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--window-size=1400,1000"),
        *("--dump-dom", f"file://{tmp_path / 'frame.html'}"),
    ]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"inner width (\d+)", shown)
    assert found
    assert int(found[1]) <= width


def test_a_sentence_that_begins_with_a_number_is_no_figure_and_may_break(tmp_path: Path) -> None:
    sentence = "+5.7 AP with 20 images, range +4.5…+6.8, n = 2"
    table = Table(["figure", "words"], [["+5.7 (+4.5…+6.8)", sentence]])
    html = write_report(tmp_path / "r.html", title="t", sections=[Section("s", [table])]).read_text()
    assert '<td class="figure">+5.7 (+4.5…+6.8)</td>' in html
    assert f"<td>{sentence}</td>" in html
