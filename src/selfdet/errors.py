"""The one exception for what a user can put right."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: printed as one line, exit code 2, no traceback.

    `message` names the file, the value and what was expected; `hint` says what to do next.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = " ".join(message.split())
        hint = " ".join(hint.split())
        self.hint = hint[:1].upper() + hint[1:]
        super().__init__(f"{self.message}. {self.hint}" if self.hint else self.message)
