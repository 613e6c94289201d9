"""Words and YAML become the arguments of a verb, or one line that says what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from example_verb import StageSettings, bake
from selfdet.cli_flags import arguments, flags_of
from selfdet.errors import UserError
from selfdet.verbs.pretrain import pretrain

INPUTS = ["--images", "photos", "--out", "runs/one"]


def given(*words: str) -> dict[str, Any]:
    """The arguments `bake` gets for these words after the required ones."""
    return arguments("bake", bake, [*INPUTS, *words])


def refused(*words: str) -> str:
    """The one line with which these words are refused."""
    with pytest.raises(UserError) as caught:
        given(*words)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_what_is_not_given_has_the_default_of_the_signature() -> None:
    defaults = {flag.key: flag.default for flag in flags_of(bake) if flag.key not in ("images", "out")}
    got = given()
    assert got["images"] == "photos"
    assert got["out"] == Path("runs/one")
    assert all(got[key] == default for key, default in defaults.items() if "." not in key)
    assert got["backbone_stage"] == StageSettings(epochs=100)
    assert got["detector_stage"] is None


@pytest.mark.parametrize("words", [["--batch-size", "4"], ["--batch-size=4"], ["--batch_size", "4"]])
def test_a_hyphenated_flag_sets_the_underscored_argument(words: list[str]) -> None:
    assert given(*words)["batch_size"] == 4


@pytest.mark.parametrize(
    "words",
    [
        ["--init", "a", "--init", "b", "--init", "c"],
        ["--init", "a", "b", "c"],
        ["--init", "a,b,c"],
        ["--init=a,b", "c"],
        ["--init", "a,", "b", "--resume", "--init", "c"],
    ],
)
def test_lists_are_repeated_or_separated_by_spaces_or_commas(words: list[str]) -> None:
    assert given(*words)["init"] == ["a", "b", "c"]


def test_list_elements_have_the_type_of_the_signature() -> None:
    assert given("--fractions", "0.01,1e-1", "1")["fractions"] == [0.01, 0.1, 1.0]
    assert given("--sizes", "1", "--sizes", "-2")["sizes"] == [1, -2]
    assert given("--stages", "backbone", "detector")["stages"] == ["backbone", "detector"]
    assert given("--init", "001", "null", "1e3")["init"] == ["001", "null", "1e3"]
    assert given("--scale", "0.5,0.75")["scale"] == (0.5, 0.75)


def test_switches_take_no_value_and_each_has_an_opposite() -> None:
    assert given("--resume", "--no-flip")["resume"] is True
    assert given("--resume", "--no-flip")["flip"] is False
    assert given("--no-resume", "--flip")["resume"] is False
    assert given("--backbone-stage.no-flip")["backbone_stage"].flip is False
    assert "--resume is a switch and takes no value, not 'yes'" in refused("--resume=yes")
    assert "--resume is a switch and takes no value, not 'yes'" in refused("--resume", "yes")


def test_unions_and_optional_types_take_what_they_name() -> None:
    assert given("--limit", "5")["limit"] == 5
    assert given("--limit", "none")["limit"] == "none"
    assert given("--lr", "-1e-3")["lr"] == -0.001
    assert given("--epochs", "3", "--epochs", "4")["epochs"] == 4


def test_text_stays_text_whatever_it_looks_like() -> None:
    for text in ("2024", "null", "true", "{a: b}", "[x]*.jpg", "a: b", "x=y", "a,b"):
        assert arguments("bake", bake, ["--images", text, "--out", "o"])["images"] == text


def test_settings_of_a_stage_are_dotted_flags() -> None:
    got = given("--backbone-stage.batch-size", "4", "--detector-stage.epochs=5")
    assert got["backbone_stage"] == StageSettings(epochs=100, batch_size=4)
    assert got["detector_stage"] == StageSettings(epochs=5)


def test_yaml_takes_hyphens_and_underscores_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "batch-size: 4\ndetector_stage:\n  batch-size: 2\nbackbone-stage: {epochs: 5}\nresume: true\nlr: 1e-3\n"
        "init: a,b\nfractions: 0.5\nsizes: [1, 2]\nbackbone-stage.batch_size: 3\nepochs: 7\n"
    )
    got = given("--sizes", "9", "--config", str(file), "--epochs", "8", "--detector-stage.epochs", "1", "--no-resume")
    assert (got["batch_size"], got["lr"], got["init"]) == (4, 0.001, ["a", "b"])
    assert got["fractions"] == [0.5]
    assert got["backbone_stage"] == StageSettings(epochs=5, batch_size=3)
    assert got["detector_stage"] == StageSettings(epochs=1, batch_size=2)
    assert (got["sizes"], got["epochs"], got["resume"]) == ([9], 8, False)


def test_required_flags_may_stand_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("images: photos\nout: runs/one\n")
    assert arguments("bake", bake, ["--config", str(tmp_path / "run.yaml")]) == given()


def test_a_later_yaml_file_wins(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("epochs: 1\nlr: 1\n")
    (tmp_path / "two.yaml").write_text("epochs: 2\n")
    got = given("--config", str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml"))
    assert (got["epochs"], got["lr"]) == (2, 1.0)


def test_a_flag_wins_over_what_a_yaml_file_says_of_a_stage_or_of_the_length_in_the_other_way(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("detector-stage: {epochs: 12, batch-size: 16, lr: 0.02, samples: 5, momentum: 0.5}\nsteps: 90\n")
    words = ["--images", "photos", "--out", "runs/pre", "--config", str(file)]

    def pretraining(*typed: str) -> tuple[Any, ...]:
        got = arguments("pretrain", pretrain, [*words, *typed])
        stage = got["detector_stage"].over(**{name: got[name] for name in ("epochs", "steps", "batch_size", "lr")})
        return stage.epochs, stage.steps, stage.batch_size, stage.lr, stage.samples, stage.momentum

    assert pretraining() == (12, None, 16, 0.02, 5, 0.5)
    assert pretraining("--steps", "2", "--batch-size", "4") == (None, 2, 4, 0.02, 5, 0.5)
    assert pretraining("--epochs", "3", "--lr", "0.1", "--momentum", "0.9") == (3, None, 16, 0.1, 5, 0.5)
    assert pretraining("--detector-stage.steps", "3", "--steps", "2") == (None, 3, 16, 0.02, 5, 0.5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("batchsize: 4", ["run.yaml", "batchsize", "batch-size"]),
        ("backbone-stage: {epoch: 4}", ["run.yaml", "backbone-stage.epoch", "backbone-stage.epochs"]),
        ("backbone-stage: 4", ["backbone-stage in", "run.yaml", "4"]),
        ("epochs: ten", ["epochs in", "run.yaml", "'ten'", "a whole number"]),
        ("epochs: true", ["epochs in", "run.yaml", "'True'", "a whole number"]),
        ("lr: [1]", ["lr in", "run.yaml", "'1'", "a number"]),
        ("- 1", ["run.yaml", "[1]", "key: value"]),
        ("a: [", ["run.yaml", "not YAML", "line 1"]),
        ("batch-size: 1\nbatch_size: 2", ["run.yaml", "batch_size", "twice"]),
        ("json: true", ["run.yaml", "json"]),
    ],
)
def test_a_mistake_in_yaml_is_named_with_its_file(tmp_path: Path, content: str, words: list[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    line = refused("--config", str(file))
    assert all(word in line for word in words), line


def test_a_missing_yaml_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml cannot be read" in refused("--config", str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--epoch", "4"], ["no flag --epoch", "Did you mean --epochs?"]),
        (["-epochs", "4"], ["no flag -epochs", "Did you mean --epochs?"]),
        (["--batchsize=4"], ["no flag --batchsize", "Did you mean --batch-size?"]),
        (["--backbone-stage.epoch", "4"], ["Did you mean --backbone-stage.epochs?"]),
        (["--zzz", "4"], ["no flag --zzz", "selfdet bake --help"]),
        (["--epochs", "ten"], ["--epochs is 'ten'", "a whole number"]),
        (["--epochs", "1.5"], ["--epochs is '1.5'", "a whole number"]),
        (["--lr", "fast"], ["--lr is 'fast'", "a number"]),
        (["--detector-stage.epochs", "x"], ["--detector-stage.epochs is 'x'", "a whole number"]),
        (["--fractions", "0.1", "x"], ["--fractions is '0.1 x'", "a number"]),
        (["--scale", "0.1"], ["--scale is '0.1'", "2 values", "a number"]),
        (["--matching", "geometrik"], ["'geometrik'", "max-similarity, geometric, random", "Did you mean geometric?"]),
        (["--stages", "backbones"], ["--stages is 'backbones'", "Did you mean backbone?"]),
        (["--epochs"], ["--epochs needs a value", "a whole number"]),
        (["--epochs", "--resume"], ["--epochs needs a value"]),
        (["--init", ","], ["--init needs a value"]),
        (["--epochs", "1", "2"], ["--epochs takes one value", "'2'"]),
        (["--", "x"], ["no flag --"]),
    ],
)
def test_a_mistaken_flag_gets_its_name_value_and_expectation(words: list[str], parts: list[str]) -> None:
    line = refused(*words)
    assert all(part in line for part in parts), line


def test_a_pattern_expanded_by_the_shell_gets_advice() -> None:
    with pytest.raises(UserError, match=r"--images takes one value; 'b.jpg' is one too many.*quotes"):
        arguments("bake", bake, ["--images", "a.jpg", "b.jpg"])


def test_a_positional_input_gets_advice() -> None:
    with pytest.raises(UserError, match=r"'photos' stands without a flag.*--images photos"):
        arguments("bake", bake, ["photos"])


def test_all_missing_flags_are_named_at_once() -> None:
    with pytest.raises(UserError, match=r"bake needs --images and --out.*selfdet bake --help"):
        arguments("bake", bake, ["--epochs", "1"])
