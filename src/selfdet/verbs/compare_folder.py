"""The folder of a comparison, which several processes may open at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdet.data.untrusted import parse_json
from selfdet.errors import UserError
from selfdet.training.leases import Leases
from selfdet.training.rundir import RunDir, check_out_is_new

POLL = 1.0  # seconds between two looks at what other processes hold


def settings_of(out: str, resume: bool) -> dict[str, Any] | None:
    """The settings of the comparison in a folder, None of a new one.

    Raises: UserError when the folder holds anything and `resume` is off, or anything else than a comparison.
    """
    check_out_is_new(out, resume)
    run = RunDir(out)
    if run.config_file.is_file():
        config = run.read_config()
        if config.get("verb") != "compare":
            raise UserError(f"{out} is a run of {config.get('verb')}, not of compare", "Name a new folder")
        return config
    if run.path.is_dir() and any(child.name != "leases" for child in run.path.iterdir()):
        raise UserError(f"{out} has no config.yaml, so it is no comparison to resume", "Name a new folder")
    return None


def open_folder(out: str, config: Mapping[str, Any]) -> tuple[RunDir, Leases]:
    """Make the folder of a new comparison, or open one and compare its settings; of several processes one makes it.

    Raises: UserError naming the file that has changed since the comparison began, or the setting that is another now.
    """
    run = RunDir(out)
    try:
        leases = Leases(run.path / "leases")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}", "Name another folder") from None
    while not run.config_file.is_file():
        lease = leases.claim("config")
        if lease is None:
            time.sleep(POLL)
            continue
        with lease:
            if not run.config_file.is_file():
                run.write_config(config)
    stored = run.read_config().get("files", {})
    for file, digest in config["files"].items():
        if stored.get(file, digest) != digest:
            raise UserError(
                f"{file} has changed since the comparison in {out} began: its hash was {stored[file]} and is {digest}",
                "Restore it, or start a new comparison in another folder",
            )
    return RunDir.open(out, config, resume=True), leases


def read_result(file: Path, hint: str) -> dict[str, Any]:
    """The JSON object that a comparison wrote. Raises: UserError with the `hint` for anything else."""
    try:
        found = parse_json(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}", hint) from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged: no JSON object", hint)
    return found


def result_of(run: RunDir) -> dict[str, Any] | None:
    """The answer of a finished comparison, if it has been written."""
    file = run.path / "results.json"
    return read_result(file, "Remove it: it is written again from the cells") if file.is_file() else None
