"""Images in shards are found, named and read as those in a folder are, wherever the shards lie."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.shard_files import jpeg, served, write_tar

from selfdet.data.images import UnreadableImage, list_images, read_image, read_size
from selfdet.data.labels import load_labels, read_sample
from selfdet.data.listing import numbered_images
from selfdet.data.loader import training_batches
from selfdet.data.shard_finding import expand_braces, open_shards
from selfdet.data.shard_index import INDEX
from selfdet.data.shards import ShardedImages, split_member
from selfdet.data.views import TwoViews, ViewBatch, ViewDataset, collate_views
from selfdet.errors import UserError

COLOURS = ["red", "green", "blue", "white", "black", "yellow", "orange", "purple", "grey"]


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the index of shards goes that nothing can be written beside."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "selfdet" / "shards"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tars of somebody else's, of three images each."""
    (tmp_path / "shards").mkdir()
    for number in range(3):
        members = {f"{number}/{colour}.jpg": jpeg(colour) for colour in COLOURS[3 * number : 3 * number + 3]}
        tar = write_tar(tmp_path / "shards" / f"some-{number:03d}.tar", {**members, f"{number}/a.json": b"{}"})
        os.utime(tar, (0, 0))
    return tmp_path / "shards"


def found(images: str | Path) -> ShardedImages:
    shards = open_shards(images)
    assert shards is not None
    return shards


def test_the_images_of_a_folder_of_tars_are_listed_named_and_read(folder: Path) -> None:
    paths = list_images(folder)
    assert len(paths) == 9
    assert paths[4] == folder / "some-001.tar" / "1" / "black.jpg"
    assert [image.name for image in numbered_images(folder)][-1] == "some-002.tar/2/grey.jpg"
    assert [tuple(read_image(path)[:, 5, 5].tolist()) for path in paths[:2]] == [(254, 0, 0), (0, 128, 1)]
    assert read_size(paths[8]) == (24, 24)
    assert "3 no image by its name" in found(folder).words()


def test_an_index_is_kept_beside_the_tars_and_follows_them(folder: Path) -> None:
    before = list(list_images(folder))
    first = (folder / INDEX).stat().st_mtime_ns
    assert list(list_images(folder)) == before
    assert (folder / INDEX).stat().st_mtime_ns == first
    write_tar(folder / "some-003.tar", {"new.jpg": jpeg("pink", side=48)})
    write_tar(folder / "some-000.tar", {"other.jpg": jpeg("cyan", side=64)})
    names = [image.name for image in numbered_images(folder)]
    assert names[0] == "some-000.tar/other.jpg"
    assert names[-1] == "some-003.tar/new.jpg"
    assert read_image(folder / "some-000.tar" / "other.jpg").shape == (3, 64, 64)


def test_some_of_the_shards_may_be_named(folder: Path) -> None:
    whole = list(list_images(folder))
    assert list(list_images(folder / "some-001.tar")) == whole[3:6]
    assert list(list_images(folder / "some-{001..002}.tar")) == whole[3:]
    assert list(list_images(folder / "some-00[02].tar")) == whole[:3] + whole[6:]
    with pytest.raises(UserError, match=r"2 of 4 shards of .* do not exist: .*some-003"):
        list_images(folder / "some-{001..004}.tar")


def test_braces_stand_for_numbers_of_equal_width_and_words() -> None:
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert expand_braces("{x}") == ["{x}"]
    with pytest.raises(UserError, match="more than 1,000,000 names"):
        expand_braces("{0..9999999999999}")


def test_a_folder_of_images_with_a_tar_beside_them_is_one_of_images(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(jpeg())
    assert open_shards(folder) is None
    assert list(list_images(folder)) == [folder / "a.jpg"]


def test_a_folder_called_like_a_tar_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.tar").mkdir()
    (tmp_path / "x.tar" / "a.jpg").write_bytes(jpeg())
    (path,) = list_images(tmp_path)
    assert split_member(path) is None
    assert read_image(path).shape == (3, 24, 24)


def test_the_list_of_images_is_sent_to_other_processes_as_its_names(folder: Path) -> None:
    paths = list_images(folder)
    content = pickle.dumps(paths)
    assert len(content) < 500
    assert list(pickle.loads(content)) == list(paths)


def test_an_image_that_is_not_in_its_shard_is_missing_and_a_shard_that_is_gone_ends_the_run(folder: Path) -> None:
    paths = list_images(folder)
    with pytest.raises(UnreadableImage, match="no such file"):
        read_image(folder / "some-000.tar" / "nobody.jpg")
    (folder / "some-000.tar").unlink()
    with pytest.raises(UserError, match=r"the shard .*some-000\.tar cannot be read"):
        read_image(paths[0])


def test_a_shard_that_was_cut_off_since_it_was_indexed_ends_the_run(folder: Path) -> None:
    paths = list_images(folder)
    tar = folder / "some-000.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(UserError, match=r"the shard .*some-000\.tar ends before byte"):
        read_image(paths[2])
    with pytest.raises(UserError, match=r"the shard .*some-000\.tar cannot be read: it ends early"):
        list_images(folder)


def test_shards_that_cannot_be_written_beside_have_their_index_in_the_cache(
    folder: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access  # a root user may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and Path(path) != folder)
    paths = list_images(folder)
    assert not (folder / INDEX).exists()
    assert notes in paths[0].parents
    assert read_image(paths[0])[:, 5, 5].tolist() == [254, 0, 0]
    assert numbered_images(folder)[0].name == "some-000.tar/0/red.jpg"


def test_a_file_that_says_where_tars_lie_is_believed_of_our_own_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_tar(tmp_path / "elsewhere" / "some-000.tar", {"0/red.jpg": jpeg("blue")})
    (folder / "place.txt").write_text(str(tmp_path / "elsewhere"))
    assert read_image(list_images(folder)[0])[:, 5, 5].tolist() == [254, 0, 0]


def test_compressed_tars_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="Unpack it"):
        list_images(tmp_path / "a.tar.gz")


def test_labels_and_boxes_know_images_by_shard_and_name(folder: Path) -> None:
    names = [image.name for image in numbered_images(folder)]
    entries = [{"id": i, "file_name": name, "width": 24, "height": 24} for i, name in enumerate(names)]
    box = {"id": 1, "image_id": 3, "category_id": 1, "bbox": [2, 3, 10, 10]}
    labels = {"images": entries, "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
    (folder.parent / "labels.json").write_text(json.dumps(labels))
    sample = read_sample(load_labels(folder.parent / "labels.json", folder).records[3])
    assert sample.boxes.tolist() == [[2, 3, 12, 13]]
    assert sample.image[:, 5, 5].tolist() == [255, 255, 255]
    labels["images"][0]["file_name"] = "some-000.tar/nobody.jpg"
    (folder.parent / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(UserError, match="1 of the 9 images"):
        load_labels(folder.parent / "labels.json", folder)


def batches(paths: object, workers: int = 0, start: int = 0) -> list[ViewBatch]:
    dataset = ViewDataset(paths, TwoViews(16, seed=3))  # type: ignore[arg-type]
    stream = training_batches(
        *(dataset,),
        **{"batch_size": 2, "seed": 5, "start_step": start, "total_steps": 6, "workers": workers},
        collate=collate_views,
    )
    return [batch for _, _, batch in stream]


def unpacked(folder: Path, out: Path) -> list[Path]:
    """The same images as files, in the same order."""
    files = []
    for image in numbered_images(folder):
        file = out / image.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(image.path.stem))
        files.append(file)
    return files


def same(first: list[ViewBatch], second: list[ViewBatch]) -> bool:
    fields = ("query", "key", "query_affine", "key_affine")
    return len(first) == len(second) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for one, other in zip(first, second) for name in fields
    )


def test_batches_are_those_of_the_same_files_in_a_folder(folder: Path, tmp_path: Path) -> None:
    files = unpacked(folder, tmp_path / "files")
    assert same(batches(list_images(folder)), batches(files))


@pytest.mark.slow
def test_two_workers_and_a_late_start_change_no_batch(folder: Path) -> None:
    whole = batches(list_images(folder))
    assert same(batches(list_images(folder), workers=2, start=3), whole[3:])


def test_unreadable_images_in_a_shard_are_replaced_as_in_a_folder(folder: Path, tmp_path: Path) -> None:
    files = unpacked(folder, tmp_path / "files")
    write_tar(
        folder / "some-000.tar", {"0/red.jpg": b"no image", "0/green.jpg": jpeg("green"), "0/blue.jpg": jpeg("blue")}
    )
    files[0].write_bytes(b"no image")
    assert same(batches(list_images(folder)), batches(files))


def test_shards_at_a_url_are_read_in_parts_and_named_alike(folder: Path) -> None:
    with served(folder) as server:
        paths = list_images(f"{server.url}/some-{{000..002}}.tar")
        assert [image.name for image in numbered_images(f"{server.url}/some-{{000..002}}.tar")] == [
            image.name for image in numbered_images(folder)
        ]
        server.asked.clear()
        assert torch.equal(read_image(paths[4]), read_image(folder / "some-001.tar" / "1" / "black.jpg"))
        ((name, asked),) = server.asked
        assert name == "some-001.tar"
        assert asked is not None
        assert same(batches(paths), batches(list_images(folder)))


def test_the_images_of_a_batch_are_asked_for_at_once_and_each_once(folder: Path) -> None:
    list_images(folder)
    with served(folder) as server:
        paths = list_images(server.url)
        server.asked.clear()
        server.let_wait(20.0)
        assert same(batches(paths), batches(list_images(folder)))
        assert server.most > 1
        assert len([name for name, asked in server.asked if asked]) == 12


def test_the_index_at_a_url_is_used_so_that_no_head_is_asked_for(folder: Path) -> None:
    list_images(folder)
    with served(folder) as server:
        paths = list_images(server.url)
        assert len(paths) == 9
        assert {name for name, _ in server.asked} == {INDEX}
        assert len(list_images(f"{server.url}/some-001.tar")) == 3


def test_a_server_that_sends_whole_files_only_is_refused(folder: Path) -> None:
    list_images(folder)
    with served(folder, parts=False) as server, pytest.raises(UserError, match="sends whole files"):
        read_image(list_images(server.url)[1])


def test_a_url_without_shards_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        with pytest.raises(UserError, match="Name the shards with braces"):
            list_images(f"{server.url}/nothing/")
        with pytest.raises(UserError, match=r"some-0\.tar does not exist"):
            list_images(f"{server.url}/some-0.tar")


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        list_images("nonsense://host/a.tar")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("starts", -1),
        ("starts", 2**62),
        ("sizes", 0),
        ("sizes", 2**62),
        ("ends", -(2**63) + 1),
        ("ends", 10**9),
        ("firsts", 10**9),
        ("firsts", -1),
        ("lengths", -1),
        ("names", ord("/")),
        ("names", 0),
    ],
)
def test_an_index_that_points_anywhere_is_refused(folder: Path, name: str, value: int) -> None:
    index = found(folder).known
    array = np.array(getattr(index, name))
    array[0] = value
    setattr(index, name, array)
    index.save(folder / INDEX)
    with pytest.raises(UserError, match="contradicts itself"):
        list_images(folder)


def test_an_index_whose_names_climb_out_is_refused(folder: Path) -> None:
    index = found(folder).known
    names = np.array(index.names)
    names[2:5] = np.frombuffer(b"../", np.uint8)
    index.names = names
    names[:2] = np.frombuffer(b"0/", np.uint8)
    index.save(folder / INDEX)
    with pytest.raises(UserError, match="contradicts itself"):
        list_images(folder)
