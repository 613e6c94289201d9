"""The page of a comparison: which start to use with how many labels and how sure that is, then what it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfdet.drawing.comparison_answer import answer_section, intro, start_names, tile, unbroken
from selfdet.drawing.comparison_figures import plot_gains, plot_labels, plot_steps
from selfdet.drawing.comparison_files import results, write_csv, write_json
from selfdet.drawing.comparison_tables import class_rows, rate_rows, score_table, steps_rows, worth_rows
from selfdet.drawing.report import Code, Item, Picture, Points, Section, Table, Text, write_report
from selfdet.drawing.run_settings import shown
from selfdet.evaluation.choice import ASKED, answer, choose
from selfdet.evaluation.comparison import MISS_KEYS, Comparison, amounts, classes, difference, rates
from selfdet.evaluation.differences import verdict
from selfdet.evaluation.savings import Equivalent, equivalents, reaches
from selfdet.training.log import duration


def write_comparison(out: Path, comparison: Comparison) -> dict[str, Any]:
    """Write `report.html`, `results.csv`, `results.json` and `pictures/` into `out`, which exists.

    Works with any finished cells, also none. Returns what is in results.json.
    Raises: OSError when the folder can't be written.
    """
    names = start_names(comparison)
    pictures = out / "pictures"
    pictures.mkdir(exist_ok=True)
    found = results(comparison, names)
    write_json(out / "results.json", found)
    write_csv(out / "results.csv", comparison)
    answers = [answer(comparison, asked) for asked in ASKED]
    sections = [answer_section(comparison, names, answers)]
    if comparison.finetuned:
        sections += [
            _gains(comparison, names, pictures),
            _labels(comparison, names, pictures),
            _steps(comparison, names, pictures),
            *_missed(comparison, names),
            *_classes(comparison, names),
            Section("All scores", [score_table(comparison, names)]),
        ]
    sections += [_rates(comparison, names), *_made(comparison, names)]
    write_report(
        out / "report.html",
        title="Which start to use with 10, 100 and 1,000 labels",
        intro=intro(comparison, names),
        facts={f"{each.asked:,} labelled images": tile(each, names) for each in answers},
        sections=sections,
    )
    return found


def _gains(comparison: Comparison, names: Mapping[str, str], pictures: Path) -> Section:
    """Verdicts against the first start, and the bars."""
    base = names[comparison.base]
    items: list[Item] = []
    for of in comparison.kinds:
        file = pictures / ("ap.png" if of == "boxes" else f"ap_{of}.png")
        wide = plot_gains(comparison, names, file, of)
        caption = (
            f"Bars: means; dots: seeds; numbers: {comparison.score} of {base}, and what the others add to it. "
            "Grey: no difference found."
        )
        rows: list[list[str | int | float | None]] = [
            [names[start], unbroken(verdict(difference(comparison, start, amount, of), amount.words, comparison.score))]
            for amount in amounts(comparison)
            for start in list(names)[1:]
        ]
        judged_by = comparison.judged_by(of)
        about = f"{judged_by} against {base}, seed by seed."
        items += [Picture(file, caption, f"Bars of {judged_by} by start and labels", wide=wide)]
        if rows:
            items.append(Table(["start", f"against {base}"], rows, about))
    return Section(f"How much better than {base}", items)


def _labels(comparison: Comparison, names: Mapping[str, str], pictures: Path) -> Section:
    """What labels are worth with each start."""
    base = names[comparison.base]
    items: list[Item] = []
    worth = equivalents(comparison)
    ahead = _ahead(comparison)
    sentences = [_worth(each, names) for each in worth if each.start == ahead and each.difference.found]
    if sentences:
        items.append(Points(sentences))
    elif worth:
        items.append(Text(f"No start is shown to be worth more labels than {base}."))
    for kind in ("fraction", "shots"):
        own = [amount for amount in amounts(comparison) if amount.kind == kind]
        if len(own) > 1:
            read = [
                each
                for each in worth
                if each.start == ahead and each.amount in own and each.difference.found and each.inside
            ]
            file = pictures / f"ap_by_labels_{kind}.png"
            plot_labels(comparison, names, own, read, file)
            items.append(Picture(file, alt=f"{comparison.score} against labelled images for every start"))
    if worth:
        score = comparison.score
        about = (
            f"With how many labelled images {base} has the {score} of each start. Between two measured numbers {score} "
            "is taken to be straight in the logarithm of the labels; outside of them nothing is made up. Bounds are "
            f"those of the difference of {score}: 95 % from five seeds on, else the range."
        )
        items.append(
            Table(["labels", "start", f"equal with {base}", "from", "to", "n"], worth_rows(worth, names), about)
        )
    else:
        items.append(Text(f"To say what labels are worth, {base} is needed with two amounts of labels at least."))
    return Section("What it saves in labels", items)


def _worth(each: Equivalent, names: Mapping[str, str]) -> str:
    """Your 100 labels with this start equal about 160 without."""
    first = next(iter(names.values()))
    text = f"{each.amount.words} with {names[each.start]} equal"
    text = f"{text[0].upper()}{text[1:]}"
    if not each.inside:
        return (
            f"{text} {'more' if each.labels else 'fewer'} with {first} than were measured ({each.words(each.labels)})."
        )
    kind = "95 %" if each.difference.is_interval else "range"
    bounds = f"{kind}: from {each.words(each.low)} to {each.words(each.high)}, n = {each.difference.n}"
    return unbroken(f"{text} {each.words(each.labels)} images with {first} ({bounds}).")


def _ahead(comparison: Comparison) -> str | None:
    """The start that is chosen most often, the first one aside."""
    chosen = Counter(
        choice.best
        for amount in amounts(comparison)
        if (choice := choose(comparison, amount)) is not None and choice.best != comparison.base
    )
    return chosen.most_common(1)[0][0] if chosen else None


def _steps(comparison: Comparison, names: Mapping[str, str], pictures: Path) -> Section:
    """Whether a start learns faster."""
    base = names[comparison.base]
    items: list[Item] = []
    for amount in amounts(comparison):
        file = pictures / f"ap_by_step_{amount.slug}.png"
        if plot_steps(comparison, names, amount, file):
            items.append(Picture(file, alt=f"{comparison.score} against step with {amount.words}"))
    if not items:
        return Section("Does it learn faster?", [Text("No finished cell was followed while it trained.")])
    if found := reaches(comparison):
        about = (
            f"The step at which a start has the {comparison.score} that {base} ends with, read between measured steps, "
            f"and what {base} itself needs to be there first. Means of the seeds that both have; then the seeds one by "
            "one."
        )
        header = [
            "labels",
            "start",
            f"{comparison.score} to reach, %",
            f"steps of {base}",
            "steps",
            "times as fast",
            "of each seed",
        ]
        items.insert(0, Table(header, steps_rows(found, names), about))
    items.insert(
        0,
        Text(
            f"{comparison.score} while training, on training images that were not labelled for it: the images for "
            "judging are used once, at the end. Lines: means; shades: from the lowest seed to the highest."
        ),
    )
    return Section("Does it learn faster?", items)


def _missed(comparison: Comparison, names: Mapping[str, str]) -> Iterator[Section]:
    """Verdicts on the miss rate, where it was asked for, and what of it the labels did not allow."""
    if not comparison.miss_keys and not comparison.not_missed:
        return
    base = names[comparison.base]
    rows: list[list[str | int | float | None]] = [
        [
            MISS_KEYS[key].replace("_", " "),
            names[start],
            unbroken(verdict(difference(comparison, start, amount, key=key), amount.words, "MR⁻²")),
        ]
        for key in comparison.miss_keys
        for amount in amounts(comparison)
        for start in list(names)[1:]
    ]
    about = (
        "The share of objects that a detector misses at 0.01 to 1 false alarms an image, the log-average of nine such "
        "shares: what pedestrian detectors are measured by. Less is better, so an improvement has a minus."
    )
    items: list[Item] = [Text(about)]
    if rows:
        items.append(Table(["objects", "start", f"against {base}"], rows, "Points of MR⁻², seed by seed."))
    if left := [f"{name.replace('_', ' ')} ({why})" for name, why in comparison.not_missed.items()]:
        items.append(Text(f"Not measured: {', '.join(left)}."))
    yield Section("Miss rate", items)


def _classes(comparison: Comparison, names: Mapping[str, str]) -> Iterator[Section]:
    """Which classes gain, where there are several."""
    if len(classes(comparison)) < 2:
        return
    base = names[comparison.base]
    items: list[Item] = [
        Text(
            "Of many classes some differ by chance alone, the more of them the fewer the seeds. A figure with bounds "
            "on one side of 0 is marked ●."
        )
    ]
    for amount in amounts(comparison):
        rows, which = class_rows(comparison, amount, _ahead(comparison))
        if rows:
            header = ["class", f"{comparison.class_score} of {base}", *(f"{names[start]}" for start in list(names)[1:])]
            items.append(Table(header, rows, f"With {amount.words}: what each start adds{which}."))
    yield Section("By class", items)


def _rates(comparison: Comparison, names: Mapping[str, str]) -> Section:
    """What learning rate each start got, and why."""
    found = rates(comparison)
    if not found:
        return Section("Learning rates", [Text("No cell has used one yet.")])
    items: list[Item] = []
    if any(each.tried for each in found):
        share = comparison.settings.get("tune_fraction")
        with_labels = f" with {100 * share:g} % of the labels" if isinstance(share, (int, float)) else ""
        items.append(
            Text(
                f"Each start has the rate that suits it best of a small grid, tried once{with_labels}, one seed, and "
                "scored on training images outside of these, never on the images for judging. With other numbers of "
                "labels the same multiple of the usual rate is taken."
            )
        )
    else:
        items.append(Text("The learning rate was given, the same for all starts."))
    items.append(
        Table(["start", "rate", "why", f"tried: {comparison.score}, %"], rate_rows(found, names, comparison.score))
    )
    return Section("Learning rates", items)


def _made(comparison: Comparison, names: Mapping[str, str]) -> Iterator[Section]:
    """What the starts are, the shared settings, and how to check a figure."""
    inits = {cell["start"]: cell.get("init") for cell in comparison.cells}
    rows = [[names[start], words, inits.get(start)] for start, words in comparison.starts.items()]
    items: list[Item] = [Table(["start", "what it is", "--init"], rows)]
    if comparison.words:
        items.append(Table(["about", ""], [[name, shown(value)] for name, value in comparison.words.items()]))
    settings = [[name, shown(value)] for name, value in comparison.settings.items() if value is not None]
    if settings:
        items.append(Table(["setting", "value"], settings, "The same for all starts."))
    yield Section("What was compared", items)
    done, spent = len(comparison.finetuned), sum(float(cell.get("seconds") or 0.0) for cell in comparison.cells)
    tried = len(comparison.cells) - done
    text = f"{done:,} of {comparison.planned:,} planned cells are finished"
    text += f", and {tried:,} that chose learning rates" if tried else ""
    text += f"; they took {duration(spent)} in all. " if spent else ". "
    text += "Every figure here follows from results.csv, one line a cell, and results.json, beside this page."
    last: list[Item] = [Text(text)]
    if example := next((cell["command"] for cell in comparison.finetuned if cell.get("command")), None):
        last += [Text("One of the commands:"), Code(example)]
    yield Section("Where the figures are", last)
