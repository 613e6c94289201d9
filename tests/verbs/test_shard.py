"""`selfdet shard` writes shards that others read too, exactly as often as it is told, and that train like a folder."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from selfdet.data import shard_writing
from selfdet.data.images import list_images, read_bytes
from selfdet.data.listing import numbered_images
from selfdet.data.shard_index import INDEX
from selfdet.data.shard_writing import member_names, parse_size
from selfdet.errors import UserError
from selfdet.training.stop import Interrupted
from selfdet.verbs.proposals import proposals
from selfdet.verbs.shard import shard
from tiny_runs import PRETRAIN, WIDTHS, tiny_pretrain


def write(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return shard(**{"images": str(scenes / "images"), "out": str(out), "per_shard": 4, **changes})


@pytest.fixture(scope="module")
def shards(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes' 15 images in 4 shards; not to be changed."""
    out = tmp_path_factory.mktemp("written") / "shards"
    write(scenes, out)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.startswith(".")}


def test_shards_hold_the_bytes_of_all_files_in_shuffled_order(scenes: Path, shards: Path) -> None:
    names = []
    for tar in sorted(shards.glob("shards-*.tar")):
        with tarfile.open(tar) as archive:
            for entry in archive:
                names.append(entry.name)
                file = archive.extractfile(entry)
                assert file is not None
                assert file.read() == (scenes / "images" / entry.name).read_bytes()
    assert sorted(names) == sorted(path.name for path in (scenes / "images").iterdir())
    assert names != sorted(names)
    assert [path.name for path in list_images(shards)] == names
    assert all(read_bytes(path) == (scenes / "images" / path.name).read_bytes() for path in list_images(shards))


def test_the_same_call_writes_the_same_bytes_and_another_seed_another_order(
    scenes: Path, shards: Path, tmp_path: Path
) -> None:
    write(scenes, tmp_path / "again", workers=1)
    assert contents(tmp_path / "again") == contents(shards)
    other = write(scenes, tmp_path / "other", seed=1)
    assert other["images"] == 15
    assert other["fingerprint"] != write(scenes, shards, resume=True)["fingerprint"]


def test_shards_are_read_by_webdataset_and_its_shards_by_us(scenes: Path, shards: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = str(shards / "shards-{000000..000003}.tar")
    theirs = [(entry["__key__"], entry["jpg"]) for entry in webdataset.WebDataset(urls, shardshuffle=False)]
    assert theirs == [(path.stem, read_bytes(path)) for path in list_images(shards)]
    with webdataset.TarWriter(str(tmp_path / "a-000.tar")) as sink:
        for key, content in theirs:
            sink.write({"__key__": f"x/{key}", "jpg": content, "cls": 3, "seg.png": content})
    assert [read_bytes(path) for path in list_images(tmp_path)] == [content for _, content in theirs]


def test_a_shard_ends_before_it_is_too_large(scenes: Path, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in (scenes / "images").iterdir()]
    made = write(scenes, tmp_path / "a", per_shard=None, shard_size=f"{max(sizes) * 2 / 1000}KB")
    tars = sorted((tmp_path / "a").glob("*.tar"))
    assert made["shards"] == len(tars) > 5
    for tar in tars:
        with tarfile.open(tar) as archive:
            assert 0 < sum(entry.size for entry in archive) <= max(sizes) * 2


def test_files_that_are_no_images_are_left_out_and_counted(tmp_path: Path, scenes: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted((scenes / "images").iterdir())[:5]):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(path.read_bytes() if number else b"no image")
    (tmp_path / "photos" / "5.jpg").write_bytes((tmp_path / "photos" / "1.jpg").read_bytes()[:1000])  # behind its head
    made = shard(images=str(tmp_path / "photos"), out=str(tmp_path / "out"), per_shard=2)
    assert (made["images"], made["left_out"], made["shards"]) == (5, 1, 3)
    for path in (tmp_path / "photos").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of 6 images can be read"):
        shard(images=str(tmp_path / "photos"), out=str(tmp_path / "none"))


def test_every_image_has_a_key_of_its_own() -> None:
    names = [
        "a.jpg",
        "a.png",
        "b/a.jpg",
        "v1.2/c.d.e.JPG",
        "c_d_e.jpg",
        "c.d_e.jpg",
        "a~1.png",
        "new\nline.jpg",
        "bare",
    ]
    found = member_names(names)
    assert found[:4] == ["a.jpg", "a~1.png", "b/a.jpg", "v1.2/c_d_e.jpg"]
    assert found[7:] == ["new_line.jpg", "bare.jpg"]
    keys = [name.rpartition(".")[0] for name in found]
    assert len(set(keys)) == len(names)


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parse_size(text) for text in ("512MB", "1 GiB", "0.5kb", "700")] == [512_000_000, 2**30, 500, 700]
    for text in ("much", "-1MB", "1TBs", ""):
        with pytest.raises(UserError, match="expected a size"):
            parse_size(text)


def test_an_interrupted_call_is_continued_to_the_same_bytes(
    scenes: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, read = tmp_path / "out", shard_writing._read
    left = [11]

    def stopping(path: Path) -> bytes | str:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(path)

    monkeypatch.setattr(shard_writing, "_read", stopping)
    with pytest.raises(Interrupted):
        write(scenes, out, workers=1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="not finished"):
        list_images(out)
    with pytest.raises(UserError, match="seed is 0 in this run but 1 now"):
        write(scenes, out, seed=1, resume=True)
    # As a kill leaves them: a line cut off, and a shard that no line tells of.
    with (out / "unfinished.jsonl").open("ab") as file:
        file.write(b'{"stop": 8, "len')
    (out / "shards-000003.tar").write_bytes(b"half")
    write(scenes, out, resume=True)
    assert contents(out) == contents(shards)


def test_a_finished_folder_is_not_touched_and_a_full_one_refused(scenes: Path, shards: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert write(scenes, shards, resume=True)["images"] == 15
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before
    with pytest.raises(UserError, match="not empty"):
        write(scenes, shards)
    with pytest.raises(UserError, match="per_shard is 4 in this run but 5 now"):
        write(scenes, shards, per_shard=5, resume=True)


@pytest.mark.parametrize("change", ["cut", "gone", "added"])
def test_shards_that_are_not_those_of_their_index_are_named(scenes: Path, tmp_path: Path, change: str) -> None:
    write(scenes, tmp_path / "out")
    tar = tmp_path / "out" / "shards-000001.tar"
    if change == "cut":
        tar.write_bytes(tar.read_bytes()[:-10240])
    elif change == "gone":
        tar.unlink()
    else:
        tar = tar.rename(tar.with_name("shards-000009.tar"))
    with pytest.raises(UserError, match=tar.name):
        list_images(tmp_path / "out")


@pytest.fixture(scope="module")
def trained(scenes: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run from the shards; not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    tiny_pretrain(scenes, out, images=str(shards))
    return out


def same_weights(first: Path, second: Path) -> bool:
    one, other = (load_file(run / "backbone.safetensors") for run in (first, second))
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_training_from_shards_is_training_from_the_same_files_in_the_same_order(
    scenes: Path, shards: Path, trained: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(scenes / "images" / path.name) for path in list_images(shards)))
    tiny_pretrain(scenes, tmp_path / "folder", images=str(listed))
    assert (tmp_path / "folder" / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()
    assert same_weights(tmp_path / "folder", trained)
    assert "images from 4 shards" in (trained / "log.txt").read_text()


@pytest.mark.slow
def test_a_run_from_shards_resumes_to_the_same_weights(
    scenes: Path, shards: Path, trained: Path, tmp_path: Path
) -> None:
    tiny_pretrain(scenes, tmp_path / "cut", images=str(shards), max_time=1e-9)
    assert not (tmp_path / "cut" / "backbone.safetensors").exists()
    tiny_pretrain(scenes, tmp_path / "cut", images=str(shards), resume=True)
    assert same_weights(tmp_path / "cut", trained)


@pytest.mark.slow
def test_boxes_found_in_shards_train_a_detector_from_them(scenes: Path, shards: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.json"
    found = proposals(images=str(shards), out=str(boxes), workers=1, side=96)
    assert found["images"] == 15
    names = [entry["file_name"] for entry in json.loads(boxes.read_text())["images"]]
    assert names == [image.name for image in numbered_images(shards)]
    settings = {**PRETRAIN, **WIDTHS, "stages": ["detector"], "steps": 1, "boxes": str(boxes)}
    del settings["queue_length"]
    assert tiny_pretrain(scenes, tmp_path / "run", images=str(shards), **settings)["finished"]
    with pytest.raises(UserError, match="are not in"):
        tiny_pretrain(scenes, tmp_path / "other", **settings)


def test_the_index_is_counted_and_named(shards: Path) -> None:
    from safetensors import safe_open

    with safe_open(shards / INDEX, framework="np") as file:
        note = json.loads(file.metadata()["selfdet"])
        assert len(file.get_tensor("starts")) == note["images"] == 15
    assert note["tars"] == [f"shards-{number:06d}.tar" for number in range(4)]
    assert len(note["fingerprint"]) == 16
