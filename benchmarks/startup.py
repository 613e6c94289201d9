"""From a folder of 100,000 image names, or a million, to the first training batch: seconds and memory.

    python benchmarks/startup.py --images ../shared/data/coco-person-mini/images
    python benchmarks/startup.py --images ../shared/data/coco-person-mini/images --count 1000000 --place /dev/shm

The names are hard links of copies of some photographs, a thousand to a folder, in a temporary folder that is
removed. Measured in a process of its own, after a folder of `--few` names: what that takes is what torch
and its loader process take to start.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PER_FOLDER = 1000


def make_folder(folder: Path, sources: list[Path], count: int) -> None:
    """`count` names of a few photographs; a file may have 65,000 on some file systems."""
    folder.mkdir()
    copies = [Path(shutil.copy(source, folder.parent / source.name)) for source in sources]
    for number in range(count):
        place = folder / f"{number // PER_FOLDER:04d}"
        if number % PER_FOLDER == 0:
            place.mkdir()
        os.link(copies[number % len(copies)], place / f"photograph_{number:07d}.jpg")


def memory(processes: list[int]) -> float:
    """MiB that processes hold, what they share counted once (Linux)."""
    lines = [line for pid in processes for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def first_batch(options: argparse.Namespace) -> dict[str, float]:
    """What a run does before its first step, timed."""
    begun = time.perf_counter()
    from selfdet.data.images import list_images
    from selfdet.data.loader import training_batches
    from selfdet.data.views import TwoViews, ViewDataset, collate_views

    imported = time.perf_counter()
    paths = list_images(options.images)
    listed = time.perf_counter()
    batches = training_batches(
        ViewDataset(paths, TwoViews(options.size, seed=0)),
        batch_size=options.batch,
        seed=0,
        start_step=0,
        total_steps=100,
        workers=options.workers,
        collate=collate_views,
    )
    next(batches)
    return {
        "import_seconds": imported - begun,
        "listing_seconds": listed - imported,
        "batch_seconds": time.perf_counter() - listed,
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": sum(os.times()[:2]),
        "main_mib": memory([os.getpid()]),
        "loader_mib": memory(descendants(os.getpid())),
    }


def descendants(process: int) -> list[int]:
    """The processes that this one has started, and theirs (Linux)."""
    children = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [*children, *(pid for child in children for pid in descendants(child))]


def measured(images: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`first_batch` in a process of its own."""
    words = ["--measure", "--images", str(images), "--size", str(options.size), "--batch", str(options.batch)]
    words += ["--workers", str(options.workers)]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description="From a folder of many names to the first batch.")
    parser.add_argument("--images", required=True, help="folder of photographs, of which the first 20 are taken")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--place", help="folder in which the temporary one is made")
    parser.add_argument("--size", type=int, default=224, help="side of a view, pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--measure", action="store_true", help="measure the folder itself; for the processes")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(first_batch(options)))
        return
    sources = sorted(Path(options.images).glob("*.jpg"))[:20]
    results = {}
    for count in (options.few, options.count):
        with tempfile.TemporaryDirectory(dir=options.place) as folder:
            make_folder(Path(folder, "photos"), sources, count)
            results[count] = measured(Path(folder, "photos"), options)
        print(f"{count:,} names: {', '.join(f'{key} {value:.2f}' for key, value in results[count].items())}")
    print(json.dumps({**vars(options), "results": results}))


if __name__ == "__main__":
    main()
