"""What can go wrong, as the user meets it.

    MvpEdgeError              exit code
    ├── BadInput              2   a file, option or name that the user gave
    ├── BudgetMissed          3   a budget of the device profile cannot be, or was not, met
    └── GateFailed            4   the exported model does not compute what was verified

A message is one line: what is wrong, where (file, line, key, option), and what to do. The command
line prints it and ends with the exit code; nothing is left half-written.

An error about one argument carries the argument's name in ``field`` and leaves it out of its message:
``BadInput("7: at most 3", field="neighbours")``. From Python it reads ``neighbours 7: at most 3``; the command
line prints ``--neighbours 7: at most 3``.
"""


class MvpEdgeError(Exception):
    """Base of every error that mvp-edge raises on purpose; never raised itself."""

    exit_code = 2


class BadInput(MvpEdgeError):
    """Something the user gave is wrong or missing.

    Args:
        message: one line; without the argument's name where ``field`` gives it.
        field: the argument at fault by its Python name, e.g. ``input_size``.
    """

    def __init__(self, message: str, *, field: str | None = None):
        super().__init__(message)
        self.message, self.field = message, field

    def __str__(self) -> str:
        return f"{self.field} {self.message}" if self.field else self.message

    @property
    def command_line(self) -> str:
        """The message with the command line's spelling of the argument."""
        return f"--{self.field.replace('_', '-')} {self.message}" if self.field else self.message


class BudgetMissed(MvpEdgeError):
    """A budget is infeasible before training, or was missed after it."""

    exit_code = 3


class GateFailed(MvpEdgeError):
    """An exported model left the parity gate's tolerance; no bundle was written."""

    exit_code = 4
