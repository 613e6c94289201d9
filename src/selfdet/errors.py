"""The one exception for what a user can put right."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: printed as one line, exit code 2, no traceback.

    `message` names the file, the value and what was expected; `hint` says what to do next.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())
        super().__init__(f"{self.message}. {self.hint}" if self.hint else self.message)
