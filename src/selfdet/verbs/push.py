"""`selfdet push`: weights to a repository of the Hugging Face hub, or to a folder laid out like one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from selfdet.errors import UserError
from selfdet.interchange.cards import CARD, write_card
from selfdet.interchange.hub import CONFIG, FILES, configuration, send, there
from selfdet.interchange.outgoing import Written
from selfdet.interchange.starts import MODEL, NOTE, backbone_note
from selfdet.interchange.targets import open_outgoing
from selfdet.interchange.weights import write_safetensors
from selfdet.training.log import Reporter
from selfdet.training.rundir import write_text


def push(
    *, init: str, to: str, licence: str | None = None, overwrite: bool = False, public: bool = False
) -> dict[str, Any]:
    """Put trained weights on the Hugging Face hub, or into a folder as the hub has them.

    Written are model.safetensors, which every verb takes as `--init` once it is pulled, config.json and a card,
    README.md. On the hub you are who `hf auth login` says; a repository that isn't there is made, private.

    Args:
        init: run directory or weights file, of pretrain, finetune or import-weights.
        to: hf://user/name, hf://user/name@branch, or a folder.
        licence: licence of the weights, for the card; unknown if not given.
        overwrite: replace existing weights; they are left alone if not given.
        public: make a new repository public.

    Raises: UserError when `init` names nothing trained, weights are there already, or the hub refuses.

    Example:
        selfdet push --init runs/ft --to hf://me/cats-fcos --licence apache-2.0
    """
    given = open_outgoing(init)
    if not overwrite and (present := there(to)):
        raise UserError(f"--to {to} has {', '.join(present)} already", "Name another place, or add --overwrite")
    note = backbone_note(given.network, given.note) if given.kind == "backbone" else {"kind": given.kind, **given.note}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_safetensors(folder / MODEL, given.network.net.state_dict(), {NOTE: json.dumps(note)})
        write_text(folder / CONFIG, configuration(note))
        write_card(folder, given, "selfdet", Written({}, "nothing but that every tensor is there and finite"), licence)
        send(folder, to, FILES, public)
    reporter = Reporter()
    reporter.line(f"{given.kind} in {to}: {MODEL}, {CONFIG}, {CARD}")
    return {"to": to, "kind": given.kind, "files": sorted(FILES)}
