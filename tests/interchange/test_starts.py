"""What `--init` and `--backbone-weights` name becomes a backbone or a detector, or an error that says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfdet.data.images import PIXELS
from selfdet.data.labels import Labels, load_labels
from selfdet.errors import UserError
from selfdet.interchange import starts
from selfdet.interchange.starts import (
    NOTE,
    build_detector,
    detector_note,
    fill_backbone,
    load_backbone,
    load_detector,
    match_categories,
    resolve_start,
    save_backbone,
    save_detector,
)
from selfdet.interchange.weights import read_weights
from selfdet.models.backbones import build_backbone
from tiny_runs import BACKBONE

OPTIONS = {"fpn_channels": 64, "head_convs": 1, "image_size": 96}


def test_a_run_stands_for_its_detector_or_else_its_backbone(pretrained: Path, finetuned: Path) -> None:
    assert resolve_start("scratch").kind == "scratch"
    for run, kind in ((pretrained, "backbone"), (finetuned, "detector")):
        start = resolve_start(str(run))
        assert start.kind == kind
        assert start.source == str(run / f"{kind}.safetensors")
        assert start.note["backbone"] == BACKBONE
        again = resolve_start(start.source)
        assert (again.kind, again.note) == (kind, start.note)
    assert resolve_start(str(pretrained)).note["detector"] == "fcos"


def test_a_checkpoint_of_a_run_may_be_named_like_a_weights_file(pretrained: Path, finetuned: Path) -> None:
    for run in (pretrained, finetuned):
        final, last = resolve_start(str(run)), resolve_start(str(run / "last.pt"))
        assert (last.kind, last.note) == (final.kind, final.note)
        assert last.state.keys() == final.state.keys()
        assert all(value.equal(final.state[name]) for name, value in last.state.items())


def test_a_library_is_named_with_its_backbone() -> None:
    start = resolve_start("library:resnet18")
    assert (start.kind, start.note) == ("library", {"backbone": "resnet18"})
    with pytest.raises(UserError, match="names no backbone"):
        resolve_start("library:")


def test_a_torch_file_without_a_note_is_a_backbone(tmp_path: Path) -> None:
    net = build_backbone(BACKBONE).net
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    start = resolve_start(str(tmp_path / "weights.pth"))
    assert (start.kind, start.note) == ("backbone", {})
    backbone, report = load_backbone(BACKBONE, str(tmp_path / "weights.pth"))
    assert report is not None
    assert report.rows["backbone"].share == 1.0
    assert all(value.equal(backbone.net.state_dict()[name]) for name, value in net.state_dict().items())


def test_what_is_no_start_is_refused_under_the_flag_it_was_given_with(tmp_path: Path) -> None:
    for flag in ("--init", "--backbone-weights"):
        with pytest.raises(UserError, match=f"^{flag} nothing does not exist"):
            resolve_start("nothing", flag)
    with pytest.raises(UserError, match="is not a run directory"):
        resolve_start(str(tmp_path))


@pytest.mark.parametrize("note", ["not JSON", "[1]", json.dumps({"kind": "detector", "backbone": BACKBONE})])
def test_a_note_that_is_damaged_is_no_traceback(tmp_path: Path, note: str) -> None:
    save_file(build_backbone(BACKBONE).net.state_dict(), tmp_path / "a.safetensors", {NOTE: note})
    if note.startswith("{"):
        with pytest.raises(UserError, match="does not say how its detector is built"):
            resolve_start(str(tmp_path / "a.safetensors"))
    else:
        assert resolve_start(str(tmp_path / "a.safetensors")).note == {}


def test_a_backbone_starts_from_the_backbone_of_a_detector(finetuned: Path) -> None:
    backbone, report = load_backbone(BACKBONE, str(finetuned))
    assert report is not None
    row = report.rows["backbone"]
    assert (row.share, row.missing, row.unexpected) == (1.0, 0, 0)
    given = load_file(finetuned / "detector.safetensors")
    for name, value in backbone.net.state_dict().items():
        assert value.equal(given[f"backbone.body.{name}"])


def test_random_and_library_starts_have_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    ordinary = build_backbone

    def build(name: str, weights: str | None = None) -> Any:
        asked.append((name, weights))
        return ordinary(name)

    monkeypatch.setattr(starts, "build_backbone", build)
    for weights in (None, "random", "scratch", "library", f"library:{BACKBONE}"):
        assert load_backbone(BACKBONE, weights)[1] is None
    assert [weights for _, weights in asked] == [None, None, None, "library", "library"]
    with pytest.raises(UserError, match="disagree") as refused:
        load_backbone(BACKBONE, "library:resnet18")
    assert refused.value.hint == "Add --backbone resnet18"


def test_errors_name_the_file_and_the_backbone_to_ask_for(pretrained: Path) -> None:
    start = resolve_start(str(pretrained))
    with pytest.raises(UserError) as refused:
        fill_backbone(build_backbone("resnet18"), start)
    assert refused.value.message.startswith(str(pretrained))
    assert refused.value.hint == f"These weights are a {BACKBONE}: add --backbone {BACKBONE}"


def test_the_start_says_what_nobody_else_does(pretrained: Path, finetuned: Path) -> None:
    net, report = build_detector(resolve_start(str(pretrained)), 2, None, None, OPTIONS)
    assert net.backbone.name == BACKBONE
    assert report is not None
    assert {part: row.share for part, row in report.rows.items()} == {"backbone": 1, "neck": 0, "head": 0, "last": 0}
    assert sum(row.size for row in report.rows.values()) == sum(
        value.numel() for value in net.net.state_dict().values() if value.is_floating_point()
    )
    again, report = build_detector(resolve_start(str(finetuned)), 7, None, None, {"batch_norm": "frozen"})
    assert again.config()["options"] | {"batch_norm": "train"} == load_detector(str(finetuned))[0].config()["options"]
    assert report is not None
    assert {part: row.share for part, row in report.rows.items()} == {"backbone": 1, "neck": 1, "head": 1, "last": 0}


def test_a_detector_of_other_options_is_refused(finetuned: Path) -> None:
    with pytest.raises(UserError, match="of the neck fits") as refused:
        build_detector(resolve_start(str(finetuned)), 4, None, None, {"fpn_channels": 96, "batch_norm": "frozen"})
    assert refused.value.hint == "Leave out --fpn-channels: the start has its own"
    start = resolve_start(str(finetuned))
    start.note["options"] = {**start.note["options"], "from_the_future": 1}
    with pytest.raises(UserError, match="from_the_future") as refused:
        build_detector(start, 4, None, None, {})
    assert refused.value.hint == "Use the version of selfdet that wrote it"
    start.note["detector"] = "yolo"
    with pytest.raises(UserError, match="unknown detector 'yolo'"):
        build_detector(start, 4, None, None, {})


def test_what_is_saved_is_rebuilt_to_the_bit(scenes: Path, tmp_path: Path) -> None:
    labels = load_labels(scenes / "train.json")
    net, _ = build_detector(resolve_start("scratch"), len(labels.classes), "fcos", BACKBONE, OPTIONS)
    note = detector_note(net, labels.classes, labels.category_ids, 96)
    save_detector(tmp_path / "detector.safetensors", net, note)
    loaded, told = load_detector(str(tmp_path / "detector.safetensors"))
    assert told == note
    assert told["classes"] == labels.classes
    for name, value in loaded.net.state_dict().items():
        assert value.equal(net.net.state_dict()[name])
    save_backbone(tmp_path / "backbone.safetensors", net.backbone, {"method": "densecl"})
    start = resolve_start(str(tmp_path / "backbone.safetensors"))
    own = {"kind": "backbone", "backbone": BACKBONE, "library": "timm", "pixels": PIXELS}
    assert start.note == {**own, "method": "densecl"}


def test_weights_say_what_became_of_channels_and_bit_depths(pretrained: Path, finetuned: Path) -> None:
    assert resolve_start(str(pretrained)).note["pixels"] == PIXELS
    assert resolve_start(str(finetuned)).note["pixels"] == PIXELS


def test_a_detector_file_that_lacks_a_tensor_is_refused(finetuned: Path, pretrained: Path, tmp_path: Path) -> None:
    state, metadata = read_weights(finetuned / "detector.safetensors")
    del state["head.classification_head.cls_logits.bias"]
    save_file(state, tmp_path / "detector.safetensors", metadata)
    with pytest.raises(UserError, match=r"does not fit its own description: .*cls_logits\.bias"):
        load_detector(str(tmp_path / "detector.safetensors"))
    with pytest.raises(UserError, match=r"holds no detector \(backbone\)"):
        load_detector(str(pretrained))
    with pytest.raises(UserError, match=r"holds no detector \(scratch\)"):
        load_detector("scratch")


def labels_of(*categories: tuple[int, str]) -> Labels:
    return Labels(
        Path("val.json"), [name for _, name in categories], [number for number, _ in categories], [], {}, {}, ""
    )


def test_categories_are_matched_by_name_in_the_detectors_order() -> None:
    assert match_categories(["cat", "dog"], labels_of((3, "dog"), (9, "cat"), (11, "cow"))) == [9, 3]
    # Equal names are told apart by their place, where the lists are the same.
    assert match_categories(["cat", "cat"], labels_of((3, "cat"), (9, "cat"))) == [3, 9]
    with pytest.raises(UserError, match=r"val\.json has no category 'dog'; it has cat"):
        match_categories(["cat", "dog"], labels_of((1, "cat")))


def test_both_copies_of_a_composite_backbone_start_from_the_plain_network(tmp_path: Path) -> None:
    file = tmp_path / "plain.safetensors"
    plain = build_backbone("resnet18")
    save_backbone(file, plain, {})
    backbone, report = load_backbone("cb-resnet18", str(file))
    assert report is not None
    size = sum(value.numel() for value in plain.net.state_dict().values() if value.is_floating_point())
    assert {part: row.reused for part, row in report.rows.items()} == {"assistant": size, "lead": size, "neck": 0}
    state = backbone.net.state_dict()
    for name, value in plain.net.state_dict().items():
        assert value.equal(state[f"assistant.{name}"])
        assert value.equal(state[f"lead.{name}"])
    _, report = build_detector(resolve_start(str(file)), 2, "fcos", "cb-resnet18", OPTIONS)
    assert report is not None
    assert report.rows["assistant"].share == report.rows["lead"].share == 1
    connections = sum(v.numel() for n, v in state.items() if "connections" in n and v.is_floating_point())
    assert report.rows["neck"].reinitialised > connections
    # What was composed is taken over whole, its connections with it.
    with torch.no_grad():
        backbone.net.connections[0][0][1].weight.fill_(3.0)
    save_backbone(file, backbone, {})
    again, report = load_backbone("cb-resnet18", str(file))
    assert report is not None
    assert report.rows["backbone"].share == 1
    assert all(value.equal(again.net.state_dict()[name]) for name, value in backbone.net.state_dict().items())


def test_a_composite_backbone_refuses_another_network(tmp_path: Path) -> None:
    save_backbone(tmp_path / "b.safetensors", build_backbone("resnet34"), {})
    with pytest.raises(UserError, match="of the assistant fits") as refused:
        load_backbone("cb-resnet50", str(tmp_path / "b.safetensors"))
    assert "--backbone cb-resnet34" in refused.value.hint
