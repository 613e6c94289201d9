"""`selfdet doctor`: whether this machine can do what selfdet needs, tried and not guessed."""

from __future__ import annotations

import getpass
import platform
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from selfdet.data.synthetic import make_scenes
from selfdet.errors import UserError
from selfdet.training.log import Reporter, plural
from selfdet.verbs.compare_cells import in_its_own_log
from selfdet.verbs.doctor_checks import Check, machine_checks
from selfdet.verbs.finetune import finetune
from selfdet.verbs.pretrain import pretrain
from selfdet.verbs.proposals import proposals

SMALL: dict[str, Any] = {"backbone": "test_resnet", "steps": 2, "batch_size": 4, "log_every": 1, "workers": 0}
WIDTHS: dict[str, Any] = {"fpn_channels": 64, "head_convs": 1, "image_size": 64}
PASTE = "For a bug report, paste the lines below. They hold no paths and no names."


def doctor(*, quick: bool = False) -> dict[str, Any]:
    """Check the installation and the machine, then take two steps of each stage on generated scenes.

    Every line is ok, a warning or a fault, with what to do. The stages run in a temporary folder, which is removed.
    Warnings leave the exit code 0.

    Args:
        quick: leave the stages out; they take half a minute.

    Raises: UserError when there is a fault. What a stage raises that the user can't mend is raised again.

    Example:
        selfdet doctor
    """
    reporter = Reporter()
    checks: list[Check] = []
    raised: list[Exception] = []
    for check in machine_checks(Path.cwd()):
        checks.append(check)
        reporter.line(check.line)
    if not quick:
        with tempfile.TemporaryDirectory() as scratch:
            for check in stage_checks(Path(scratch), raised):
                checks.append(check)
                reporter.line(check.line)
    faults = [check for check in checks if check.status == "fault"]
    warnings = sum(check.status == "warning" for check in checks)
    reporter.line(f"{plural(len(faults), 'fault')}, {plural(warnings, 'warning')}")
    reporter.line(f"\n{PASTE}\n\n{bug_report(checks, raised)}")
    if raised:
        raise raised[0]
    if faults:
        raise UserError(f"{faults[0].name}: {faults[0].words}", faults[0].advice or "Report this")
    return {"checks": [check.to_dict() for check in checks], "faults": 0, "warnings": warnings}


def stage_checks(folder: Path, raised: list[Exception]) -> Iterator[Check]:
    """Two steps of each stage, each from what the one before it left; what they raise unasked is kept in `raised`."""
    labels, images = make_scenes(folder, count=8, size=64), str(folder / "images")
    boxes, runs = str(folder / "boxes.json"), folder / "runs"
    stages: list[tuple[str, Callable[[], Any]]] = [
        ("proposals", lambda: proposals(images=images, out=boxes, workers=1, side=64)),
        (
            "backbone stage",
            lambda: pretrain(
                images=images, out=str(runs / "backbone"), stages=["backbone"], image_size=64, queue_length=64, **SMALL
            ),
        ),
        (
            "detector stage",
            lambda: pretrain(
                images=images,
                out=str(runs / "detector"),
                stages=["detector"],
                boxes=boxes,
                backbone_weights=str(runs / "backbone"),
                **SMALL,
                **WIDTHS,
            ),
        ),
        (
            "fine-tuning",
            lambda: finetune(
                init=str(runs / "detector"), data=str(labels), val_data=None, out=str(runs / "finetune"), **SMALL
            ),
        ),
    ]
    for name, stage in stages:
        try:
            with in_its_own_log():
                stage()
        except UserError as error:
            yield Check(name, "fault", _anonymous(error.message, folder), _anonymous(error.hint, folder))
            return
        except Exception as error:  # whatever it is, it belongs into the report, and is raised behind it
            raised.append(error)
            words = _anonymous(f"{type(error).__name__}: {error}", folder)
            yield Check(name, "fault", words, "report this with the lines below")
            return
        yield Check(name, "ok", "two steps" if name != "proposals" else "boxes in 8 generated scenes")


def bug_report(checks: Sequence[Check], raised: Sequence[Exception]) -> str:
    """The lines to paste: all checks, and where a stage failed, without what tells the user."""
    lines = [check.line for check in checks]
    frames = (frame for error in raised for frame in traceback.extract_tb(error.__traceback__))
    lines += [f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames]
    return "\n".join(_anonymous(line) for line in lines)


def _anonymous(text: str, folder: Path | None = None) -> str:
    """The text without the names of folders, user and machine."""
    hidden = {str(folder): "FOLDER"} if folder is not None else {}
    hidden |= {str(Path.cwd()): "HERE", str(Path.home()): "~", tempfile.gettempdir(): "TEMP"}
    for told, instead in hidden.items():
        if len(told) > 1:
            text = text.replace(told, instead)
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no user of this number
        user = ""
    for name in (user, platform.node()):
        text = text.replace(name, "…") if len(name) > 3 else text
    return text
