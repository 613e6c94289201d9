"""Every way a command can end has its exit code and its words, and `--json` keeps stdout to one object."""

from __future__ import annotations

import json
import keyword
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from example_verb import bake
from selfdet import cli
from selfdet.cli_flags import flags_of
from selfdet.cli_help import verb_help
from selfdet.errors import UserError
from selfdet.training.stop import Interrupted

INPUTS = ["--images", "photos", "--out", "runs/one"]
Capture = pytest.CaptureFixture[str]


def run(verb: Callable[..., Any], *words: str) -> int:
    """Run the command line on a table of one verb."""
    name = verb.__name__.replace("_", "-")
    return cli.main([name, *words], verbs={name: "A test's own verb."}, load={name: verb}.__getitem__)


def test_a_verb_prints_for_people_and_exits_with_0(capfd: Capture) -> None:
    assert run(bake, *INPUTS) == 0
    assert capfd.readouterr() == ("baking 10\n", "")


def test_json_is_the_result_alone_on_stdout(capfd: Capture) -> None:
    assert run(bake, *INPUTS, "--json", "--epochs", "3") == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"images": "photos", "epochs": 3}
    assert err == "baking 3\n"


def test_json_keeps_stdout_clean_of_all_that_others_write() -> None:
    code = """
import ctypes, logging, os, subprocess, sys
from selfdet import cli

handler = logging.StreamHandler(sys.stdout)  # holds the stream itself

def noisy() -> dict:
    print("printed")
    os.write(1, b"written\\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    handler.emit(logging.makeLogRecord({"msg": "logged"}))
    if sys.platform != "win32":
        ctypes.CDLL(None).puts(b"buffered in C")
    return {"done": True}

print("before")
cli.main(["noisy", "--json"], verbs={"noisy": ""}, load=lambda verb: noisy)
print("afterwards")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'before\n{"done": true}\nafterwards\n'
    expected = ["printed", "written", "from a child", "logged"] + ["buffered in C"] * (sys.platform != "win32")
    assert sorted(done.stderr.splitlines()) == sorted(expected)


def test_json_takes_paths_arrays_and_tensors_and_has_null_for_what_is_not_a_number(capfd: Capture) -> None:
    def measure() -> dict[Any, Any]:
        return {
            "path": Path("runs") / "one",
            "nan": float("nan"),
            "infinite": np.float32("inf"),
            "scalar": np.int64(3),
            "tensor": torch.tensor([[1.5, float("nan")]], dtype=torch.bfloat16),
            "zero_d": torch.tensor(True),
            "tuple": (1, None, "é"),
            7: np.arange(2),
        }

    assert run(measure, "--json") == 0
    assert json.loads(capfd.readouterr().out) == {
        "path": str(Path("runs") / "one"),
        "nan": None,
        "infinite": None,
        "scalar": 3,
        "tensor": [[1.5, None]],
        "zero_d": True,
        "tuple": [1, None, "é"],
        "7": [0, 1],
    }


def fail_for_the_user() -> dict[str, Any]:
    """Fail as a verb does for a mistake of the user."""
    raise UserError("photos: no images found", "Give a folder")


def fail_for_us() -> dict[str, Any]:
    """Fail as a verb does that has a fault."""
    raise ValueError("broken")


def stop_by_hand() -> dict[str, Any]:
    """Stop as a verb does on Ctrl-C."""
    raise KeyboardInterrupt


def stop_by_library() -> dict[str, Any]:
    """Stop as a library does that thinks itself the program."""
    sys.exit(3)


def stop_by_signal() -> dict[str, Any]:
    """Stop as a run does that saved itself on SIGTERM."""
    raise Interrupted("stopped by SIGTERM", step=7, number=15)


def test_a_mistake_of_the_user_is_one_line_and_exits_with_2(capfd: Capture) -> None:
    assert run(fail_for_the_user) == 2
    assert capfd.readouterr() == ("", "selfdet: error: photos: no images found. Give a folder\n")


def test_a_fault_of_ours_shows_its_traceback_and_exits_with_1(capfd: Capture) -> None:
    assert run(fail_for_us) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert "ValueError: broken" in err


def test_a_run_that_saved_itself_says_how_to_go_on(capfd: Capture) -> None:
    assert run(stop_by_signal) == 143
    assert capfd.readouterr() == ("", f"selfdet: stopped by SIGTERM at step 7. {cli.RESUME}\n")


def test_an_interrupt_is_one_line_and_exits_with_130(capfd: Capture) -> None:
    assert run(stop_by_hand) == 130
    assert capfd.readouterr() == ("", "selfdet: interrupted\n")


@pytest.mark.parametrize(
    ("verb", "code", "error"),
    [
        (fail_for_the_user, 2, {"message": "photos: no images found", "hint": "Give a folder"}),
        (fail_for_us, 1, {"message": "ValueError: broken", "hint": cli.OUR_FAULT}),
        (stop_by_hand, 130, {"message": "interrupted", "hint": ""}),
        (stop_by_library, 3, {"message": "stopped with exit code 3", "hint": ""}),
        (stop_by_signal, 143, {"message": "stopped by SIGTERM at step 7", "hint": cli.RESUME}),
    ],
)
def test_with_json_a_failure_is_an_error_object(
    capfd: Capture, verb: Callable[..., Any], code: int, error: dict[str, str]
) -> None:
    assert run(verb, "--json") == code
    assert json.loads(capfd.readouterr().out) == {"error": error}


def test_with_json_mistaken_flags_are_an_error_object_too(capfd: Capture) -> None:
    assert run(bake, "--json", "--epoch", "3") == 2
    assert json.loads(capfd.readouterr().out)["error"]["hint"] == "Did you mean --epochs?"


def test_a_result_without_json_form_is_a_fault_of_ours(capfd: Capture) -> None:
    def odd() -> dict[str, Any]:
        return {"object": object()}

    assert run(odd, "--json") == 1
    assert "which has no JSON form" in json.loads(capfd.readouterr().out)["error"]["message"]


def test_an_unknown_verb_gets_the_nearest(capfd: Capture) -> None:
    assert cli.main(["pretrian", "--help"]) == 2
    assert cli.main(["zzz"]) == 2
    assert cli.main(["--epochs", "3", "pretrain"]) == 2
    first, second, third = capfd.readouterr().err.splitlines()
    assert first == "selfdet: error: there is no verb 'pretrian'. Did you mean pretrain?"
    assert "The verbs are demo, check, shard, proposals, pretrain" in second
    assert "The verb comes first" in third


def test_help_of_a_verb_shows_types_defaults_units_and_an_example(capfd: Capture) -> None:
    assert run(bake, "--help") == 0
    text = capfd.readouterr().out
    for line in (
        "usage: selfdet bake --images TEXT --out PATH [flags]",
        "Bake images.",
        "--images TEXT Folder, glob, text list or COCO JSON.",
        "--batch-size INT Images a step; default from the number of images.",
        "--lr FLOAT Learning rate per 256 images. (default: none)",
        "--limit INT|TEXT (default: auto)",
        "--scale FLOAT FLOAT (default: 0.2 1)",
        "--stages {proposals,backbone,detector} ... (default: none)",
        "--resume (switch; default: off)",
        "--flip, --no-flip Mirror half of the images. (switch; default: on)",
        "backbone-stage (Only for the backbone):",
        "--backbone-stage.epochs INT Passes over the images in this stage. (default: 100)",
        "--config TEXT ... YAML",
        "--json exactly one JSON object",
        "example: selfdet bake --images photos --out runs/one",
    ):
        assert line in " ".join(text.split())
    assert "Raises" not in text


def test_help_lists_the_verbs_without_importing_torch_or_jsonargparse() -> None:
    code = (
        "import sys; from selfdet.__main__ import main\n"
        "for words in (['--help'], ['--version'], []):\n    sys.argv[1:] = words; assert main() == 0\n"
        "assert not {'torch', 'numpy', 'jsonargparse', 'yaml'} & set(sys.modules), 'heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {verb} " in done.stdout for verb in cli.VERBS)


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "selfdet", "pretrian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_listed_verb_is_a_function_whose_help_explains_every_flag(verb: str) -> None:
    function = cli.load_verb(verb)
    flags = flags_of(function)
    assert not [flag.name for flag in flags if not flag.description]
    assert not [flag.name for flag in flags if keyword.iskeyword(flag.key.split(".")[-1].strip("_"))]
    assert not {"config", "json", "help"} & {flag.key for flag in flags}
    assert "example:" in verb_help(verb, function)


def test_a_reader_that_leaves_early_is_no_fault() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "selfdet", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
