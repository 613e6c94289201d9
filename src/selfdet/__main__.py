"""The process behind `selfdet` and `python -m selfdet`."""

from __future__ import annotations

import sys
from io import TextIOWrapper

from selfdet import cli


def main() -> int:
    """Run the command of this process and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a console of a narrow encoding shows "?" for λ instead of failing
            stream.reconfigure(errors="replace")
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
