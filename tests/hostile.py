"""Files from strangers: each made as one would make it to do harm, with the command that reads it and what comes."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from selfdet.data.shard_finding import open_shards
from selfdet.data.shard_index import INDEX, ShardIndex

Make = Callable[[Path, Path], Sequence[object]]
# The beginnings of commands that read one file and no more.
IMAGES, TINY = ("check", "--images"), ("--backbone", "test_resnet", "--out", "OUT")


@dataclass(frozen=True)
class Case:
    """`make(folder, scenes)` writes the file and gives the words of a command.

    outcome: "refused" (exit 2, one line) or "counted" (exit 0); in what is said stands `said`.
    """

    reader: str
    what: str
    outcome: str
    said: str
    make: Make

    @property
    def row(self) -> str:
        """Of the table in docs/reliability.md."""
        return f"| {self.reader} | {self.what} | {self.outcome} | “{self.said}” |"


CASES: list[Case] = []


def case(reader: str, what: str, outcome: str, said: str) -> Callable[[Make], Make]:
    """Enter a function as a case."""

    def enter(make: Make) -> Make:
        CASES.append(Case(reader, what, outcome, said, make))
        return make

    return enter


class Malicious:
    """Would create the file `done` when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "done"

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


# COCO JSON


def coco(folder: Path, scenes: Path, change: Callable[[dict[str, Any]], Any]) -> list[object]:
    content = json.loads((scenes / "train.json").read_text())
    change(content)
    (folder / "labels.json").write_text(json.dumps(content))
    return data(folder, scenes)


def data(folder: Path, scenes: Path) -> list[object]:
    words = ["finetune", "--init", "scratch", "--data", folder / "labels.json", "--images", scenes / "images"]
    return [*words, *TINY]


def names(name: str) -> Make:
    return lambda folder, scenes: coco(folder, scenes, lambda content: content["images"][0].update(file_name=name))


def boxes(**entry: Any) -> Make:
    return lambda folder, scenes: coco(folder, scenes, lambda content: content["annotations"][0].update(entry))


def raw(content: bytes) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        (folder / "labels.json").write_bytes(content)
        return data(folder, scenes)

    return make


def checked(make: Make) -> Make:
    """The same labels given to `check`, which reports in place of refusing."""

    def command(folder: Path, scenes: Path) -> Sequence[object]:
        make(folder, scenes)
        return ["check", "--data", folder / "labels.json", "--images", scenes / "images", "--json", "--workers", "1"]

    return command


COCO = "COCO JSON"
case(COCO, "a name with `..`", "refused", "leaves the images' folder")(names("a/../../secret.jpg"))
case(COCO, "a name with `..` and backslashes", "refused", "leaves the images' folder")(names("a\\..\\..\\secret.jpg"))
case(COCO, "an absolute name", "refused", "is outside")(names("/etc/secret.jpg"))
case(COCO, "a name with a drive letter", "refused", "is outside")(names("C:\\secret.jpg"))
case(COCO, "a name of another machine (`\\\\host\\share`)", "refused", "is outside")(
    names("\\\\host\\share\\secret.jpg")
)
case(COCO, "a name with a zero byte", "refused", "as no file can be called")(names("a\0.jpg"))
case(COCO, "a name that is half a letter (surrogate)", "refused", "as no file can be called")(names("\ud800.jpg"))
case(COCO, "a name of 100,000 letters", "refused", "are not in")(names("a" * 100_000 + ".jpg"))
case(COCO, "a name with a line break and terminal codes", "refused", "\\x1b[31m")(names("a\n\x1b[31mb.jpg"))
case(COCO, "brackets 100,000 deep", "refused", "nested too deeply")(raw(b"[" * 100_000))
case(COCO, "objects 100,000 deep", "refused", "nested too deeply")(raw(b'{"a":' * 100_000))
case(COCO, "a number of 10,000 digits", "refused", "Exceeds the limit")(raw(b'{"images": [' + b"9" * 10_000 + b"]}"))
case(COCO, "a key that stands twice", "refused", "stands twice")(raw(b'{"images": [], "images": []}'))
case(COCO, "bytes that are no UTF-8", "refused", "no text in UTF-8")(raw(b'{"images": "\xff\xfe\xfd"}'))
case(COCO, "an empty file", "refused", "is not JSON")(raw(b""))
case(COCO, "gzip in place of text", "refused", "is not JSON")(raw(gzip.compress(b'{"images": []}')))
case(COCO, "a list in place of an object", "refused", "it has no list")(raw(b"[1, 2]"))
case(COCO, "a mark (BOM) at the beginning", "refused", 'the list "images" is empty')(
    raw(b'\xef\xbb\xbf{"images": [], "annotations": [], "categories": []}')
)
case(COCO, "an id beyond 64 bits", "refused", "not a whole number of 64 bits")(
    lambda folder, scenes: coco(folder, scenes, lambda content: content["images"][0].update(id=10**30))
)
case(COCO, "a box of words", "refused", "no “bbox” of four numbers".replace("“", '"').replace("”", '"'))(
    boxes(bbox=["a", "b", "c", "d"])
)
case(COCO, "`iscrowd` that is neither 0 nor 1", "refused", "has the iscrowd 'yes'")(boxes(iscrowd="yes"))
case(COCO, "a NaN in a box", "counted", '"not_finite": 1')(checked(boxes(bbox=[float("nan"), 1, 2, 3])))
case(COCO, "an infinite box", "counted", '"not_finite": 1')(checked(boxes(bbox=[0, 0, float("inf"), 3])))
case(COCO, "a box of 400-digit numbers", "counted", '"not_finite": 1')(checked(boxes(bbox=[0, 0, 10**400, 3])))


@case(COCO, "a file of 1 TiB, nearly all of it holes", "refused", "GiB of memory")
def enormous(folder: Path, scenes: Path) -> Sequence[object]:
    (folder / "labels.json").write_bytes(b"{")
    os.truncate(folder / "labels.json", 2**40)
    return ["check", "--data", folder / "labels.json", "--images", scenes / "images", "--workers", "1"]


@case(COCO, "HTML as the name of a class", "counted", "<script>")
def html_class(folder: Path, scenes: Path) -> Sequence[object]:
    coco(folder, scenes, lambda content: content["categories"][0].update(name="<script>alert(1)</script>"))
    return ["check", "--data", folder / "labels.json", "--images", scenes / "images", "--json", "--workers", "1"]


# Pascal VOC


def voc(xml: bytes) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        (folder / "Annotations").mkdir()
        (folder / "JPEGImages").mkdir()
        (folder / "Annotations" / "a.xml").write_bytes(xml)
        Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / "a.jpg")
        return ["finetune", "--init", "scratch", "--data", folder, *TINY]

    return make


def xml(inside: str, head: str = "") -> bytes:
    return f"<?xml version='1.0'?>{head}<annotation>{inside}</annotation>".encode()


def laughs() -> bytes:
    lines = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    return xml("<object><name>&l9;</name></object>", f'<!DOCTYPE x [<!ENTITY l0 "ha">{lines}]>')


VOC = "Pascal VOC XML"
OUTER = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
OBJECT = "<object><name>cat</name><bndbox>{}</bndbox></object>"
case(VOC, "entities that expand to 10⁹ letters", "refused", "declares a document type")(voc(laughs()))
case(VOC, "an entity that is a file", "refused", "declares a document type")(voc(xml("&e;", OUTER)))
case(VOC, "a document type elsewhere", "refused", "declares a document type")(
    voc(xml("", '<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">'))
)
case(VOC, "tags that are not closed", "refused", "is not XML")(voc(b"<annotation><object>"))
case(VOC, "an encoding that nobody has", "refused", "is not XML")(voc(b"<?xml version='1.0' encoding='x-none'?><a/>"))
case(VOC, "an empty file", "refused", "is not XML")(voc(b""))
case(VOC, "a box without numbers", "refused", "without four numbers")(voc(xml(OBJECT.format("<xmin>²</xmin>"))))
case(VOC, "a size of digits that are no numbers", "refused", "without four numbers")(
    voc(xml("<size><width>²</width><height>9</height></size>" + OBJECT.format("")))
)


@case(VOC, "a list of images that is no text", "refused", "is no list of images")
def voc_list(folder: Path, scenes: Path) -> Sequence[object]:
    voc(xml(OBJECT.format("")))(folder, scenes)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe")
    return ["finetune", "--init", "scratch", "--data", folder / "ImageSets" / "Main" / "train.txt", *TINY]


# YOLO


def yolo(text: str, rows: bytes = b"0 0.5 0.5 0.2 0.2\n") -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        for name in ("images", "labels"):
            (folder / "set" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(folder / "set" / "images" / "a.jpg")
        (folder / "set" / "labels" / "a.txt").write_bytes(rows)
        (folder / "set" / "data.yaml").write_text(text)
        return ["finetune", "--init", "scratch", "--data", folder / "set" / "data.yaml", *TINY]

    return make


YOLO = "YOLO data.yaml"
SOUND = "path: .\ntrain: images\nnames: [cat]\n"
BOMB = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefghijk", "bcdefghijkl"))
case(YOLO, "a tag that makes Python run a program", "refused", "could not determine a constructor")(
    yolo('names: !!python/object/apply:os.system ["touch done"]\n')
)
case(YOLO, "aliases that stand for 2¹² words", "refused", "aliases (*name) are not read")(yolo(BOMB + SOUND))
case(YOLO, "a value that holds itself", "refused", "aliases (*name) are not read")(yolo("names: &a [*a]\n"))
case(YOLO, "brackets 5,000 deep", "refused", "nested too deeply")(yolo("names: " + "[" * 5000 + "]" * 5000))
case(YOLO, "a date that does not exist", "refused", "is not YAML")(yolo("names: 2020-13-45\n"))
case(YOLO, "a number of 100,000 bits", "refused", "a number is too large")(yolo("names: 0x" + "f" * 25_000))
case(YOLO, "a key that stands twice", "refused", "a key stands twice")(yolo(SOUND + "names: [dog]\n"))
case(YOLO, "classes numbered by words", "refused", "are no list of classes")(
    yolo("train: images\nnames: {0: cat, dog: 1}\n")
)
case(YOLO, "rows that are no text", "refused", "no text in UTF-8")(yolo(SOUND, b"\xff\xff\n"))
case(YOLO, "a class that is infinite", "refused", "class inf of 1")(yolo(SOUND, b"inf 0.5 0.5 0.2 0.2\n"))
case(YOLO, "a row of words", "refused", "expected a class and four numbers")(yolo(SOUND, b"cat a b c d\n"))
case(YOLO, "a folder of no user (`~nobody-here/x`)", "refused", "does not exist")(
    yolo("path: ~nobody-here/x\ntrain: photos\nnames: [cat]\n")
)


# Images


def image(name: str, content: bytes) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        (folder / "photos").mkdir()
        (folder / "photos" / name).write_bytes(content)
        Image.new("RGB", (40, 30)).save(folder / "photos" / "sound.png")
        return [*IMAGES, folder / "photos", "--json", "--workers", "1"]

    return make


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


PICTURE = "image"
case(PICTURE, "a head that says 10¹⁰ pixels", "counted", '"huge": ["')(image("a.png", png(100_000, 100_000)))
case(PICTURE, "a head that says 2³¹ − 1 by 2³¹ − 1", "counted", '"left_out": 1')(
    image("a.png", png(2**31 - 1, 2**31 - 1))
)
case(PICTURE, "pixels that unpack to a thousand times the file", "counted", '"left_out": 1')(
    image("a.png", png(20_000, 20_000, bytes(10_000_000)))
)
case(PICTURE, "PostScript under the name of a JPEG", "counted", '"unreadable": ["')(
    image("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(done) (w) file\n")
)
case(PICTURE, "an empty file", "counted", '"empty": ["')(image("a.jpg", b""))
case(PICTURE, "random bytes", "counted", '"unreadable": ["')(
    image("a.jpg", np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8).tobytes())
)
case(PICTURE, "a name with a line break, terminal codes and no text", "counted", '"unreadable": ["')(
    image(os.fsdecode(b"a\n\x1b[2J\xff.jpg"), b"no image")
)


@case(PICTURE, "a pipe that nobody writes to", "counted", '"unreadable": ["')
def pipe(folder: Path, scenes: Path) -> Sequence[object]:
    words = image("b.jpg", b"no image")(folder, scenes)
    os.mkfifo(folder / "photos" / "a.jpg")
    return words


@case(PICTURE, "a link to an endless device", "counted", '"unreadable": ["')
def device(folder: Path, scenes: Path) -> Sequence[object]:
    words = image("b.jpg", b"no image")(folder, scenes)
    (folder / "photos" / "a.jpg").symlink_to("/dev/zero")
    return words


@case("folder of images", "ten folders, each with links to all others", "counted", '"images": 11')
def maze(folder: Path, scenes: Path) -> Sequence[object]:
    places = [folder / "photos" / str(number) for number in range(10)]
    for place in places:
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "a.png")
        for other in places:
            (place / f"to{other.name}").symlink_to(other)
    Image.new("RGB", (8, 8)).save(folder / "photos" / "a.png")
    return [*IMAGES, folder / "photos", "--json", "--workers", "1"]


def listed(content: bytes) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        (folder / "list.txt").write_bytes(content)
        return [*IMAGES, folder / "list.txt"]

    return make


LIST = "text list"
case(LIST, "a user whose name holds a zero byte (`~\\0`)", "refused", "is not an image")(listed(b"~\x00#+"))
case(LIST, "bytes that are no text", "refused", "neither an image nor a text list")(listed(b"\xff\xfe\x00"))
case(LIST, "a zero byte in a line", "refused", "is not an image")(listed(b"a\0.jpg\n"))
case(LIST, "an empty file", "refused", "lists no image")(listed(b""))


# Shards


def tar(*members: tuple[str, bytes | tarfile.TarInfo], end: int | None = None) -> Make:
    """A folder with one tar: a sound image and these members, cut off at byte `end`."""

    def make(folder: Path, scenes: Path) -> Sequence[object]:
        (folder / "shards").mkdir()
        file = folder / "shards" / "a.tar"
        with tarfile.open(file, "w") as archive:
            for name, content in (("sound.png", png(1, 1, bytes(4))), *members):
                entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
                entry.name, entry.size = name, entry.size or (len(content) if isinstance(content, bytes) else 0)
                archive.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
        file.write_bytes(file.read_bytes()[:end])
        return [*IMAGES, folder / "shards", "--json", "--workers", "1"]

    return make


def entry(kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo()
    made.type, made.linkname, made.size = kind, target, size
    return made


def bare_tar(content: bytes) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        (folder / "a.tar").write_bytes(content)
        return [*IMAGES, folder / "a.tar"]

    return make


def long_name() -> bytes:
    return entry(tarfile.GNUTYPE_LONGNAME, size=2**30).tobuf(tarfile.GNU_FORMAT) + bytes(1024)


TAR, ALONE = "tar shard", '"images": 1'
case(TAR, "a name with `..`", "counted", ALONE)(tar(("a/../../b.png", b"x")))
case(TAR, "an absolute name", "counted", ALONE)(tar(("/etc/b.png", b"x")))
case(TAR, "a link to a file outside, and one to an endless device", "counted", ALONE)(
    tar(("b.png", entry(tarfile.SYMTYPE, "/etc/passwd")), ("c.png", entry(tarfile.SYMTYPE, "/dev/zero")))
)
case(TAR, "a hard link out of the tar", "counted", ALONE)(tar(("b.png", entry(tarfile.LNKTYPE, "/etc/passwd"))))
case(TAR, "a device and a pipe", "counted", ALONE)(
    tar(("b.png", entry(tarfile.CHRTYPE)), ("c.png", entry(tarfile.FIFOTYPE)))
)
case(TAR, "a member that is no image", "counted", '"unreadable": ["')(tar(("b.png", b"no image")))
case(TAR, "one name a hundred times", "counted", ALONE)(tar(*[("sound.png", b"x")] * 100))
case(TAR, "a name with a line break and terminal codes", "counted", '"unreadable": ["')(tar(("b\n\x1b[2J.png", b"x")))
case(TAR, "no image", "refused", "no image in the shards")(
    lambda folder, scenes: bare_tar(tar_of(folder, "a.json", b"{}"))(folder, scenes)
)
case(TAR, "a member of 10¹² bytes in a small file", "refused", "it ends early")(
    tar(("b.png", entry(tarfile.REGTYPE, size=10**12)))
)
case(TAR, "a name of 2³⁰ letters", "refused", "a head of 1073741824 bytes")(bare_tar(long_name()))
case(TAR, "an end in the middle of an image", "refused", "it ends early")(tar(("b.png", bytes(5000)), end=3000))
case(TAR, "a damaged head in the middle", "refused", "a damaged head")(
    lambda folder, scenes: bare_tar(tar_of(folder, "a.png", b"x")[:1024] + b"\xff" * 1024)(folder, scenes)
)
case(TAR, "random bytes", "refused", "it is no tar")(bare_tar(np.random.default_rng(0).bytes(4096)))
case(TAR, "gzip in place of a tar", "refused", "it is no tar")(bare_tar(gzip.compress(bytes(4096))))
case(TAR, "an empty file", "refused", "it is no tar")(bare_tar(b""))


def tar_of(folder: Path, name: str, content: bytes) -> bytes:
    with tarfile.open(folder / "x", "w") as archive:
        made = tarfile.TarInfo(name)
        made.size = len(content)
        archive.addfile(made, io.BytesIO(content))
    return (folder / "x").read_bytes()


def index(change: Callable[[ShardIndex], Any]) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        words = tar(("b.png", png(1, 1, bytes(4))))(folder, scenes)
        found = open_shards(folder / "shards")
        assert found is not None
        change(found.known)
        found.known.save(folder / "shards" / INDEX)
        return words

    return make


def far(index: ShardIndex) -> None:
    index.starts = index.starts + 10**15


def climbing(index: ShardIndex) -> None:
    index.names = np.frombuffer(index.names.tobytes().replace(b"sound", b"../nd"), np.uint8)


SHARD_INDEX = "index of shards"
case(SHARD_INDEX, "places beyond the end of the tar", "refused", "contradicts itself")(index(far))
case(SHARD_INDEX, "an image called `../…`", "refused", "contradicts itself")(index(climbing))
case(SHARD_INDEX, "a shard in another folder", "refused", "is no index of shards")(
    index(lambda index: index.tars.__setitem__(0, "../a.tar"))
)
case(SHARD_INDEX, "settings that are a list", "refused", "is no index of shards")(
    index(lambda index: setattr(index, "written", {"settings": []}))
)


@case(SHARD_INDEX, "random bytes", "refused", "is no index of shards")
def no_index(folder: Path, scenes: Path) -> Sequence[object]:
    words = tar()(folder, scenes)
    (folder / "shards" / INDEX).write_bytes(np.random.default_rng(0).bytes(4096))
    return words


# Weights


def weights(name: str, write: Callable[[Path], Any]) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        write(folder / name)
        words = ["finetune", "--init", folder / name, "--data", scenes / "train.json", *TINY]
        return [*words, "--steps", 1, "--workers", 0]

    return make


def written(content: bytes) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(content)


def tensors_with(head: dict[str, Any], body: bytes = b"") -> Callable[[Path], Any]:
    text = json.dumps(head).encode()
    return written(struct.pack("<Q", len(text)) + text + body)


def noted(note: Any) -> Callable[[Path], Any]:
    text = note if isinstance(note, str) else json.dumps(note)
    return lambda file: save_file({"a": torch.zeros(4)}, file, {"selfdet": text})


def cut(file: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])


WEIGHTS, F32 = "weights", {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
DETECTOR = {
    **{"kind": "detector", "detector": "fcos", "backbone": "test_resnet", "options": {}},
    **{"classes": ["a"], "category_ids": [1], "image_size": 96},
}
case(WEIGHTS, "safetensors that promise more bytes than there are", "refused", "damaged safetensors")(
    weights("a.safetensors", tensors_with({"a": F32}, b"1234"))
)
case(WEIGHTS, "safetensors of 10¹⁸ elements", "refused", "damaged safetensors")(
    weights("a.safetensors", tensors_with({"a": {**F32, "shape": [10**9, 10**9]}}, bytes(16)))
)
case(WEIGHTS, "safetensors whose head is 2⁶³ bytes", "refused", "damaged safetensors")(
    weights("a.safetensors", written(struct.pack("<Q", 2**63 - 1) + b"{}"))
)
case(WEIGHTS, "safetensors whose tensors overlap", "refused", "damaged safetensors")(
    weights("a.safetensors", tensors_with({"a": F32, "b": F32}, bytes(16)))
)
case(WEIGHTS, "a note with brackets 100,000 deep", "refused", "of the backbone fits")(
    weights("a.safetensors", noted("[" * 100_000))
)
case(WEIGHTS, "a note with a backbone that is a list", "refused", "says of itself backbone")(
    weights("a.safetensors", noted({**DETECTOR, "backbone": ["x"]}))
)
case(WEIGHTS, "a note that wants 10⁹ channels", "refused", "says of itself options")(
    weights("a.safetensors", noted({**DETECTOR, "options": {"fpn_channels": 10**9}}))
)
case(WEIGHTS, "a note that wants 10,000 convolutions", "refused", "too large to build")(
    weights("a.safetensors", noted({**DETECTOR, "options": {"fpn_channels": 256, "head_convs": 10_000}}))
)
case(WEIGHTS, "a note with an option that does not exist", "refused", "unexpected keyword argument")(
    weights("a.safetensors", noted({**DETECTOR, "options": {"evil": 1}}))
)


@case(WEIGHTS, "a note with a backbone from a hub", "refused", "unknown backbone")
def hub(folder: Path, scenes: Path) -> Sequence[object]:
    noted({**DETECTOR, "backbone": "hf-hub:someone/something"})(folder / "a.safetensors")
    return ["predict", "--init", folder / "a.safetensors", "--images", scenes / "images", "--out", "OUT"]


case(WEIGHTS, "a pickle that runs a program", "refused", "was not executed")(
    weights("a.pt", lambda file: torch.save({"state_dict": {}, "more": Malicious(file.parent)}, file))
)
case(WEIGHTS, "a bare pickle that runs a program", "refused", "was not executed")(
    weights("a.pth", lambda file: file.write_bytes(pickle.dumps(Malicious(file.parent))))
)
case(WEIGHTS, "a file of torch that is cut off", "refused", "nor a readable torch file")(weights("a.pt", cut))
case(WEIGHTS, "an empty file", "refused", "nor a readable torch file")(weights("a.pt", written(b"")))
case(WEIGHTS, "one number that says it is 10¹²", "refused", "are not what they say they are")(
    weights("a.pt", lambda file: torch.save({"a": torch.zeros(1).expand(10**12)}, file))
)
case(WEIGHTS, "a sparse tensor of 10¹² elements", "refused", "is not a plain tensor")(
    weights("a.pt", lambda file: torch.save({"a": torch.sparse_coo_tensor(size=(10**6, 10**6))}, file))
)


# Boxes of others, proposals, unfinished work


def given(content: Any) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / "given.json").write_bytes(text)
        words = ["proposals", "--images", scenes / "images", "--boxes", folder / "given.json"]
        return [*words, "--out", "OUT.json", "--workers", 1]

    return make


GIVEN = "boxes of others"
case(GIVEN, "brackets 100,000 deep", "refused", "nested too deeply")(given(b"[" * 100_000))
case(GIVEN, "an image number beyond 64 bits", "refused", 'no "image_id"')(
    given([{"image_id": 10**30, "bbox": [1] * 4}])
)
case(GIVEN, "a box of words", "refused", 'no "bbox" of four numbers')(given([{"image_id": 1, "bbox": ["a"] * 4}]))
case(GIVEN, "boxes that are NaN, infinite and 10⁴⁰⁰", "counted", "not finite or outside their image: 3")(
    given(
        [
            {"image_id": 1, "bbox": [5, 5, 40, 40]},
            {"image_id": 1, "bbox": [float("nan"), 0, 9, 9]},
            {"image_id": 1, "bbox": [0, 0, float("inf"), 9]},
            {"image_id": 1, "bbox": [0, 0, 10**400, 9]},
        ]
    )
)


def found_before(lines: bytes) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        (folder / "OUT.json.unfinished.jsonl").write_bytes(lines)
        return ["proposals", "--images", scenes / "images", "--out", folder / "OUT.json", "--resume", "--workers", 1]

    return make


UNFINISHED = "unfinished proposals"
case(UNFINISHED, "garbage", "refused", "line 1 is not as selfdet proposals writes it")(found_before(b"\xff\xff\n"))
case(UNFINISHED, "a list in place of settings", "refused", "line 1 is not as selfdet proposals writes it")(
    found_before(b"[[[1]]]\n")
)


def stored(change: Callable[[dict[str, Any]], Any]) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        content = json.loads((scenes / "train.json").read_text())
        from selfdet.proposing.store import fingerprint

        images = ((each["file_name"], each["width"], each["height"]) for each in content["images"])
        counts = {"images": 10, "boxes": 1, "images_without_boxes": 0, "dropped": 0, "fallback": {}}
        content["info"] = {"fingerprint": fingerprint(images), "skipped": {}, "counts": counts}
        content["categories"] = [{"id": 1, "name": "object"}]
        content["info"]["skipped"] = {"unreadable": sorted(file.name for file in (scenes / "images").glob("val*"))}
        for entry in content["annotations"]:
            entry["category_id"] = 1
        change(content)
        (folder / "boxes.json").write_text(json.dumps(content))
        words = ["pretrain", "--stages", "detector", "--images", scenes / "images", "--boxes", folder / "boxes.json"]
        return [*words, *TINY]

    return make


STORED = "proposals file"
case(STORED, "another list of images than it was made for", "refused", "its list of images is not the one")(
    stored(lambda content: content["images"][0].update(width=97))
)
case(STORED, "counts that are words", "refused", "is not a file of selfdet proposals")(
    stored(lambda content: content["info"].update(counts={"images": "many"}))
)
case(STORED, "no boxes at all", "refused", "holds no boxes")(stored(lambda content: content.update(annotations=[])))


# Settings


def config(text: str) -> Make:
    def make(folder: Path, scenes: Path) -> Sequence[object]:
        (folder / "run.yaml").write_text(text)
        return ["pretrain", "--images", scenes / "images", "--config", folder / "run.yaml", *TINY]

    return make


CONFIG = "`--config` YAML"
case(CONFIG, "a tag that makes Python run a program", "refused", "could not determine a constructor")(
    config('steps: !!python/object/apply:os.system ["touch done"]\n')
)
case(CONFIG, "the name of a class to build", "refused", "unknown key")(
    config("backbone-stage:\n  class_path: subprocess.Popen\n  init_args: {args: touch done}\n")
)
case(CONFIG, "aliases that stand for 2¹² words", "refused", "aliases (*name) are not read")(config(BOMB))
case(CONFIG, "brackets 5,000 deep", "refused", "nested too deeply")(config("steps: " + "[" * 5000 + "]" * 5000))
case(CONFIG, "a key that stands twice", "refused", "a key stands twice")(config("steps: 1\nsteps: 2\n"))
case(CONFIG, "a list in place of keys", "refused", "expected keys with values")(config("- 1\n- 2\n"))
case(CONFIG, "a number of 100,000 bits", "refused", "a number is too large")(config("steps: 0x" + "f" * 25_000))
