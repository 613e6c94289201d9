"""The answer of a comparison in words: what to use with how many labels, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from selfdet.drawing.report import Item, Points, Section, Table, Text
from selfdet.drawing.run_stages import spoken
from selfdet.evaluation.choice import Answer, Choice, choose, level, listed, sureness
from selfdet.evaluation.comparison import Comparison, amounts
from selfdet.evaluation.differences import ENOUGH
from selfdet.training.log import plural

LONG = 30  # letters of a start's words from which its short name is used instead


def start_names(comparison: Comparison) -> dict[str, str]:
    """What each start is called: its words where those of all starts are short and differ, else its short name."""
    words = dict(comparison.starts)
    short = all(0 < len(each) <= LONG for each in words.values()) and len(set(words.values())) == len(words)
    return words if short else {start: start for start in words}


def intro(comparison: Comparison, names: Mapping[str, str]) -> str:
    """What was compared, and what is missing."""
    cells, settings = comparison.finetuned, comparison.settings
    of = " on ".join(
        str(word)
        for word in (settings.get("detector") and spoken(settings["detector"]), settings.get("backbone"))
        if word
    )
    missing = comparison.planned - len(cells)
    starts = _introduced(comparison, names)
    text = f"Every start was fine-tuned{f' as {of}' if of else ''} with the same labels, order and schedule"
    if cells:
        seeds = {cell["seed"] for cell in cells}
        images = sorted({cell["images"] for cell in cells if cell.get("images") is not None})
        judged = f" and judged on the same {plural(images[-1], 'image')}" if len(images) == 1 else ""
        text += f", {plural(len(seeds), 'seed')}{judged}. The starts: {starts}."
    else:
        text += f". The starts: {starts}. No cell is finished yet, so nothing can be said."
    if missing > 0:
        text += (
            f"\n\nThis comparison is not finished: {missing:,} of {comparison.planned:,} planned cells are missing. "
            "What follows is from those that are there and may change."
        )
    return text


def _introduced(comparison: Comparison, names: Mapping[str, str]) -> str:
    """The names of the starts; of those whose names are short ones also what each is, without the path before it."""
    words = comparison.starts
    if all(names[start] == words[start] for start in names):
        return listed(list(names), names)
    kinds = {start: words[start].rpartition(": ")[2] for start in names}
    return "; ".join(names[start] + (f", {kinds[start]}" if kinds[start] else "") for start in names)


def tile(each: Answer, names: Mapping[str, str]) -> str:
    """The answer in a few words."""
    if each.outside is not None:
        return "not measured"
    if not each.choices:
        return "nothing measured"
    if not any(choice.beaten for choice in each.choices):
        return "no start shown to be better"
    return listed(each.use, names, "or") if each.use else "it depends"


def unbroken(text: str) -> str:
    """Text whose bounds and numbers stay on one line: `95 %`, `n = 5`, `+1.9…+4.3`."""
    return text.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0").replace("…", "\u2060…\u2060")


def answer_section(comparison: Comparison, names: Mapping[str, str], answers: Sequence[Answer]) -> Section:
    """The answer for the asked numbers of labels, then for those that were measured."""
    rows = [[f"{each.asked:,} images", *_answer_cells(each, names)] for each in answers]
    items: list[Item] = [Table(["with", "use", "how sure"], rows)]
    for of in comparison.kinds:
        measured = [
            unbroken(f"With {amount.words}: {_use(choice, names)}. {sureness(choice, names)}")
            for amount in amounts(comparison)
            if (choice := choose(comparison, amount, of)) is not None
        ]
        by = f", by AP of {of}" if len(comparison.kinds) > 1 else ""
        if measured:
            items += [Text(f"What was measured{by}:"), Points(measured)]
    if comparison.finetuned:
        items += [Text("What the words mean:"), Points(list(_meaning(comparison)))]
    return Section("The answer", items)


def _use(choice: Choice, names: Mapping[str, str]) -> str:
    if not choice.behind:
        return f"only {names[choice.best]} is measured"
    return listed(choice.use, names, "or") if choice.beaten else "no start shown to be better"


def _answer_cells(each: Answer, names: Mapping[str, str]) -> list[str]:
    """What to use, and how sure that is, for an asked number of images."""
    if each.outside is not None:
        near = each.outside
        few = "most" if near.amount.images < each.asked else "fewest"
        return [
            f"not measured; with {near.amount.words}, the {few}: {_use(near, names)}",
            f"a guess; there {level(near)}",
        ]
    if not each.choices:
        return ["nothing measured", "–"]
    if len(each.choices) == 1:
        (choice,) = each.choices
        return [_use(choice, names), f"{level(choice)}, with {choice.amount.words}"]
    below, above = each.choices
    if level(below) == level(above):
        sure = f"{level(below)}, both with {below.amount.words} and with {above.amount.words}"
    else:
        sure = "; ".join(f"{level(choice)} with {choice.amount.words}" for choice in each.choices)
    if not (below.beaten or above.beaten):
        return ["no start shown to be better", sure]
    if each.use:
        return [listed(each.use, names, "or"), sure]
    return ["; ".join(f"with {choice.amount.words}: {_use(choice, names)}" for choice in each.choices), sure]


def _meaning(comparison: Comparison) -> Iterator[str]:
    """What the words of the answer promise, and what they don't."""
    seeds = {cell["seed"] for cell in comparison.finetuned}
    yield (
        "A seed is a draw of the images to label and of the order of training, the same for all starts. Differences "
        "are between cells of one seed. "
        f"+1.0 {comparison.score} is one point of the 100 that {comparison.score} can have."
    )
    if len(seeds) >= ENOUGH:
        yield (
            "95 %: if everything were repeated with new seeds, such bounds would hold the mean difference in 95 of 100 "
            "cases. The images for judging stay the same: other images may give other differences."
        )
    if len(seeds) < ENOUGH or any(
        0 < len({cell["seed"] for cell in comparison.finetuned if amount.holds(cell)}) < ENOUGH
        for amount in amounts(comparison)
    ):
        yield (
            f"Range: the smallest and the largest difference that was seen. From fewer than {ENOUGH} seeds nothing is "
            "promised about the next one; more seeds make it surer. Of two equal starts one is ahead in both of 2 "
            "seeds in 1 of 2 cases by chance alone, in all of 3 seeds in 1 of 4, in all of 4 in 1 of 8."
        )
    if len(comparison.starts) > 3:
        wider = " So the bounds above are wider than those below: the truly best start is among those to use with 95 %."
        yield f"The best of many starts is in part the luckiest.{wider if len(seeds) >= ENOUGH else ''}"
