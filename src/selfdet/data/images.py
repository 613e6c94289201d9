"""Image files: which there are, their pixels, and what becomes of those that cannot be read."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors

from selfdet.data.coco import absent, image_files, missing_files, read_coco
from selfdet.data.image_names import MAX_BYTES, is_image, suffixes
from selfdet.data.path_list import PathList
from selfdet.data.shard_finding import open_shards
from selfdet.data.shards import read_member
from selfdet.data.untrusted import expanded, is_name, read_lines
from selfdet.errors import UserError, one_line

# The decoders behind these endings. By the content PIL would choose from all it has, among them one that hands files to
# another program (PostScript).
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "GIF", "TIFF", "WEBP")
# More is taken for a decompression bomb: PIL's own limit, 179 megapixels.
MAX_PIXELS = 178_956_970
ORIENTATION_TAG = 0x0112
# Values of it that exchange width and height.
SIDEWAYS = (5, 6, 7, 8)
# What `read_image` makes of every file, as weights that were trained on it say.
PIXELS = "8-bit RGB: grey repeated, palettes and CMYK converted, transparency on black, high byte of 16 bits, upright"


class UnreadableImage(OSError):
    """An image file that gives no pixels; `path` and a short `reason`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = str(path)
        self.reason = one_line(reason, 300)
        super().__init__(self.path, self.reason)

    def __str__(self) -> str:
        return one_line(f"cannot read the image {self.path}: {self.reason}")


class Quarantine:
    """The unreadable images of a run: counted, never fatal up to `limit` of `total`, then fatal with their names.

    A single unreadable image never stops a run (`minimum` is how many are always borne), so that one bad file among
    a dozen is reported and not fatal.
    """

    def __init__(self, total: int, limit: float = 0.05, minimum: int = 1) -> None:
        self.total = total
        self.limit = limit
        self.minimum = minimum
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def paths(self) -> list[str]:
        """The unreadable files, each once, in the order met."""
        return list(self._reasons)

    @property
    def reasons(self) -> dict[str, str]:
        """Path → reason; what a checkpoint keeps, to be handed to `restore`."""
        return dict(self._reasons)

    def restore(self, reasons: dict[str, str]) -> None:
        """Take up the count of an interrupted run."""
        self._reasons = dict(reasons)

    def add(self, path: str | Path, reason: str) -> None:
        """Enter a file; one that is there already is not counted again."""
        self._reasons.setdefault(one_line(str(path)), reason)

    def check(self) -> None:
        """Raises: UserError with the count and the first names when more than the limit is unreadable."""
        if len(self) <= max(self.minimum, self.limit * self.total):
            return
        first = "; ".join(f"{path} ({reason})" for path, reason in list(self._reasons.items())[:3])
        raise UserError(
            f"{len(self)} of {self.total} images cannot be read, more than {self.limit:.0%}: "
            f"{first}{'; …' if len(self) > 3 else ''}",
            "Mend or remove them, then run the command again",
        )


def list_images(images: str | Path, absent_too: bool = False) -> Sequence[Path]:
    """The image files that `images` stands for, each once.

    A folder: searched with its subfolders and links, each folder once, hidden names left out, sorted. A glob: sorted,
    `**` for any depth. A text list: one path a line, relative to the list's folder, lines beginning with # left out, in
    its order. A COCO JSON: `file_name`s relative to the JSON's folder or to an `images/` beside it, in its order. One
    image file: itself. WebDataset shards (a folder of tars, a tar, a glob, braces, here or at a URL): the images in
    them, by shard, in its order, each as the path `FOLDER/SHARD.tar/KEY.jpg`, which `read_image` takes.

    Raises: UserError when there is no such thing, no image in it, or a listed image is absent, unless `absent_too`.
    """
    text = os.path.expanduser(str(images))
    shards = open_shards(text)
    if shards is not None:
        return shards
    if os.path.isdir(text):
        paths = sorted(_walk(text))
        if not paths:
            raise UserError(f"no image in the folder {text}", f"Images end in {suffixes()}")
        return PathList(paths)
    if os.path.isfile(text):
        return _listed(Path(text), absent_too)
    if glob.has_magic(text):
        found = sorted(name for name in glob.glob(text, recursive=True) if is_image(name) and os.path.isfile(name))
        if not found:
            raise UserError(f"no image matches {text}", f"Images end in {suffixes()}; quote the pattern in a shell")
        return PathList(found)
    raise UserError(f"--images {text} does not exist", "Give a folder, a glob, a text list, a COCO JSON or shards")


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> tv_tensors.Image:
    """The pixels of an image file, (3, H, W) uint8 RGB.

    The EXIF orientation is applied, unless `size`, the (width, height) that a label file gives, agrees with the
    pixels as stored and not with the turned ones: then the labels were drawn on the stored picture. Grey becomes
    three equal channels; palettes, CMYK and other colour spaces are converted (colour profiles are not applied);
    what is transparent is laid on black; of 16-bit samples the high byte is kept; of an animation the first frame.

    Raises: UnreadableImage for a missing, truncated, undecodable or absurdly large file, and for one that fits
        `size` neither as stored nor as turned.
    """
    with _decoding(path), Image.open(_content(path), formats=FORMATS) as file:
        _refuse_huge(path, file)
        file.load()
        pixels = np.array(as_rgb(_upright(file, size)))
    _require_size(path, (pixels.shape[1], pixels.shape[0]), size)
    # Kept in PIL's own order in memory (channels last), in which torchvision resizes bytes fastest.
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def read_size(path: str | Path, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """The (width, height) that `read_image` would give, from the file's header alone; damaged pixels go unnoticed.

    Raises: UnreadableImage as `read_image`.
    """
    with _decoding(path), Image.open(_content(path), formats=FORMATS) as file:
        _refuse_huge(path, file)
        found = (file.width, file.height)
        found = found[::-1] if orientation(file, size) in SIDEWAYS else found
    _require_size(path, found, size)
    return found


def require_image(path: str | Path, content: bytes) -> None:
    """Look at the head of an image file's bytes. Raises: UnreadableImage for what is none, or too large."""
    with _decoding(path), Image.open(io.BytesIO(content), formats=FORMATS) as file:
        _refuse_huge(path, file)


@contextmanager
def _decoding(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (UnreadableImage, UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(path, "no such file") from error
    except Exception as error:  # PIL's decoders raise anything: OSError, SyntaxError, ValueError, struct.error, …
        reason = re.sub(r"<_io\.BytesIO[^>]*>", "'the file'", str(error).replace(str(path), "the file"))
        raise UnreadableImage(path, reason or type(error).__name__) from error


def read_bytes(path: str | Path) -> bytes:
    """The bytes of an image, in a file of its own or in a shard.

    Raises: UnreadableImage for what has no end or is too large; OSError; UserError for a shard that can't be read.
    """
    content = read_member(path)
    if content is None:
        require_plain_file(path)
        content = Path(path).read_bytes()
    return content


def _content(path: str | Path) -> str | Path | io.BytesIO:
    """What PIL is to open."""
    content = read_member(path)
    if content is not None:
        return io.BytesIO(content)
    require_plain_file(path)
    return path


def require_plain_file(path: str | Path) -> None:
    """Refuse what has no end or waits for somebody to write: devices, pipes, and files too large for an image.

    Raises: UnreadableImage; OSError as `os.stat`.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise UnreadableImage(path, "it is no file" if not stat.S_ISDIR(about.st_mode) else "it is a folder")
    if about.st_size > MAX_BYTES:
        raise UnreadableImage(path, f"{about.st_size:,} bytes, which is too large for a photograph")


def _refuse_huge(path: str | Path, picture: Image.Image) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise UnreadableImage(path, f"{picture.width}×{picture.height} pixels, which is too large to be a photograph")


def _require_size(path: str | Path, found: tuple[int, int], told: tuple[int, int] | None) -> None:
    if told is not None and found != told:
        raise UnreadableImage(path, f"{found[0]}×{found[1]} pixels where its label file says {told[0]}×{told[1]}")


def orientation(picture: Image.Image, size: tuple[int, int] | None) -> int:
    """The EXIF orientation to undo, 2…8, or 1 for none."""
    try:
        told = picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF beside sound pixels: taken as absent
        return 1
    turned = picture.size[::-1] if told in SIDEWAYS else picture.size
    if size is not None and picture.size == size and turned != size:
        return 1
    return int(told) if told in range(2, 9) else 1


def _upright(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    return picture if orientation(picture, size) == 1 else ImageOps.exif_transpose(picture)


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB, by the policy of `read_image`. Raises: ValueError for floating-point pixels."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if picture.mode == "I" or picture.mode.startswith("I;"):
        high = np.clip(np.asarray(picture).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.new("RGB", layer.size)
        picture.paste(layer, mask=layer.getchannel("A"))
        return picture
    return picture.convert("RGB")


def _walk(folder: str) -> Iterator[str]:
    """The images below a folder. Links are followed, out of it too, but no folder is walked twice: links may form
    circles, and a few of them more paths than there are atoms. What is there itself comes before what is linked."""
    seen: set[str] = set()
    own: list[str] = [folder]
    linked: list[str] = []
    while own or linked:
        path = own.pop() if own else linked.pop(0)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"the folder {path} cannot be listed: {error.strerror}", "Check its permissions") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                own.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # of a link to itself entry.is_dir() raises
                linked.append(entry.path)
            elif is_image(entry.name):
                yield entry.path


def _listed(file: Path, absent_too: bool) -> list[Path]:
    if is_image(file.name):
        return [file]
    if file.suffix.lower() == ".json":
        paths = image_files(read_coco(file), file, absent_too=absent_too)
    else:
        paths = _text_list(file, absent_too)
    if not paths:
        raise UserError(f"{file} lists no image", "Give a folder, a glob, a text list or a COCO JSON")
    return list(dict.fromkeys(paths))


def _text_list(file: Path, absent_too: bool) -> list[Path]:
    try:
        lines = read_lines(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is neither an image nor a text list", "Give a folder, a glob, a text list or a COCO JSON"
        ) from error
    paths = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        path = file.parent / expanded(line)
        if not is_name(line) or (path.suffix and not is_image(path.name)):
            raise UserError(f"{file}, line {number}: {line} is not an image", f"Images end in {suffixes()}")
        paths.append(path)
    missing = [] if absent_too else missing_files(paths)
    if missing:
        raise absent(file, [str(path) for path in missing], len(paths), "place")
    return paths
