"""`selfdet pull`: weights from a repository of the Hugging Face hub, or from a folder laid out like one."""

from __future__ import annotations

import os
import shutil
from typing import Any

from selfdet.data.untrusted import expanded
from selfdet.errors import UserError
from selfdet.interchange.hub import fetch
from selfdet.interchange.starts import resolve_start
from selfdet.training.log import Reporter
from selfdet.training.rundir import check_out_is_new


def pull(*, init: str, out: str) -> dict[str, Any]:
    """Fetch weights that `push` has put on the Hugging Face hub; the folder is a start for every verb.

    Fetched are model.safetensors, config.json and README.md, and nothing else. Nothing in them is executed.

    Args:
        init: hf://user/name, hf://user/name@revision, or a folder that push wrote.
        out: folder to make; refused when not empty.

    Raises: UserError when there are no weights of selfdet's, or `out` is not empty.

    Example:
        selfdet pull --init hf://me/cats-fcos --out models/cats
    """
    target = expanded(out)
    check_out_is_new(target)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        unfinished.mkdir(parents=True)
        fetch(init, unfinished)
        start = resolve_start(str(unfinished))
        if target.is_dir():
            target.rmdir()
        os.replace(unfinished, target)
    except UserError as error:  # of what is gone in a moment, by the name that the user gave
        raise UserError(error.message.replace(str(unfinished), init), error.hint) from None
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}", "Name another folder") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    reporter = Reporter()
    reporter.line(f"{start.kind} from {init}: {out}, for --init")
    files = sorted(file.name for file in target.iterdir())
    return {"out": out, "from": init, "kind": start.kind, "files": files}
