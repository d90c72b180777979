"""What can go wrong in a way that a user can do something about.

Every error says what, where, and what to do (`hint`). Results of actions are values
(`actions.Outcome`), not errors; these are for what was asked wrongly or cannot work.
"""


class FswatchError(Exception):
    """Base of all errors meant for the user: a message, and a hint what to do about it.

    `code` is what `fswatch explain` knows it by; each class has a usual one.
    """

    code = "FSW-ERROR"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.code

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class ConfigError(FswatchError):
    """The configuration, a rule file or a VE file is wrong."""

    code = "FSW-FILE"


class UnknownTargetError(FswatchError):
    """A VE, device, mount point or incident that does not exist, or names several."""

    code = "FSW-UNKNOWN"


class RefusedError(FswatchError):
    """The request is understood and will not be done: the message names the guard."""

    code = "FSW-REFUSED"


class ConflictError(FswatchError):
    """The object is not in a state in which this can be done now."""

    code = "FSW-CONFLICT"
