"""The shards that `--images` stands for: folders, tars, globs, braces and URLs; and their index, made if need be."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from selfdet.data.disk import writing
from selfdet.data.image_names import is_image
from selfdet.data.shard_index import INDEX, ShardIndex, load_index
from selfdet.data.shard_places import is_url, listed_tars, notes_of, notes_root, open_url, read_url, tag_of
from selfdet.data.shards import ShardedImages, index_of, is_indexed
from selfdet.data.tars import Contents, read_heads
from selfdet.errors import UserError

UNFINISHED = "unfinished.jsonl"  # beside the shards of a `selfdet shard` that has not ended
MOST_NAMES = 10**6  # that braces may stand for
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
Head = Callable[[str], tuple[int, Contents]]


def open_shards(images: str | Path) -> ShardedImages | None:
    """The images that `images` stands for if it is shards, else None.

    Shards are a folder of tars without images or folders beside them, one tar, a glob of tars, any of it with numbers
    or words in braces (`shards-{000000..000099}.tar`), here or at a URL. The index that `selfdet shard` writes beside
    them is read; where there is none it is made from the heads of all members, and kept beside them, or in the user's
    cache folder where that can't be.

    Raises: UserError for a shard that is missing, damaged, compressed or not the one that was indexed.
    """
    text = os.path.expanduser(str(images))
    if text.lower().endswith(PACKED) and (is_url(text) or os.path.exists(text)):
        raise UserError(f"{text} is compressed, so images can't be read out of its middle", "Unpack it to a plain .tar")
    if is_url(text):
        return _at_url(text)
    if os.path.isdir(text):
        return _in_folder(text)
    if not text.endswith(".tar"):
        return None
    paths = [text] if os.path.exists(text) else [path for each in expand_braces(text) for path in _globbed(each)]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} shards of {text} do not exist: {', '.join(missing[:3])}",
            "Check the range in braces",
        )
    folder = _one_folder(text, [os.path.dirname(path) or "." for path in paths])
    return _of_folder(folder, sorted({os.path.basename(path) for path in paths}))


def expand_braces(text: str) -> list[str]:
    """The names that `{000..099}` and `{a,b}` in a name stand for.

    Raises: UserError for more than a million.
    """
    names = [""]
    for part in re.split(r"(\{[^{}]*\})", text):
        span = re.fullmatch(r"\{(\d{1,18})\.\.(\d{1,18})\}", part)
        words = part[1:-1].split(",") if part[:1] == "{" and "," in part else [part]
        numbers = range(0)
        if span:
            first, last = sorted((int(span[1]), int(span[2])))
            numbers = range(first, last + 1)
        if len(names) * max(len(words), len(numbers)) > MOST_NAMES:
            raise UserError(f"{text} stands for more than {MOST_NAMES:,} names", "Give a narrower range")
        if span:
            width = max(len(span[1]), len(span[2])) if "0" in (span[1][0], span[2][0]) else 0
            words = [f"{number:0{width}}" for number in numbers]
        names = [name + word for name in names for word in words]
    return names


def _globbed(path: str) -> list[str]:
    return sorted(glob.glob(path)) if glob.has_magic(path) else [path]


def _one_folder(text: str, folders: Sequence[str]) -> str:
    found = sorted(set(folders))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"no shard matches {text}", "Quote the pattern in a shell")
    raise UserError(f"{text} stands for shards in {len(found)} folders", "Give shards of one folder")


def _in_folder(folder: str) -> ShardedImages | None:
    """All shards of a folder; None where it is one of images."""
    if os.path.dirname(os.path.abspath(folder)) == str(notes_root()) and is_indexed(folder):
        return _chosen(folder, index_of(folder).tars, folder)
    tars = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.endswith(".tar") and entry.is_file():
                    tars.append(entry.name)
                elif is_image(entry.name) or entry.is_dir():
                    return None  # whatever tars may be beside them
    except OSError:
        return None  # whoever lists it as a folder says what is wrong
    return _of_folder(folder, sorted(tars), whole=True) if tars or is_indexed(folder) else None


def _of_folder(folder: str, tars: list[str], whole: bool = False) -> ShardedImages:
    """Shards in a folder of this machine; `whole`: they are all that are there."""
    if os.path.exists(os.path.join(folder, UNFINISHED)):
        raise UserError(f"{folder} holds shards that are not finished", "Continue selfdet shard with --resume")
    states = {tar: os.stat(os.path.join(folder, tar)) for tar in tars}
    lengths = {tar: state.st_size for tar, state in states.items()}
    index = _sound_index(folder)
    if index is None or index.written is None:
        dates = {tar: state.st_mtime_ns for tar, state in states.items()}
        home = folder
        if _unknown(folder, lengths, dates) and not os.access(folder, os.W_OK):
            home = str(notes_of(os.path.abspath(folder)))
        _index_more(home, lengths, dates, lambda tar: _head(os.path.join(folder, tar), lengths[tar]))
        return _chosen(home, tars, folder)
    # One that was written with its shards is held against them.
    file = os.path.join(folder, INDEX)
    known = dict(zip(index.tars, index.lengths.tolist()))
    strange = [tar for tar in tars if tar not in known]
    if strange:
        raise UserError(
            f"{len(strange)} shards in {folder} are not in its index: {', '.join(strange[:3])}",
            f"Remove {file} to have it made anew",
        )
    for tar in index.tars if whole else tars:
        if tar not in lengths:
            raise UserError(f"the shard {folder}/{tar} is missing", "Fetch it, or name those that are there")
        if lengths[tar] != known[tar]:
            raise UserError(
                f"the shard {folder}/{tar} has {lengths[tar]:,} bytes where its index says {known[tar]:,}",
                f"Fetch it again; if it was changed on purpose, remove {file}",
            )
    return _chosen(folder, tars, folder)


def _head(path: str, length: int) -> tuple[int, Contents]:
    try:
        with open(path, "rb") as opened:
            return length, read_heads(opened, length, path)
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read: {error.strerror}", "Check the file") from None


def _at_url(url: str) -> ShardedImages:
    named = expand_braces(url) if url.endswith(".tar") else []
    place = _one_folder(url, [each.rsplit("/", 1)[0] for each in named] or [url.rstrip("/")])
    tars = sorted(each.rsplit("/", 1)[1] for each in named)
    home = str(notes_of(place))
    if _fetched_index(place, home):
        return _chosen(home, tars or index_of(home).tars, place)
    tars = tars or listed_tars(place)
    if not tars:
        raise UserError(
            f"there is neither {INDEX} nor a list of tars at {place}",
            "Name the shards with braces, such as shards-{000000..000099}.tar",
        )
    _index_more(home, dict.fromkeys(tars), {}, lambda tar: _head_at(place, tar))
    return _chosen(home, tars, place)


def _fetched_index(place: str, home: str) -> bool:
    """Fetch the index that stands beside the shards of a URL, where there is one."""
    url, file, new, seen = f"{place}/{INDEX}", Path(home, INDEX), Path(home, INDEX + ".new"), Path(home, "seen.txt")
    tag = tag_of(url)
    with _locked(home):
        if tag is not None and file.is_file() and seen.is_file() and seen.read_text(encoding="utf-8") == tag:
            return True
        content = read_url(url)
        if content is None:
            return False
        with writing(new, len(content)):
            new.write_bytes(content)
        try:
            load_index(new, url).require_sound(url)
        except UserError:
            new.unlink()
            raise
        os.replace(new, file)
        seen.write_text(tag or "", encoding="utf-8")
    return True


def _head_at(place: str, tar: str) -> tuple[int, Contents]:
    file, size = open_url(place, tar)
    with file:
        try:
            return size, read_heads(file, size, f"{place}/{tar}")
        except OSError as error:
            raise UserError(f"{place}/{tar} cannot be read: {error}", "Try again, or copy the shards") from None


def _sound_index(home: str) -> ShardIndex | None:
    if not is_indexed(home):
        return None
    index = index_of(home)
    index.require_sound(os.path.join(home, INDEX))
    return index


def _index_more(home: str, lengths: Mapping[str, int | None], dates: Mapping[str, int], head: Head) -> None:
    """Add to an index that is made from heads the tars that it doesn't know as they are."""
    if _unknown(home, lengths, dates):
        with _locked(home):  # of the processes of a run one makes it, and the others find it made
            new = {tar: head(tar) for tar in _unknown(home, lengths, dates)}
            if new:
                index = _sound_index(home)
                parts = {**({} if index is None else index.parts()), **new}
                ShardIndex.of(dict(sorted(parts.items()))).save(Path(home, INDEX))


def _unknown(home: str, lengths: Mapping[str, int | None], dates: Mapping[str, int]) -> list[str]:
    """The tars that an index lacks, has with another length (None: it may be any), or is not younger than."""
    index = _sound_index(home)
    if index is None:
        return list(lengths)
    known = dict(zip(index.tars, index.lengths.tolist()))
    date = os.stat(os.path.join(home, INDEX)).st_mtime_ns
    return [
        tar
        for tar, length in lengths.items()
        if tar not in known or length not in (None, known[tar]) or dates.get(tar, 0) >= date
    ]


def _chosen(home: str, tars: Sequence[str], shown: str) -> ShardedImages:
    """Some of the shards of an index. Raises: UserError when one isn't in it, or there is no image in them."""
    numbers = {tar: number for number, tar in enumerate(index_of(home).tars)}
    missing = [tar for tar in tars if tar not in numbers]
    if missing:
        raise UserError(
            f"{len(missing)} shards are not in the index of {shown}: {', '.join(missing[:3])}", "Check the names"
        )
    images = ShardedImages(home, sorted(numbers[tar] for tar in tars))
    if not len(images):
        raise UserError(
            f"no image in the shards of {shown}: {images.words()}",
            "An image's name has one dot, before its ending: KEY.jpg",
        )
    return images


def _locked(home: str) -> FileLock:
    return FileLock(os.path.join(home, ".index.lock"))
