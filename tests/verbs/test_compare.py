"""A comparison is fair: its starts differ in nothing but their weights, and what is finished is never done again."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfdet import cli
from selfdet.data.labels import load_labels
from selfdet.data.subset import fraction_subset
from selfdet.errors import UserError
from selfdet.training.defaults import detector_lr
from selfdet.training.rundir import RunDir
from selfdet.verbs.compare import compare
from selfdet.verbs.compare_cells import best_multiple, command
from selfdet.verbs.evaluate import evaluate
from tiny_runs import COMPARE, flags


@pytest.fixture(scope="module", autouse=True)
def no_pages_of_cells() -> Iterator[None]:
    """A page and its pictures are not what is tested here, and take longer than such a cell."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("report_at_the_end", "plot_training"):
            patch.setattr(sys.modules["selfdet.verbs.finetune"], name, lambda *_: None)
        yield


@pytest.fixture(scope="module")
def given(scenes: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is compared, in files of its own."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(scenes, folder / "scenes")
    shutil.copy(pretrained / "backbone.safetensors", folder / "pre.safetensors")
    return {
        "init": ["scratch", str(folder / "pre.safetensors")],
        "data": str(folder / "scenes" / "train.json"),
        "val_data": str(folder / "scenes" / "val.json"),
        "out": str(folder / "out"),
        "miss_rate": True,
        **COMPARE,
    }


@pytest.fixture(scope="module")
def found(given: dict[str, Any]) -> dict[str, Any]:
    return compare(**given)


def cells(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in Path(given["out"]).glob("cells/*/cell.json")}


def test_every_start_is_trained_with_every_seed(given: dict[str, Any], found: dict[str, Any]) -> None:
    names = {"scratch-0.4-s0", "scratch-0.4-s1", "pre-0.4-s0", "pre-0.4-s1"}
    rates = {"rate-scratch-1", "rate-scratch-0.5", "rate-pre-1", "rate-pre-0.5"}
    assert set(cells(given)) == names | rates
    assert found["finished"] is True
    assert {(row["start"], row["n"]) for row in found["table"]} == {("scratch", 2), ("pre", 2)}
    out = Path(given["out"])
    assert all((out / name).is_file() for name in ("report.html", "results.csv", "results.json", "log.txt"))


def test_the_starts_of_a_seed_differ_in_their_weights_and_rate_alone(
    given: dict[str, Any], found: dict[str, Any]
) -> None:
    for seed in (0, 1):
        one, other = (
            yaml.safe_load((Path(given["out"]) / "cells" / f"{start}-0.4-s{seed}" / "config.yaml").read_text())
            for start in ("scratch", "pre")
        )
        assert {name for name in one if one[name] != other[name]} - {"lr"} == {"init"}
    assert cells(given)["pre-0.4-s0"]["subset"] != cells(given)["pre-0.4-s1"]["subset"]


def test_learning_rates_are_chosen_on_training_images_that_were_not_learned_from(
    given: dict[str, Any], found: dict[str, Any]
) -> None:
    done = cells(given)
    out = Path(given["out"])
    for start in ("scratch", "pre"):
        tried = {multiple: done[f"rate-{start}-{multiple:g}"] for multiple in given["lr_grid"]}
        best = best_multiple(tried.values(), start)
        assert {cell["labels"] for cell in tried.values()} == {3}
        assert {cell["images"] for cell in tried.values()} == {4}
        assert done[f"{start}-0.4-s1"]["lr"] == pytest.approx(best * detector_lr(4, "fcos").value)
    outside = {image["file_name"] for image in json.loads((out / "labels/0.3-s0-outside.json").read_text())["images"]}
    config = yaml.safe_load((out / "cells" / "rate-pre-1" / "config.yaml").read_text())
    assert config["data"] == given["data"]
    assert config["val_data"] is None
    labels = load_labels(given["data"])
    ids = [record.image_id for record in labels.records]
    learned = {record.path.name for record in labels.subset(fraction_subset(ids, 0.3, 0).image_ids).records}
    assert outside < {record.path.name for record in labels.records} - learned


def test_a_cell_is_evaluated_once_on_val_data_and_its_curve_is_of_other_images(
    given: dict[str, Any], found: dict[str, Any]
) -> None:
    cell = cells(given)["pre-0.4-s0"]
    run = Path(given["out"]) / "cells" / "pre-0.4-s0"
    scores = evaluate(init=str(run), data=given["val_data"], miss_rate=True, precision="fp32", threads=1)
    assert cell["AP"] == scores["AP"]
    assert cell["miss_rate"] == scores["miss_rate"]
    assert "miss_rate" not in cells(given)["rate-pre-1"]  # there it chooses nothing
    assert cell["images"] == 5
    assert [step for step, _ in cell["curve"]] == [0, 2]
    assert cell["outside"] == 4
    assert yaml.safe_load((run / "config.yaml").read_text())["val_data"].endswith("0.4-s0-outside.json")


def test_the_command_of_a_cell_trains_it_again(given: dict[str, Any], found: dict[str, Any], tmp_path: Path) -> None:
    words = cells(given)["pre-0.4-s1"]["command"].split()[1:]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert cli.main([*words, "--workers", "0"]) == 0
    again, first = (
        folder / "metrics.jsonl" for folder in (tmp_path / "again", Path(given["out"]) / "cells/pre-0.4-s1")
    )
    assert again.read_bytes() == first.read_bytes()


def test_what_only_a_continuation_needs_is_removed_and_the_weights_are_kept(
    given: dict[str, Any], found: dict[str, Any]
) -> None:
    out = Path(given["out"])
    assert not list(out.glob("cells/*/*.pt"))
    assert {file.parent.name for file in out.glob("cells/*/detector.safetensors")} == {
        name for name in cells(given) if not name.startswith("rate")
    }


def test_a_finished_comparison_is_left_as_it_is(
    given: dict[str, Any], found: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdet.verbs.compare_cells.finetune", None)  # nothing is trained
    before = {file: file.read_bytes() for file in Path(given["out"]).rglob("*") if file.is_file()}
    words = {name: list(map(str, value)) if isinstance(value, list) else value for name, value in given.items()}
    del words["miss_rate"]
    assert cli.main(["compare", *flags(words), "--miss-rate", "--resume", "--json"]) == 0
    answer = capsys.readouterr().out
    assert json.loads(answer)["finished"] is True
    assert answer.count("\n") == 1
    assert {file: file.read_bytes() for file in Path(given["out"]).rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["scenes/train.json", "scenes/val.json", "pre.safetensors"])
def test_data_or_weights_that_have_changed_are_refused_by_name(
    given: dict[str, Any], found: dict[str, Any], name: str
) -> None:
    file = Path(given["out"]).parent / name
    kept = file.read_bytes()
    try:
        if file.suffix == ".json":
            coco = json.loads(kept)
            coco["annotations"] = coco["annotations"][:-1]
            file.write_text(json.dumps(coco))
        else:
            file.write_bytes(kept[:-4] + b"\0\0\0\0")
        with pytest.raises(UserError, match=rf"{Path(name).name} has changed since the comparison"):
            compare(**given, resume=True)
    finally:
        file.write_bytes(kept)


def test_images_that_have_changed_are_refused(given: dict[str, Any], found: dict[str, Any]) -> None:
    file = sorted((Path(given["data"]).parent / "images").glob("train_*"))[3]
    kept = file.read_bytes()
    try:
        file.write_bytes(kept + b"\0")
        with pytest.raises(UserError, match=r"the images of .*train.json has changed"):
            compare(**given, resume=True)
    finally:
        file.write_bytes(kept)


def test_a_continuation_with_other_settings_is_refused(given: dict[str, Any], found: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"weight_decay is 0\.0001 in this run but 0\.1 now"):
        compare(**given | {"weight_decay": 0.1}, resume=True)
    with pytest.raises(UserError, match="is not empty"):
        compare(**given)


def test_a_comparison_whose_time_was_up_goes_on(given: dict[str, Any], tmp_path: Path) -> None:
    alone = {**given, "out": str(tmp_path / "out"), "seeds": 1, "lr": 0.01, "shots": [1], "fractions": None}
    first = compare(**alone, max_time=1e-6)
    assert (first["finished"], first["planned"]) == (False, 2)
    assert compare(**alone, resume=True)["finished"] is True
    shots = cells(alone)["pre-1shot-s0"]
    assert shots["shots"] == 1
    assert "fraction" not in shots
    labels = load_labels(tmp_path / "out" / "labels" / "1shot-s0-labels.json", Path(given["data"]).parent / "images")
    assert {label for record in labels.records for label in record.labels.tolist()} == {0, 1, 2, 3}


def test_the_best_rate_has_the_highest_ap_and_is_the_usual_one_if_none_found_anything() -> None:
    def tried(*pairs: tuple[float, float | None]) -> list[dict[str, Any]]:
        return [{"kind": "rate", "start": "a", "multiple": multiple, "AP": ap} for multiple, ap in pairs]

    assert best_multiple(tried((0.5, 0.1), (1.0, 0.3), (2.0, 0.2)), "a") == 1.0
    assert best_multiple(tried((0.5, 0.3), (1.0, 0.3), (2.0, None)), "a") == 0.5
    assert best_multiple(tried((0.25, 0.0), (1.5, 0.0), (4.0, None)), "a") == 1.5


def test_a_command_says_what_was_told() -> None:
    told = {"init": "a b", "keep_box_outputs": True, "resume": False, "val_data": None, "scale_jitter": (0.8, 1.0)}
    assert command("finetune", told) == "selfdet finetune --init 'a b' --keep-box-outputs --scale-jitter 0.8 1.0"


def test_the_time_of_a_cell_counts_all_sittings(tmp_path: Path) -> None:
    rows = [{"step": step, "seconds": seconds} for step, seconds in ((2, 1.0), (4, 3.0), (6, 0.5), (8, 2.0))]
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 10, "sec')
    assert RunDir(tmp_path).training_seconds() == 5.0
    assert RunDir(tmp_path / "none").training_seconds() == 0.0
