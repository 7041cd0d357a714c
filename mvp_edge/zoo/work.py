"""Working folders below a zoo's ``.work``: several processes may build one zoo together."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(work: Path, name: str) -> Iterator[Path | None]:
    """A working folder for ``name``, held by this process alone; None while another process holds it."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        folder = (
            work / name
        )  # made under the lock: its last holder may have removed it a moment ago
        folder.mkdir(exist_ok=True)
        yield folder
