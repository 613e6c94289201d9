"""The command line: finds the verb, calls its function, and turns the end into an exit code.

`selfdet --help` has to answer at once, so this file knows the verbs by name only. Their modules, and torch with them,
are imported when a verb is asked for; jsonargparse and the help text likewise.

Exit codes: 0 done (for a run stopped by `--max-time` too: its result says that it is not finished), 1 a fault of
selfdet (traceback on stderr), 2 a mistake the user can mend (one line on stderr); of a run that was stopped by a
signal 128 + its number (130 for Ctrl-C).
With `--json` stdout carries exactly one JSON object, whatever happens.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any

from selfdet.cli_json import stdout_to_stderr, to_json
from selfdet.data.disk import full_disk
from selfdet.errors import UserError
from selfdet.training.stop import Interrupted

Verb = Callable[..., Any]

VERBS: dict[str, str] = {
    "demo": "Run every step on generated scenes, in minutes on a laptop.",
    "check": "Report what is wrong or odd with images and labels; convert labels.",
    "shard": "Write images into tar shards, for many images on slow or remote disks.",
    "proposals": "Find boxes that may contain objects, without labels.",
    "pretrain": "Pre-train backbone, neck and head of a detector from unlabelled images.",
    "finetune": "Train a detector on labelled images, from scratch or from a pre-trained start.",
    "compare": "Measure which start is best with how many labels, and how certain that is.",
    "evaluate": "Measure a detector's COCO AP on labelled images.",
    "predict": "Find objects in images; write COCO results and pictures with boxes.",
    "probe": "Measure what a backbone's frozen features tell apart, in seconds.",
    "correspond": "Show which places of two views backbones take for the same, and which are.",
    "doctor": "Check this machine and installation; print what a bug report needs.",
    "export": "Write a detector or backbone for use without selfdet.",
    "import-weights": "Convert another program's weights into a start for training.",
    "push": "Upload weights to the Hugging Face hub, or to a folder like it.",
    "pull": "Download weights from the Hugging Face hub as a start.",
    "report": "Show a run on one page: settings, results and curves, in pictures and words.",
}

OUR_FAULT = "This is a fault of selfdet: please report it with the traceback on stderr"

RESUME = "The run is saved; the same command with --resume continues it"


def load_verb(verb: str) -> Verb:
    """Import the function behind a verb: `selfdet.verbs.<verb>.<verb>`, with `_` for `-`."""
    name = verb.replace("-", "_")
    function: Verb = getattr(import_module(f"selfdet.verbs.{name}"), name)
    return function


def main(
    argv: Sequence[str] | None = None, verbs: Mapping[str, str] = VERBS, load: Callable[[str], Verb] = load_verb
) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The words after `selfdet`; default those of this process.
        verbs: Each verb's name and one-line description.
        load: Gives the function of a verb.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        _tell(overview(verbs))
        return 0
    if words[0] == "--version":
        from selfdet import __version__

        print(f"selfdet {__version__}")
        return 0
    as_json = "--json" in words
    asks_help = bool({"-h", "--help"} & set(words))
    with stdout_to_stderr() if as_json and not asks_help else nullcontext():
        code, answer = _guarded(words, verbs, load, asks_help)
    if as_json and answer and _is_first_process():
        _tell(answer)
    return code


def _tell(text: str) -> None:
    """Print for a reader that may have left already, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_first_process() -> bool:
    """Whether this is the one of several processes of a run that answers; launchers number them so."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _guarded(
    words: list[str], verbs: Mapping[str, str], load: Callable[[str], Verb], asks_help: bool
) -> tuple[int, str]:
    """Run the verb; return the exit code and the JSON text for stdout."""
    try:
        return 0, _run(words, verbs, load, asks_help)
    except UserError as error:
        print(f"selfdet: error: {error}", file=sys.stderr)
        return 2, _error_json(error.message, error.hint)
    except Interrupted as stop:
        print(f"selfdet: {stop}. {RESUME}", file=sys.stderr)
        return 128 + stop.signal, _error_json(str(stop), RESUME)
    except KeyboardInterrupt as stop:
        message = str(stop) or "interrupted"
        print(f"selfdet: {message}", file=sys.stderr)
        return 130, _error_json(message)
    except SystemExit as stop:  # from a library
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return code, _error_json(f"stopped with exit code {code}")
    except Exception as error:
        if (full := full_disk(error)) is not None:  # of a file that says nothing of it itself
            print(f"selfdet: error: {full}", file=sys.stderr)
            return 2, _error_json(full.message, full.hint)
        traceback.print_exc()
        print(f"selfdet: {OUR_FAULT}", file=sys.stderr)
        return 1, _error_json(f"{type(error).__name__}: {error}", OUR_FAULT)


def _run(words: list[str], verbs: Mapping[str, str], load: Callable[[str], Verb], asks_help: bool) -> str:
    """Call the verb's function with the flags of the command line; return its result as JSON text."""
    verb, *rest = words
    if verb.startswith("-"):
        raise UserError(f"{verb} stands before the verb", "The verb comes first: selfdet VERB [flags]")
    if verb not in verbs:
        near = difflib.get_close_matches(verb, verbs, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"The verbs are {', '.join(verbs)}"
        raise UserError(f"there is no verb '{verb}'", hint)
    function = load(verb)
    if asks_help:
        from selfdet.cli_help import verb_help

        _tell(verb_help(verb, function))
        return ""
    from selfdet.cli_flags import arguments

    return to_json(function(**arguments(verb, function, rest)) or {})


def _error_json(message: str, hint: str = "") -> str:
    return to_json({"error": {"message": message, "hint": hint}})


def overview(verbs: Mapping[str, str]) -> str:
    """The text of `selfdet --help`."""
    width = max(map(len, verbs))
    return "\n".join(
        [
            "usage: selfdet VERB [flags]",
            "",
            "Pre-train whole object detectors from unlabelled images, and measure with few labels whether it helped.",
            "",
            "verbs:",
            *(f"  {verb:{width}}  {description}" for verb, description in verbs.items()),
            "",
            "`selfdet VERB --help` shows a verb's flags with an example, `selfdet --version` the version.",
            "Every verb takes --config (flags from YAML, or a recipe's name) and --json (one JSON object on stdout).",
            "Exit codes: 0 done, 1 a fault of selfdet, 2 a mistake in the command or its files.",
        ]
    )
