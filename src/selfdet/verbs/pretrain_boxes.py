"""The proposals stage of `selfdet pretrain`: the boxes that its detector stage learns from."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from selfdet.data.coco import read_coco
from selfdet.errors import UserError
from selfdet.proposing.filters import Filters
from selfdet.proposing.selective_search import Search
from selfdet.training.log import Reporter, plural
from selfdet.training.rundir import RunDir
from selfdet.verbs.proposals import proposals
from selfdet.verbs.stages import Call


@dataclass
class ProposalSettings:
    """How boxes are found and filtered, as in `selfdet proposals`.

    Args:
        side: long side in pixels that images are shrunk to for the search.
        min_side: both sides of a box have at least this share of the image's long side.
        max_aspect: long side over short side of a box, at most; 5 for pedestrians.
        max_size: square root of a box's share of the image's area, at most.
        iou: a box that overlaps one before it by more is left out; 1 keeps all.
        top_k: boxes an image, at most; 0 for no limit.
    """

    side: int = Search.side
    min_side: float = Filters.min_side
    max_aspect: float = Filters.max_aspect
    max_size: float = Filters.max_size
    iou: float = Filters.iou
    top_k: int = Filters.top_k


def pretrain_boxes(call: Call, images: str, boxes: str | None, settings: ProposalSettings) -> Path:
    """The file of proposals for `images`: that of `selfdet proposals` which `boxes` names, or one made in the run.

    Raises: UserError, see `selfdet proposals`; Interrupted after saving when stopped.
    """
    if boxes is not None and are_proposals(boxes):
        return Path(boxes)
    file = RunDir(call.out).proposals
    if call.runtime.first:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = not file.is_file()
        found = proposals(
            images=images,
            out=str(file),
            boxes=boxes,
            seed=call.seed,
            workers=call.workers or None,
            resume=True,
            **asdict(settings),
        )
        if new:  # what the verb has shown, for the run's own log
            Reporter(RunDir(call.out).log_file).record(
                f"{plural(found['boxes'], 'proposal')} in {plural(found['images'], 'image')}: {file}"
            )
    # Not a barrier: finding boxes may take longer than a process waits at one. Should the first process end without
    # them, this one ends too: who has started them sees to that, and where it was the first itself, `start_runtime`.
    while not file.is_file():
        time.sleep(1.0)
    return file


def are_proposals(boxes: str) -> bool:
    """Whether a file was written by `selfdet proposals`, so that its images are checked and its boxes filtered."""
    try:
        info = read_coco(Path(boxes)).get("info")
    except UserError:
        return False  # or no COCO JSON: reading it as results says what it lacks
    return isinstance(info, dict) and "fingerprint" in info
