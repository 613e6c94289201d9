"""What a run's log says of how a sitting began: on what, with which start, and why settings are what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# The first line of an introduction ends with what it computes on: see `Runtime.describe`.
_FIRST = re.compile(r"^(?P<words>.+); (?P<device>[^;]+, (?:bf16|fp16|fp32), \d+ threads?, torch \S+)$")
_CHOICE = re.compile(r"^(?P<name>batch size|steps|learning rate|queue length|image size|batch norm): \S+ \((.+)\)$")
_SETTINGS = {"learning rate": "lr"}  # a choice that config.yaml has under another name
# The table of `TransferReport`: a part, its share, and five counts of elements.
_HEADER = re.compile(r"^part +share +reused ")
_ROW = re.compile(r"^(?P<part>\S+) +(?P<share>[\d.]+%|–)(?P<counts>(?: +[\d,]+){5})$")
_END = re.compile(r"^(about |step \d|continuing after step |stopped by )")
# What happens later and belongs into a summary.
_EVENT = re.compile(r"^(stopped by |\d[\d,]* unreadable images? of |unreadable, left out)|is not finite")


@dataclass
class Beginning:
    """How one sitting of a stage began.

    `words`: what is done on what; `device`: what it computes on; `choices`: setting → why it is what it is;
    `transfer`: rows (part, share, reused, started afresh, missing, mismatched, unexpected), counts in elements;
    `remarks`: all other lines, such as advice.
    """

    words: str
    device: str
    choices: dict[str, str] = field(default_factory=dict)
    transfer: list[list[str | int]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def _take(self, line: str) -> None:
        if match := _CHOICE.match(line):
            name = match["name"]
            self.choices[_SETTINGS.get(name, name.replace(" ", "_"))] = match[2]
        elif match := _ROW.match(line):
            counts = [int(count.replace(",", "")) for count in match["counts"].split()]
            self.transfer.append([match["part"], match["share"], *counts])
        elif not _HEADER.match(line):
            self.remarks.append(line)


def beginnings(log: str) -> list[Beginning]:
    """Every introduction in the text of a run's log.txt, in order; none where it has no such lines."""
    found: list[Beginning] = []
    inside = False
    for line in log.splitlines():
        if match := _FIRST.match(line):
            found.append(Beginning(match["words"], match["device"]))
            inside = True
        elif _END.match(line):
            inside = False
        elif inside and line.strip():
            found[-1]._take(line)
    return found


def events(log: str) -> Iterator[str]:
    """Lines that tell what befell a run: stops, images that could not be read, a loss that was not finite."""
    return (line for line in log.splitlines() if _EVENT.search(line))
