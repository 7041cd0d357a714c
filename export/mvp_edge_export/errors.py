"""What can go wrong, as the user meets it.

    MvpEdgeError              exit code
    ├── BadInput              2   a file, option or name that the user gave
    ├── BudgetMissed          3   a budget of the device profile cannot be, or was not, met
    └── GateFailed            4   the exported model does not compute what was verified

A message is one line: what is wrong, where (file, line, key, option), and what to do. The command
line prints it and ends with the exit code; nothing is left half-written.
"""


class MvpEdgeError(Exception):
    """Base of every error that mvp-edge raises on purpose; never raised itself."""

    exit_code = 2


class BadInput(MvpEdgeError):
    """Something the user gave is wrong or missing."""


class BudgetMissed(MvpEdgeError):
    """A budget is infeasible before training, or was missed after it."""

    exit_code = 3


class GateFailed(MvpEdgeError):
    """An exported model left the parity gate's tolerance; no bundle was written."""

    exit_code = 4
