"""Handing weights over: what was reused, started afresh, missing or unexpected, counted in elements."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selfdet.errors import UserError

OTHER = "other"  # the row of names that no part holds


class PartLike(Protocol):
    """What is needed of a part: regular expressions for its names, and whether it starts afresh."""

    @property
    def patterns(self) -> list[str]: ...
    @property
    def reinit(self) -> bool: ...


@dataclass
class TransferRow:
    """Elements of one part; all but `unexpected` (in the file, not in the network) add up to the part's size."""

    reused: int = 0
    reinitialised: int = 0
    missing: int = 0
    mismatched: int = 0
    unexpected: int = 0

    @property
    def size(self) -> int:
        """Elements of the part in the network."""
        return self.reused + self.reinitialised + self.missing + self.mismatched

    @property
    def share(self) -> float:
        """Reused share of the part, 0…1."""
        return self.reused / self.size if self.size else 0.0

    @property
    def percent(self) -> str:
        """The share in words, rounded down: what is not all is not 100.0%."""
        return f"{math.floor(1000 * self.reused / self.size) / 1000 if self.size else 0:.1%}"


@dataclass
class TransferReport:
    """What became of each part. Whole-number tensors (batch counters) are copied where present, never counted."""

    rows: dict[str, TransferRow]
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The report as text: one line a part, then the first names of each kind that did not fit."""
        columns = ("reused", "reinitialised", "missing", "mismatched", "unexpected")
        lines = [f"{'part':<10}{'share':>8}" + "".join(f"{column:>15}" for column in columns)]
        for part, row in self.rows.items():
            counts = "".join(f"{getattr(row, column):>15,}" for column in columns)
            share = f"{row.percent:>8}" if row.size else f"{'–':>8}"
            lines.append(f"{part:<10}{share}{counts}")
        for kind in ("missing", "mismatched", "unexpected"):
            names = getattr(self, kind)
            if names:
                lines.append(f"{kind}: {_listed(names)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for logs and JSON: elements by part, and the first names that did not fit."""
        first = {kind: getattr(self, kind)[:5] for kind in ("missing", "mismatched", "unexpected")}
        return {"parts": {part: asdict(row) for part, row in self.rows.items()}, "names": first}


def transfer(
    module: nn.Module,
    state: Mapping[str, Tensor],
    parts: Mapping[str, PartLike],
    *,
    expect: Iterable[str],
    minimum: float = 0.9,
    source: str = "these weights",
) -> TransferReport:
    """Copy tensors of `state` into `module` where name, shape and kind agree, and report what became of each part.

    `parts` group the names of `module.state_dict()`; those marked `reinit` keep their fresh values. `source` names the
    weights in errors. No name is guessed: a prefix too many or too few is refused, with the one that would fit.

    Raises: UserError, with `module` unchanged, when less than `minimum` of an expected part's elements would be
    reused or when a tensor to be reused is not finite.
    """
    own = module.state_dict()
    report = TransferReport({part: TransferRow() for part in parts})
    reused: dict[str, Tensor] = {}
    for name, value in own.items():
        part = _part_of(name, parts)
        row = report.rows.setdefault(part, TransferRow())
        elements = value.numel() if value.is_floating_point() else 0
        if part in parts and parts[part].reinit:
            row.reinitialised += elements
        elif name not in state:
            row.missing += elements
            if elements:
                report.missing.append(name)
        elif state[name].shape != value.shape:
            row.mismatched += elements
            report.mismatched.append(f"{name} {_shape(state[name])} for {_shape(value)}")
        elif elements and not state[name].is_floating_point():
            row.mismatched += elements
            report.mismatched.append(f"{name} {state[name].dtype} for {value.dtype}")
        else:
            row.reused += elements
            reused[name] = state[name]
    for name, value in state.items():
        if name not in own:
            row = report.rows.setdefault(_part_of(name, parts), TransferRow())
            row.unexpected += value.numel() if value.is_floating_point() else 0
            report.unexpected.append(name)
    for part in expect:
        if report.rows[part].share < minimum:
            raise _refusal(report, part, parts, own, state, minimum, source)
    _copy(own, reused, source)
    return report


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], reused: Mapping[str, Tensor], source: str) -> None:
    for name, value in reused.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{source}: {name} is not finite", "the run that wrote it has diverged; use another")
    for name, value in reused.items():
        own[name].copy_(value)


def _part_of(name: str, parts: Mapping[str, PartLike]) -> str:
    return next((p for p, part in parts.items() if any(re.match(each, name) for each in part.patterns)), OTHER)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _refusal(
    report: TransferReport,
    part: str,
    parts: Mapping[str, PartLike],
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    minimum: float,
    source: str,
) -> UserError:
    message = f"{source}: only {report.rows[part].percent} of the {part} fits, expected {minimum:.0%}"
    needed = minimum * report.rows[part].size
    renaming = _renaming({name: value for name, value in own.items() if _part_of(name, parts) == part}, state, needed)
    if renaming is not None:
        given, wanted = renaming
        example = next(name for name in state if name.startswith(given))
        message += f"; its names start like {example!r}, expected {wanted + example[len(given) :]!r}"
        hint = f"{_instruction(given, wanted)} and save it again"
        return UserError(message, hint)
    for kind in ("mismatched", "missing", "unexpected"):
        names = [name for name in getattr(report, kind) if _part_of(name.split(" ")[0], parts) in (part, OTHER)]
        if names:
            message += f"; {kind}: {_listed(names)}"
    return UserError(message, "name the architecture these weights were trained with")


def _instruction(given: str, wanted: str) -> str:
    if not wanted:
        return f"strip the prefix {given!r} from every name: {{k.removeprefix({given!r}): v for k, v in state.items()}}"
    if not given:
        return f"put {wanted!r} before every name: {{{wanted!r} + k: v for k, v in state.items()}}"
    return f"replace the prefix {given!r} by {wanted!r}: {{{wanted!r} + k.removeprefix({given!r}): v for …}}"


def _renaming(own: Mapping[str, Tensor], state: Mapping[str, Tensor], needed: float) -> tuple[str, str] | None:
    """The change of prefix (given, wanted) under which most elements of `own` fit, if at least `needed` do."""
    best, most = None, needed
    for given in _prefixes(state):
        inside = {name[len(given) :]: value for name, value in state.items() if name.startswith(given)}
        for wanted in _prefixes(own):
            fits = sum(
                value.numel()
                for name, value in own.items()
                if value.is_floating_point()
                and name.startswith(wanted)
                and name[len(wanted) :] in inside
                and inside[name[len(wanted) :]].shape == value.shape
            )
            if given != wanted and fits >= most and (best is None or fits > most):
                best, most = (given, wanted), fits
    return best


def _prefixes(names: Iterable[str], depth: int = 4, share: float = 0.2) -> list[str]:
    """Dotted prefixes (and none) that at least a `share` of the names have: few, so that all pairs can be tried."""
    counts: Counter[str] = Counter()
    for name in names:
        steps = name.split(".")[:-1][:depth]
        counts.update(".".join(steps[:end]) + "." for end in range(1, len(steps) + 1))
    common = counts.most_common(1)[0][1] if counts else 0
    return ["", *(prefix for prefix, count in counts.items() if count >= share * common)]
