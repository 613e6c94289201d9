"""What goes out in a format comes in again equal; a file with one fault is refused whole, whatever the format."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.detectors.rcnn_scenes import small_faster, small_mask
from tests.detectors.scenes import sample
from torch import Tensor

from selfdet import import_weights, pull, push
from selfdet.errors import UserError
from selfdet.interchange.export_backbone import write_backbone
from selfdet.interchange.export_detector import write_detector
from selfdet.interchange.export_lightly import write_lightly
from selfdet.interchange.export_mmdet import export_peer
from selfdet.interchange.export_transformers_backbone import write_transformers_backbone
from selfdet.interchange.imports import NotTakenError
from selfdet.interchange.outgoing import Outgoing
from selfdet.interchange.starts import detector_note, load_detector, save_detector
from selfdet.interchange.targets import open_outgoing
from selfdet.interchange.weights import read_weights, write_safetensors
from selfdet.models.backbones import build_backbone

State = dict[str, Tensor]
CLASSES = ["cat", "dog"]


def resnet() -> Outgoing:
    torch.manual_seed(0)
    return Outgoing("backbone", build_backbone("resnet18"), {}, "runs/pre")


def mobilenet() -> Outgoing:
    torch.manual_seed(0)
    return Outgoing("backbone", build_backbone("mobilenetv3_small_050"), {}, "runs/pre")


def detector(regions: str) -> Outgoing:
    build = small_mask if regions == "exact" else small_faster
    made = build(num_classes=2, image_size=64, regions=regions)
    return Outgoing("detector", made, detector_note(made, CLASSES, [17, 18], 64), "runs/ft")


def as_torchvision(folder: Path, given: Outgoing) -> Path:
    if given.kind == "backbone":
        write_backbone(folder, given.network, given.note)
    else:
        write_detector(folder, given.network, given.note)
    return folder / f"{given.kind}.safetensors"


def as_lightly(folder: Path, given: Outgoing) -> Path:
    write_lightly(folder, given.network)
    return folder / "backbone.pt"


def as_transformers(folder: Path, given: Outgoing) -> Path:
    write_transformers_backbone(folder, given.network)
    return folder / "model.safetensors"


def as_peer(library: str) -> Callable[[Path, Outgoing], Path]:
    def write(folder: Path, given: Outgoing) -> Path:
        export_peer(folder, given, library)
        return folder / f"{given.kind}.pth"

    return write


def pushed(folder: Path, given: Outgoing) -> Path:
    save_detector(folder / "own.safetensors", given.network, given.note)
    push(init=str(folder / "own.safetensors"), to=str(folder / "hub"))
    pull(init=str(folder / "hub"), out=str(folder / "pulled"))
    return folder / "pulled" / "model.safetensors"


@dataclass(frozen=True)
class Trip:
    """A network, what writes it to a file, and the words with which `import-weights` reads that; none, and it is a
    start as it is."""

    network: Callable[[], Outgoing]
    write: Callable[[Path, Outgoing], Path]
    words: dict[str, Any] | None = None

    def read(self, file: Path) -> Path:
        """The weights file of selfdet that the file becomes."""
        if self.words is None:
            return file
        import_weights(file=str(file), out=str(file.with_name("read.safetensors")), **self.words)
        return file.with_name("read.safetensors")


D2 = {"format": "detectron2", "pixels": "rgb"}
TRIPS = {
    "torchvision backbone": Trip(resnet, as_torchvision, {"format": "torchvision"}),
    "torchvision detector": Trip(lambda: detector("rounded"), as_torchvision),
    "timm": Trip(mobilenet, as_torchvision, {"format": "timm", "backbone": "mobilenetv3_small_050"}),
    "lightly-train": Trip(resnet, as_lightly, {"format": "torchvision"}),
    "transformers backbone": Trip(resnet, as_transformers, {"format": "transformers"}),
    "mmdet backbone": Trip(resnet, as_peer("mmdet"), {"format": "mmdet", "part": "backbone"}),
    "mmdet": Trip(lambda: detector("exact"), as_peer("mmdet"), {"format": "mmdet"}),
    "mmdet rounded": Trip(lambda: detector("rounded"), as_peer("mmdet"), {"format": "mmdet"}),
    "detectron2 backbone": Trip(resnet, as_peer("detectron2"), D2),
    "detectron2": Trip(lambda: detector("exact"), as_peer("detectron2"), {**D2, "part": "detector"}),
    "hub": Trip(lambda: detector("exact"), pushed),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Outgoing, Path]]:
    """The network of a trip and its file, written once."""
    done: dict[str, tuple[Outgoing, Path]] = {}

    def write(key: str) -> tuple[Outgoing, Path]:
        if key not in done:
            given = TRIPS[key].network()
            done[key] = given, TRIPS[key].write(tmp_path_factory.mktemp("trip"), given)
        return done[key]

    return write


@pytest.mark.parametrize("key", TRIPS)
def test_out_and_in_again_is_the_same(written: Any, key: str) -> None:
    given, file = written(key)
    file = TRIPS[key].read(file)
    if given.kind == "backbone":
        state, _ = read_weights(file)
        own = given.network.net.state_dict()
        assert state.keys() == own.keys()
        assert all(torch.equal(value, own[name]) for name, value in state.items())
        return
    again, note = load_detector(str(file))
    assert note["classes"] == CLASSES
    assert again.config() == given.network.config()
    (expected,), (found,) = (each.predict([sample(64, 48)]) for each in (given.network, again))
    assert len(expected["scores"]) > 0
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def wrong_prefix(state: State) -> State:
    return {
        f"model.{name}" if any(part in name for part in ("layer3", "res4", "blocks.3", "stages.2.")) else name: v
        for name, v in state.items()
    }


def half(state: State) -> State:
    return {name: value for row, (name, value) in enumerate(state.items()) if row % 2 == 0}


def widest(state: State) -> str:
    return max((name for name, value in state.items() if value.dim() == 4), key=lambda name: state[name].numel())


def another_width(state: State) -> State:
    return {**state, widest(state): state[widest(state)][:-1]}


def transposed(state: State) -> State:
    name = next(n for n, v in state.items() if v.dim() == 4 and v.shape[0] != v.shape[1])
    return {**state, name: state[name].transpose(0, 1).contiguous()}


def not_finite(state: State) -> State:
    value = state[widest(state)].clone()
    value[0, 0] = torch.nan
    return {**state, widest(state): value}


def extra_class(state: State) -> State:
    names = [name for name in state if "fc_cls." in name or "cls_score." in name]
    return {**state, **{name: torch.cat([state[name], state[name][:1]]) for name in names}}


FAULTS = (half, another_width, transposed, not_finite, extra_class)
QUICK = ("torchvision backbone", "mmdet")  # the other formats go the same ways


def with_fault(file: Path, folder: Path, fault: Callable[[State], State]) -> Path:
    """A copy of a file whose tensors have a fault, and whose settings don't."""
    made = folder / file.name
    if file.suffix == ".safetensors":
        _, metadata = read_weights(file)
        write_safetensors(made, fault(load_file(file)), metadata)
        return made
    content = torch.load(file, weights_only=True)
    key = next((each for each in ("state_dict", "model") if each in content), None)
    torch.save(fault(content) if key is None else {**content, key: fault(content[key])}, made)
    return made


def refused(trip: Trip, file: Path, folder: Path, fault: Callable[[State], State]) -> UserError:
    """The refusal of a file with a fault, after which nothing is there but the file."""
    broken = with_fault(file, folder, fault)

    def read() -> Any:
        return open_outgoing(str(broken)) if trip.words is None else trip.read(broken)

    with pytest.raises(UserError) as caught:
        read()
    assert os.listdir(folder) == [broken.name]
    return caught.value


@pytest.mark.parametrize("key", TRIPS)
def test_a_file_with_one_wrong_prefix_is_refused(written: Any, tmp_path: Path, key: str) -> None:
    _, file = written(key)
    error = refused(TRIPS[key], file, tmp_path, wrong_prefix)
    assert "missing" in error.message or "only" in error.message
    if TRIPS[key].words is not None:
        assert isinstance(error, NotTakenError)
        assert sum(row.missing for row in error.report.rows.values()) > 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("key", [pytest.param(key, marks=() if key in QUICK else pytest.mark.slow) for key in TRIPS])
def test_a_file_with_another_fault_is_refused(written: Any, tmp_path: Path, key: str, fault: Any) -> None:
    given, file = written(key)
    if fault is extra_class and given.kind == "backbone":
        pytest.skip("a backbone has no classes")
    error = refused(TRIPS[key], file, tmp_path, fault)
    if TRIPS[key].words is not None and fault in (half, another_width, transposed):
        # With the table of what would have fitted.
        assert isinstance(error, NotTakenError)
        assert sum(row.missing + row.mismatched for row in error.report.rows.values()) > 0


@pytest.mark.parametrize("key", [key for key, trip in TRIPS.items() if trip.words is not None])
def test_another_format_is_refused(written: Any, tmp_path: Path, key: str) -> None:
    _, file = written(key)
    with pytest.raises(UserError, match=r"--format simmim|names"):
        import_weights(file=str(file), out=str(tmp_path / "x.safetensors"), format="simmim")
    assert not os.listdir(tmp_path)
