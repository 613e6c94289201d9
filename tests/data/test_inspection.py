"""Looking at one image names what is odd about it, and agrees with what training reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.odd_images import pattern, write_odd

from selfdet.data.images import UnreadableImage, read_image
from selfdet.data.inspection import Inspection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("odd")
    write_odd(folder)
    return folder


def test_every_fault_of_a_file_is_found_and_nothing_else(folder: Path) -> None:
    for fault, name in write_odd(folder).items():
        look = Inspection(0, folder / name).run()
        assert set(look.faults) == {fault} - {"duplicate"}, name
    for name in ("sound.jpg", "one_pixel.png"):
        assert Inspection(0, folder / name).run().faults == {}
    assert set(Inspection(0, folder / "nowhere.jpg").run().faults) == {"missing"}
    assert set(Inspection(0, folder).run().faults) == {"unreadable"}


def test_usable_is_what_training_can_read(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        look = Inspection(0, path).run()
        try:
            image = read_image(path)
        except UnreadableImage:
            assert not look.usable, path
        else:
            assert look.usable, path
            assert (look.height, look.width) == tuple(image.shape[-2:])


def test_a_size_that_the_labels_contradict_is_unreadable_unless_the_picture_was_turned(folder: Path) -> None:
    wrong = Inspection(0, folder / "sound.jpg", (48, 48)).run()
    assert wrong.faults == {"unreadable": "64×48 pixels where its labels say 48×48"}
    assert not wrong.usable
    for size in ((64, 48), (48, 64)):
        turned = Inspection(0, folder / "rotated.jpg", size).run()
        assert turned.usable
        assert (turned.width, turned.height) == size
        assert set(turned.faults) == {"rotated"}


def test_too_many_pixels_are_refused_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern(0, 200, 200).save(tmp_path / "a.png")
    monkeypatch.setattr("selfdet.data.inspection.MAX_PIXELS", 30_000)
    monkeypatch.setattr("selfdet.data.inspection.LARGE", 20_000)
    look = Inspection(0, tmp_path / "a.png").run()
    assert look.faults == {"huge": "200×200 pixels, too large to be read"}
    assert not look.usable
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # twice as many are PIL's own limit
    assert set(Inspection(0, tmp_path / "a.png").run().faults) == {"huge"}


def test_sixteen_bits_are_seen_in_every_format(tmp_path: Path) -> None:
    deep = (np.arange(64 * 48, dtype=np.uint16) * 20).reshape(48, 64)
    Image.fromarray(deep).save(tmp_path / "a.tif")
    Image.fromarray(deep).save(tmp_path / "b.png")
    colour = np.stack([deep] * 3, axis=-1).astype(">u2").tobytes()
    (tmp_path / "c.ppm").write_bytes(b"P6 64 48 65535\n" + colour)
    for path in sorted(tmp_path.iterdir()):
        assert set(Inspection(0, path).run().faults) == {"sixteen_bit"}, path
    (tmp_path / "d.ppm").write_bytes(b"P6 64 48 255\n" + colour[: 64 * 48 * 3])
    assert Inspection(0, tmp_path / "d.ppm").run().faults == {}


def test_transparent_palettes_are_both(tmp_path: Path) -> None:
    picture = pattern(1).quantize(8)
    picture.save(tmp_path / "a.png", transparency=0)
    assert set(Inspection(0, tmp_path / "a.png").run().faults) == {"palette", "alpha"}


def test_a_cut_png_is_truncated(tmp_path: Path) -> None:
    pattern(1, 300, 300).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    assert set(Inspection(0, tmp_path / "cut.png").run().faults) == {"truncated"}
