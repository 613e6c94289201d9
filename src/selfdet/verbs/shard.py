"""`selfdet shard`: a folder of many images as few large tars, for disks and stores that are slow at small files."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from selfdet.data.images import list_images
from selfdet.data.listing import names_below
from selfdet.data.shard_finding import UNFINISHED
from selfdet.data.shard_index import INDEX, ShardIndex, load_index
from selfdet.data.shard_writing import (
    Shard,
    ShardWriter,
    Stopped,
    member_names,
    parse_size,
    shard_name,
    shuffled,
)
from selfdet.data.tars import read_heads
from selfdet.data.untrusted import is_integer, parse_json
from selfdet.errors import UserError, one_line
from selfdet.proposing.unfinished import require_same
from selfdet.training.log import Reporter, plural
from selfdet.training.rundir import check_out_is_new
from selfdet.training.stop import Interrupted, Stop

READERS = 8


def shard(
    *,
    images: str,
    out: str,
    shard_size: str = "512MB",
    per_shard: int | None = None,
    seed: int = 0,
    workers: int = READERS,
    resume: bool = False,
) -> dict[str, Any]:
    """Write images into WebDataset tar shards, which every --images takes, here or at a URL.

    The bytes of the files are kept. Images go in shuffled order, so that each shard is a fair sample of all, as
    `KEY.jpg` with a key that is their own. Files without the head of an image are left out and counted. An index
    beside the shards says where each image begins.

    Args:
        images: folder (nested or flat), glob, text list, COCO JSON or other shards.
        out: folder to make, for `shards-000000.tar` and so on; refused when not empty, unless resuming.
        shard_size: bytes of images in a shard, at most, such as 512MB or 1GiB.
        per_shard: images in a shard, at most; as many as its size allows if not given.
        seed: seed of the order.
        workers: files to read at once.
        resume: continue where it was interrupted, with the same images.

    Raises: UserError when no image is found or can be read, the disk is full, or `out` holds something else;
    Interrupted when stopped.

    Example:
        selfdet shard --images photos/ --out shards/
    """
    folder, reporter = Path(out), Reporter()
    most_bytes = parse_size(shard_size)
    for flag, value in (("per-shard", per_shard), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"--{flag} is {value}, expected 1 or more")
    check_out_is_new(out, resume)
    paths = list_images(images)
    names = member_names(list(names_below(images, paths)))
    settings = {
        **{"images": len(paths), "names": _hash(names), "seed": seed},
        **{"shard_size": most_bytes, "per_shard": per_shard},
    }
    index_file, progress_file = folder / INDEX, folder / UNFINISHED
    if index_file.is_file() and not progress_file.exists():
        index = load_index(index_file)
        require_same(index_file, (index.written or {}).get("settings", {}), settings)
        reporter.line(f"{out} is finished")
        return _answer(out, index, reporter)
    folder.mkdir(parents=True, exist_ok=True)
    order = shuffled(len(paths), seed)
    done = _done_before(progress_file, settings)
    writer = ShardWriter(paths, names, order, most_bytes, per_shard or len(paths))
    with progress_file.open("ab") as progress:
        if not done:
            progress.truncate(0)
            _append(progress, settings)
        else:
            reporter.line(f"{plural(len(done), 'shard')} written before")
        _write(writer, folder, done, progress, workers, reporter)
    written = [each for each in done if each.length]
    if not written:
        progress_file.unlink()
        first = done[0].left_out[0]
        raise UserError(f"none of {plural(len(paths), 'image')} can be read; {paths[first[0]]}: {first[1]}")
    left_out = [pair for each in done for pair in each.left_out]
    for image, reason in left_out[:5]:
        reporter.line(one_line(f"left out: {paths[image]} ({reason})"))
    tars = {shard_name(number): (each.length, each.contents) for number, each in enumerate(written)}
    index = ShardIndex.of(tars, {"settings": settings, "left_out": len(left_out)})
    index.save(index_file)
    progress_file.unlink()
    return _answer(out, index, reporter)


def _write(
    writer: ShardWriter, folder: Path, done: list[Shard], progress: IO[bytes], readers: int, reporter: Reporter
) -> None:
    """Write what is left, noting each shard in `done` and in the file. Raises: Interrupted when stopped."""
    total = len(writer.order)
    start = done[-1].stop if done else 0
    with Stop(0) as stop, reporter.counting(total - start, "images") as seen:
        try:
            for each in writer.write(folder, len(done), start, readers, lambda: bool(stop.asked)):
                done.append(each)
                lines = {"stop": each.stop, "length": each.length, "left_out": each.left_out}
                _append(progress, lines)
                seen(each.stop - start)
        except Stopped:
            number = done[-1].stop if done else 0
            name = signal.Signals(stop.asked).name
            raise Interrupted(f"stopped by {name}", number, stop.asked, unit="image") from None


def _append(file: IO[bytes], value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value).encode() + b"\n")
    file.flush()


def _done_before(file: Path, settings: dict[str, Any]) -> list[Shard]:
    """The shards that an interrupted call has written. Raises: UserError where it had other settings or images."""
    if not file.exists():
        return []
    whole, _, _ = file.read_bytes().rpartition(b"\n")
    done: list[Shard] = []
    for number, line in enumerate(whole.split(b"\n") if whole else []):
        try:
            value = parse_json(line)
            if not isinstance(value, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            raise _strange(file, number, str(error)) from None
        if number == 0:
            require_same(file, value, settings)
        else:
            done.append(_done_shard(file, number, value, done[-1].stop if done else 0, settings["images"]))
    # A line that a kill has cut off is written again.
    with file.open("ab") as opened:
        opened.truncate(len(whole) + 1 if whole else 0)
    return done


def _done_shard(file: Path, number: int, value: Mapping[str, Any], start: int, images: int) -> Shard:
    stop, length, left_out = value.get("stop"), value.get("length"), value.get("left_out")
    pairs: list[Any] = left_out if isinstance(left_out, list) else [None]
    if not (is_integer(stop) and is_integer(length) and isinstance(stop, int) and isinstance(length, int)):
        raise _strange(file, number, "it has other values")
    if not start < stop <= images or not all(
        isinstance(pair, list) and len(pair) == 2 and is_integer(pair[0]) and 0 <= pair[0] < images for pair in pairs
    ):
        raise _strange(file, number, "it has other values")
    shard = Shard(start, stop, length=length, left_out=[(pair[0], str(pair[1])) for pair in pairs])
    tar = file.parent / shard_name(number - 1)
    if length:
        size = tar.stat().st_size if tar.is_file() else 0
        if size != length:
            raise UserError(
                f"the shard {tar} has {size:,} bytes, and had {length:,} when it was written",
                f"Remove the folder {file.parent} to begin anew",
            )
        with tar.open("rb") as opened:
            shard.contents = read_heads(opened, size, str(tar))
    return shard


def _strange(file: Path, number: int, why: str) -> UserError:
    return UserError(
        f"{file}, line {number + 1} is not as selfdet shard writes it: {why}", "Remove the folder to begin anew"
    )


def _hash(names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


def _answer(out: str, index: ShardIndex, reporter: Reporter) -> dict[str, Any]:
    left_out = (index.written or {}).get("left_out", 0)
    images, size = int(index.sizes.sum()), int(index.lengths.sum())
    rest = f"; {plural(left_out, 'file')} left out" if left_out else ""
    found = f"{plural(len(index), 'image')} in {plural(len(index.tars), 'shard')}"
    reporter.line(f"{found}, {size / 1e6:,.1f} MB{rest}: {out}")
    return {
        **{"out": out, "shards": len(index.tars), "images": len(index), "left_out": left_out},
        **{"bytes": size, "image_bytes": images, "fingerprint": index.fingerprint},
    }
