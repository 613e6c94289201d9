"""The one exception for what a user can put right, and how anything from a file is put into one line."""

from __future__ import annotations

LONGEST = 1500  # letters of a message; what is longer is somebody's file


class UserError(Exception):
    """A mistake the user can mend: printed as one line, exit code 2, no traceback.

    `message` names the file, the value and what was expected; `hint` says what to do next.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = one_line(message)
        hint = one_line(hint)
        self.hint = hint[:1].upper() + hint[1:]
        super().__init__(f"{self.message}. {self.hint}" if self.hint else self.message)


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text as one line that is safe to print, cut in the middle where it is longer than `longest` letters.

    Names and values of files from strangers may hold anything: line breaks become spaces; what else has no letter,
    such as terminal codes, marks that turn the direction of writing and bytes that are no text, becomes an escape.
    """
    words = " ".join(text.split())
    if len(words) > longest:
        words = f"{words[: longest * 2 // 3]} … {words[-longest // 3 :]}"
    return printable(words)


def printable(text: str) -> str:
    """The text with an escape in place of whatever has no letter, but for line breaks and spaces that don't break."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\N{NO-BREAK SPACE}" else _escape(letter) for letter in text
    )


def shown(value: object, longest: int = 80) -> str:
    """A value of somebody's file for a message: short and in one line, whatever it is."""
    try:
        return one_line(repr(value)[: 4 * longest], longest)
    except (RecursionError, ValueError):  # nested too deeply, or a number of more digits than Python writes
        return f"a {type(value).__name__}"


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
