"""Weights as a folder of Hugging Face's conventions, on the hub or on a disk.

`model.safetensors` is a weights file of selfdet under the name that the hub's tools look for, `config.json` what it
says of itself, `README.md` its card. Where a folder stands for a repository, nothing else is different.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfdet.data.disk import writing
from selfdet.data.untrusted import expanded
from selfdet.errors import UserError, shown
from selfdet.interchange.cards import CARD
from selfdet.interchange.starts import MODEL

CONFIG = "config.json"
FILES = (MODEL, CONFIG, CARD)
ON_HUB = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def hub_name(place: str) -> tuple[str, str | None] | None:
    """The repository and revision of `hf://user/name@revision`; None of a folder. Raises: UserError."""
    if not place.startswith("hf:"):
        return None
    found = ON_HUB.fullmatch(place)
    if found is None:
        raise UserError(
            f"{shown(place)} is no repository of the hub", "Write hf://user/name, or hf://user/name@revision"
        )
    return found["name"], found["revision"]


def there(place: str) -> list[str]:
    """Which of a hub folder's files a place has already."""
    name = hub_name(place)
    if name is None:
        return [each for each in FILES if (expanded(place) / each).exists()]
    hub = _hub()
    try:
        return [each for each in FILES if hub.file_exists(name[0], each, revision=name[1])]
    except Exception as error:  # of networks, names and rights: many kinds
        raise _refused(place, error) from None


def send(folder: Path, place: str, files: Sequence[str], public: bool) -> None:
    """Put `files` of a folder where they belong; a repository that isn't there is made.

    Raises: UserError when it can't be written.
    """
    name = hub_name(place)
    if name is None:
        target = expanded(place)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--to {place} cannot be written: {error.strerror}", "Name another folder") from None
        _copy(folder, target, files)
        return
    hub = _hub()
    try:
        hub.create_repo(name[0], private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=name[0],
            folder_path=str(folder),
            revision=name[1],
            allow_patterns=list(files),
            commit_message="Upload weights with selfdet",
        )
    except Exception as error:
        raise _refused(place, error) from None


def fetch(place: str, folder: Path) -> None:
    """Fetch a hub folder's files, and no others, into `folder`.

    Raises: UserError when the place can't be read or has no weights of selfdet's.
    """
    name = hub_name(place)
    if name is None:
        source = expanded(place)
        if not source.is_dir():
            raise UserError(f"--init {place}: there is no such folder", "Name one, or hf://user/name")
        _copy(source, folder, [each for each in FILES if (source / each).is_file()])
    else:
        hub = _hub()
        try:
            hub.snapshot_download(name[0], revision=name[1], allow_patterns=list(FILES), local_dir=str(folder))
        except Exception as error:
            raise _refused(place, error) from None
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub's own notes of what it has fetched
    if not (folder / MODEL).is_file():
        raise UserError(f"{place} has no {MODEL}", "Name what selfdet push wrote")


def configuration(note: dict[str, Any]) -> str:
    """The text of config.json: a weights file's note, for people and for the hub's pages."""
    return json.dumps({"library_name": "selfdet", **note}, indent=2, ensure_ascii=False) + "\n"


def _copy(source: Path, target: Path, files: Sequence[str]) -> None:
    for name in files:
        unfinished = target / f".{name}.partial"
        try:
            with writing(target / name, (source / name).stat().st_size):
                shutil.copyfile(source / name, unfinished)
            unfinished.replace(target / name)
        finally:
            unfinished.unlink(missing_ok=True)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("hf:// needs huggingface_hub", "pip install 'selfdet[hub]'") from None
    return huggingface_hub


def _refused(place: str, error: Exception) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"{place}: {shown(lines[0], 200)}", "Look at its name, the network and `hf auth login`")
