"""Which start to use with how many labels, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfdet.evaluation.comparison import Amount, Comparison, amounts, difference, scores
from selfdet.evaluation.differences import ENOUGH, TAIL, Difference, points

ASKED = (10, 100, 1000)  # labelled images that the answer is given for
NEAR = 1.25  # a measured number of images within this factor answers for the asked one


@dataclass(frozen=True)
class Choice:
    """The start to use with one amount of labels.

    `best`: the start with the highest mean. Against every other start that shares a seed with it, `behind` has the
    difference, best minus other: `equal` are those that it can't be told from, `open` those with one shared seed only,
    `beaten` the rest; `unmeasured` share none. `score`: what starts are judged by.
    """

    amount: Amount
    best: str
    behind: Mapping[str, Difference]
    unmeasured: Sequence[str]
    score: str = "AP"

    @property
    def beaten(self) -> list[str]:
        """The starts that `best` is better than."""
        return [start for start, each in self.behind.items() if each.found and each.low > 0]

    @property
    def equal(self) -> list[str]:
        """The starts that several seeds don't tell from `best`."""
        return [start for start, each in self.behind.items() if each.n > 1 and start not in self.beaten]

    @property
    def open(self) -> list[str]:
        """The starts that have only one seed to be compared by."""
        return [start for start, each in self.behind.items() if each.n == 1]

    @property
    def use(self) -> list[str]:
        """The starts that nothing measured speaks against, the best first; empty where there is nothing to compare."""
        return [self.best, *self.equal, *self.open] if self.behind else []

    @property
    def n(self) -> int:
        """Seeds of the comparison that has the fewest; 0 if there is none."""
        return min((each.n for each in self.behind.values()), default=0)


def choose(comparison: Comparison, amount: Amount, of: str = "boxes") -> Choice | None:
    """The start to use with one amount of labels, None where no finished cell has a score.

    Starts are ranked by their paired differences from one of them, so that missing cells favour none; one with a single
    shared seed leads only if all have no more. From five seeds on the truly best start is in `use` in at least 95 % of
    comparisons, however many starts there are: with more than three, intervals are wider for that (Bonferroni over the
    one-sided bounds that could rule it out; three starts or fewer need nothing wider).
    """
    found = {start: scores(comparison, start, amount, of=of) for start in comparison.starts}
    measured = [start for start in comparison.starts if found[start]]
    if not measured:
        return None
    anchor = comparison.base if found[comparison.base] else max(measured, key=lambda start: len(found[start]))
    against = {start: difference(comparison, start, amount, of, base=anchor) for start in measured}
    ranked = {start: each for start, each in against.items() if each is not None}
    most = max(each.n for each in ranked.values())
    firm = {start: each for start, each in ranked.items() if each.n >= min(2, most)}
    best = max(firm, key=lambda start: firm[start].mean)
    tail = min(TAIL, 2 * TAIL / max(1, len(measured) - 1))
    behind = {
        start: each
        for start in measured
        if start != best and (each := difference(comparison, best, amount, of, base=start, tail=tail)) is not None
    }
    order = sorted(behind, key=lambda start: behind[start].mean)
    unmeasured = [start for start in comparison.starts if start != best and start not in behind]
    return Choice(amount, best, {start: behind[start] for start in order}, unmeasured, comparison.score)


def level(choice: Choice) -> str:
    """How sure a choice is, in the few words that `sureness` begins with."""
    if not choice.behind:
        return "nothing to compare"
    if not choice.beaten:
        return "no difference found" if choice.equal else "can't tell: one seed"
    if min(choice.behind[start].n for start in choice.beaten) < ENOUGH:
        return "a lead, too few seeds to be sure"
    return "clear in part" if choice.equal or choice.open or choice.unmeasured else "clear"


def sureness(choice: Choice, names: Mapping[str, str]) -> str:
    """How sure a choice is, in words that begin with the verdict."""
    best = names[choice.best]
    missing = f" Not measured with its seeds: {listed(choice.unmeasured, names)}." if choice.unmeasured else ""
    begin = level(choice).partition(":")[0].capitalize()
    if not choice.behind:
        return f"{begin}: only {best} is measured.{missing}"
    if not choice.beaten:
        where = "has the highest mean" if choice.equal else f"has the highest {choice.score} of the one seed"
        said = [f"{begin}: {best} {where}, {_ahead(choice, choice.equal or choice.open, names)}."]
    else:
        few = min(choice.behind[start].n for start in choice.beaten)
        rest = choice.equal or choice.open or choice.unmeasured
        others = listed(choice.beaten, names) if rest or len(choice.beaten) == 1 else "every other start"
        seeds = "" if few >= ENOUGH else " in both seeds" if few == 2 else f" in all {few} seeds"
        said = [f"{begin}: {best} is better than {others}{seeds}, {_ahead(choice, choice.beaten, names)}."]
        if choice.equal:
            said.append(
                f"No difference found from {listed(choice.equal, names)}, {_ahead(choice, choice.equal, names)}."
            )
    if choice.open and (choice.beaten or choice.equal):
        said.append(f"Can't tell from {listed(choice.open, names)}: one seed.")
    return " ".join(said) + missing


def _ahead(choice: Choice, starts: Sequence[str], names: Mapping[str, str]) -> str:
    """`by +3.1 AP (95 % +1.9…+4.3, n = 5)`; of several starts the nearest and the farthest, by name."""
    parts = []
    for start in dict.fromkeys((starts[0], starts[-1])):
        each = choice.behind[start]
        kind = "95 %" if each.is_interval else "range"
        bounds = "one seed" if each.n == 1 else f"{kind} {points(each.low)}…{points(each.high)}, n = {each.n}"
        over = f" over {names[start]}" if len(starts) > 1 else ""
        parts.append(f"{points(each.mean)} {choice.score}{over} ({bounds})")
    return f"by {' and '.join(parts)}"


def listed(starts: Sequence[str], names: Mapping[str, str], last: str = "and") -> str:
    """`A`, `A and B`, `A, B and C`."""
    words = [names[start] for start in starts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


@dataclass(frozen=True)
class Answer:
    """What the measured amounts say for an asked number of labelled images.

    `choices`: of one amount that is near, or of the two that it lies between; empty outside of what was measured.
    `outside`: then, the choice of the nearest measured amount.
    """

    asked: int
    choices: Sequence[Choice]
    outside: Choice | None = None

    @property
    def use(self) -> list[str]:
        """The starts that fit all choices, the first choice's order; empty if there are none."""
        if not self.choices:
            return []
        return [start for start in self.choices[0].use if all(start in each.use for each in self.choices)]


def answer(comparison: Comparison, asked: int, of: str = "boxes") -> Answer:
    """What to use with `asked` labelled images, from the nearest measured numbers; nothing is extrapolated."""
    measured = sorted(amounts(comparison), key=lambda amount: amount.images)
    chosen = [each for amount in measured if (each := choose(comparison, amount, of)) is not None]
    if not chosen:
        return Answer(asked, [])
    near = min(chosen, key=lambda each: abs(math.log(each.amount.images / asked)))
    if max(near.amount.images / asked, asked / near.amount.images) <= NEAR:
        return Answer(asked, [near])
    below = [each for each in chosen if each.amount.images < asked]
    above = [each for each in chosen if each.amount.images > asked]
    if not below or not above:
        return Answer(asked, [], near)
    return Answer(asked, [below[-1], above[0]])
