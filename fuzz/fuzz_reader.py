"""Coverage-guided fuzzing of one reader: `python fuzz/fuzz_reader.py READER -max_total_time=60`; needs atheris.

Only our own errors may come out; anything else ends the run with the input in crash-*. The corpus begins with a sound
file and grows in fuzz/corpus/READER.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
with atheris.instrument_imports(include=["selfdet", "defusedxml", "yaml", "json"]):
    from readers import OWN, READERS, prepare, seeds


def main() -> None:
    """Fuzz the reader that the command line names, until its flags say stop."""
    name, *flags = sys.argv[1:]
    corpus = HERE / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "sound").write_bytes(seeds()[name])
    # In memory where there is such a folder: a file is written for every input.
    room = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=room) as scratch:
        folder = prepare(Path(scratch) / "files")

        def once(content: bytes) -> None:
            with suppress(*OWN):
                READERS[name](folder, content)

        atheris.Setup([sys.argv[0], *flags, str(corpus)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
