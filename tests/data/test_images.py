"""Any collection of image files is listed alike, and every kind of picture becomes upright 8-bit RGB or is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfdet.data.images import Quarantine, UnreadableImage, list_images, read_image, read_size
from selfdet.errors import UserError

ORIENTATION = 0x0112


def picture(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """b.png, nested/a.JPG and nested/deep/c.jpg among files that are no images or are hidden."""
    root = tmp_path / "photos"
    for name in ("b.png", "nested/a.JPG", "nested/deep/c.jpg", ".hidden.png", ".thumbnails/d.png"):
        picture(root / name)
    (root / "notes.md").write_text("not an image")
    return root


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


class TestListing:
    def test_a_folder_is_searched_with_its_subfolders_in_sorted_order_without_hidden_names(self, folder: Path) -> None:
        assert names(list_images(folder), folder) == ["b.png", "nested/a.JPG", "nested/deep/c.jpg"]

    def test_a_link_back_to_a_folder_above_is_not_followed_for_ever(self, folder: Path) -> None:
        (folder / "nested" / "loop").symlink_to(folder)
        (folder / "itself").symlink_to("itself")
        assert names(list_images(folder), folder) == ["b.png", "nested/a.JPG", "nested/deep/c.jpg"]

    def test_a_glob_reaches_any_depth_and_keeps_images_only(self, folder: Path) -> None:
        assert names(list_images(f"{folder}/**/*.jpg"), folder) == ["nested/deep/c.jpg"]
        assert names(list_images(f"{folder}/*"), folder) == ["b.png"]

    def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(self, tmp_path: Path) -> None:
        picture(tmp_path / "run[1]" / "a.png")
        assert len(list_images(tmp_path / "run[1]")) == 1

    def test_a_text_list_is_relative_to_its_own_folder_and_keeps_its_order(self, folder: Path) -> None:
        (folder / "list.txt").write_text("# chosen\nnested/a.JPG\n\nb.png\nb.png\n")
        assert names(list_images(folder / "list.txt"), folder) == ["nested/a.JPG", "b.png"]

    def test_a_coco_file_finds_its_images_beside_it_or_in_the_folder_images(self, folder: Path) -> None:
        coco = {"images": [{"id": 1, "file_name": "nested/a.JPG"}, {"id": 2, "file_name": "b.png"}]}
        for file in (folder / "labels.json", folder.parent / "labels.json"):
            file.write_text(json.dumps(coco))
        assert names(list_images(folder / "labels.json"), folder) == ["nested/a.JPG", "b.png"]
        folder.rename(folder.parent / "images")
        assert len(list_images(folder.parent / "labels.json")) == 2

    def test_one_image_file_stands_for_itself(self, folder: Path) -> None:
        assert list_images(folder / "b.png") == [folder / "b.png"]

    def test_what_holds_no_images_is_refused_in_one_line_that_names_it(self, folder: Path) -> None:
        (folder / "empty").mkdir()
        (folder / "empty.txt").write_text("# nothing\n")
        (folder / "missing.txt").write_text("b.png\ngone.png\n")
        (folder / "words.txt").write_text("notes.md\n")
        (folder / "binary.dat").write_bytes(b"\xff\xfe\xfa")
        (folder / "climbing.json").write_text('{"images": [{"id": 1, "file_name": "../b.png"}]}')
        for what, told in [
            ("absent", "does not exist"),
            ("*.gif", "no image matches"),
            ("empty", "no image in the folder"),
            ("empty.txt", "lists no image"),
            ("missing.txt", "gone.png"),
            ("words.txt", "line 1: notes.md is not an image"),
            ("binary.dat", "neither an image nor a text list"),
            ("climbing.json", "leaves the images' folder"),
        ]:
            with pytest.raises(UserError, match=told) as caught:
                list_images(folder / what)
            assert what in caught.value.message
            assert "\n" not in str(caught.value)


class TestReading:
    def test_pixels_come_as_rgb_bytes_channels_first(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        image = read_image(tmp_path / "a.png")
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.numpy(), pixels.transpose(2, 0, 1))

    @pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "LA", "I;16", "I"])
    def test_every_kind_of_picture_becomes_three_channels(self, tmp_path: Path, mode: str) -> None:
        path = picture(tmp_path / "a.tif" if mode in ("CMYK", "YCbCr", "I") else tmp_path / "a.png", mode=mode)
        assert read_image(path).shape == (3, 4, 6)

    def test_grey_stays_grey_and_sixteen_bits_keep_their_high_byte(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0x1234, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [[0x12] * 3, [0xFF] * 3]

    def test_what_is_transparent_lies_on_black(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[[200, 100, 50, 0], [200, 100, 50, 255]]], np.uint8)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [[0, 0, 0], [200, 100, 50]]
        palette = Image.new("P", (2, 1))
        palette.putpalette([9, 9, 9, 200, 100, 50])
        palette.putdata([0, 1])
        palette.save(tmp_path / "p.png", transparency=0)
        assert read_image(tmp_path / "p.png")[:, 0].T.tolist() == [[0, 0, 0], [200, 100, 50]]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_the_camera_orientation_is_applied(self, tmp_path: Path, orientation: int) -> None:
        stored = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).convert("RGB")
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored.save(tmp_path / "a.png", exif=exif)
        a = np.asarray(stored)[..., 0]
        upright = [a, a[:, ::-1], a[::-1, ::-1], a[::-1], a.T, a.T[:, ::-1], a.T[::-1, ::-1], a.T[::-1]][
            orientation - 1
        ]
        np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0].numpy(), upright)
        assert read_size(tmp_path / "a.png") == upright.shape[::-1]

    def test_labels_drawn_on_the_stored_picture_keep_it_unturned(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
        assert read_image(tmp_path / "a.jpg").shape == (3, 6, 4)
        assert read_image(tmp_path / "a.jpg", size=(4, 6)).shape == (3, 6, 4)
        assert read_image(tmp_path / "a.jpg", size=(6, 4)).shape == (3, 4, 6)
        assert read_size(tmp_path / "a.jpg") == read_size(tmp_path / "a.jpg", size=(4, 6)) == (4, 6)
        assert read_size(tmp_path / "a.jpg", size=(6, 4)) == (6, 4)

    def test_a_size_that_fits_neither_way_makes_the_image_unreadable(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableImage, match="6×4 pixels where its label file says 60×40"):
            read_image(picture(tmp_path / "a.png"), size=(60, 40))
        with pytest.raises(UnreadableImage, match="6×4 pixels where its label file says 60×40"):
            read_size(tmp_path / "a.png", size=(60, 40))

    def test_truncated_empty_absent_and_foreign_files_are_named(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        for suffix in ("jpg", "png", "gif", "tif", "webp", "bmp"):
            Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
            whole = (tmp_path / f"whole.{suffix}").read_bytes()
            (tmp_path / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "text.jpg").write_text("hello")
        (tmp_path / "folder.jpg").mkdir()
        bad = [
            *tmp_path.glob("half.*"),
            *(tmp_path / name for name in ("empty.jpg", "text.jpg", "folder.jpg", "no.jpg")),
        ]
        assert len(bad) == 10
        for path in bad:
            with pytest.raises(UnreadableImage) as caught:
                read_image(path)
            assert caught.value.path == str(path)
            assert caught.value.reason

    def test_a_decompression_bomb_is_refused_before_it_is_decoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("selfdet.data.images.MAX_PIXELS", 20)
        with pytest.raises(UnreadableImage, match="6×4"):
            read_image(picture(tmp_path / "a.png"))

    def test_the_error_crosses_processes_whole(self) -> None:
        error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "truncated")))
        assert (error.path, error.reason) == ("a.jpg", "truncated")


class TestQuarantine:
    def test_up_to_five_percent_is_borne_and_more_stops_with_names(self) -> None:
        quarantine = Quarantine(total=60)
        for name in ("a.jpg", "b.jpg", "a.jpg", "c.jpg"):
            quarantine.add(name, "truncated")
        quarantine.check()
        assert quarantine.paths == ["a.jpg", "b.jpg", "c.jpg"]
        quarantine.add("d.jpg", "empty")
        with pytest.raises(UserError, match=r"4 of 60 .* 5%: a.jpg \(truncated\); b.jpg"):
            quarantine.check()

    def test_a_single_bad_file_among_a_few_never_stops_a_run(self) -> None:
        quarantine = Quarantine(total=4)
        quarantine.add("a.jpg", "empty")
        quarantine.check()
        quarantine.add("b.jpg", "empty")
        with pytest.raises(UserError):
            quarantine.check()

    def test_a_resumed_run_takes_up_the_count(self) -> None:
        first = Quarantine(total=100)
        first.add("a.jpg", "empty")
        second = Quarantine(total=100)
        second.restore(first.reasons)
        second.add("a.jpg", "empty")
        assert second.reasons == {"a.jpg": "empty"}
