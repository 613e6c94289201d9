"""The settings of a run as rows of a table: what somebody chose, what is as usual, and facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from selfdet.training.defaults import ASKED
from selfdet.training.rundir import flat_settings

Row = list[str | int | float | None]

# Groups within config.yaml whose entries are named by themselves.
_GROUPS = ("method_options.", "options.", "fraction.")
_MOST = 12  # entries of a list that are shown
# What others tell in words, or what says nothing about how the run was made.
_TOLD = frozenset({"verb", "stages", "classes", "method"})


class Settings(NamedTuple):
    """Rows of one config.yaml.

    `chosen`: (setting, value, why) of what somebody chose, then of what followed from data and machine; `as_usual`:
    (setting, value) of what nobody touched; `facts`: (name, value) of all else that the file keeps.
    """

    chosen: list[Row]
    as_usual: list[Row]
    facts: list[Row]


def setting_rows(config: Mapping[str, Any], usual: Mapping[str, Any], reasons: Mapping[str, str]) -> Settings:
    """Sort the settings of one config.yaml.

    `usual`: setting → default, `...` where there is none and somebody has to choose; what it lacks is no setting.
    `reasons`: setting → why its value was taken.
    """
    chosen: list[Row] = []
    by_data: list[Row] = []
    as_usual: list[Row] = []
    facts: list[Row] = []
    for name, value in flat_settings(config):
        short = next((name.removeprefix(group) for group in _GROUPS if name.startswith(group)), name)
        if name in _TOLD or (short != name and short in config and config[short] == value):
            continue
        if name not in usual and short not in usual:
            facts.append([name, shown(value)])
            continue
        default = usual.get(name, usual.get(short))
        reason = reasons.get(short, "")
        row: Row = [short, shown(value)]
        if default is ... or reason == ASKED:
            chosen.append([*row, ASKED])
        elif reason == "default" or _same(value, default):
            as_usual.append(row)
        elif default is None or default == "auto":
            by_data.append([*row, reason])
        else:
            chosen.append([*row, f"usually {shown(default)}"])
    explained = [row for row in by_data if row[2]]
    return Settings([*chosen, *explained, *(row for row in by_data if not row[2])], as_usual, facts)


def shown(value: Any) -> str | int | float | None:
    """A value of config.yaml as a cell: lists shortened, yes and no in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        more = f" and {len(value) - _MOST:,} more" if len(value) > _MOST else ""
        return (", ".join(str(shown(item)) for item in value[:_MOST]) + more) or "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if value is None or isinstance(value, int) else str(value)


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return list(value) == list(default)
    return bool(value == default)
