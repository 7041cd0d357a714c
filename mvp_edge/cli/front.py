"""The members of a front as a table for the terminal."""

from typing import TYPE_CHECKING

from mvp_edge.runs.choice import Front, undominated
from mvp_edge_export.quantities import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = ("", "keep", "mult.-adds", "params", "file", "val %", "test %", "latency")


def front_table(front: Front) -> "Table":
    """One row a member, at most 80 columns wide; the caption says what the marks mean."""
    from rich.table import Table

    table = Table(title=f"Front of {len(front.members)} networks", caption=front.caption)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    best = undominated(front.members)
    for member in front.members:
        mark = "▶" if member.number == front.picked else " " if member in best else "·"
        latency = member.fastest
        table.add_row(
            f"{mark} {member.number}",
            f"{member.keep:.3g}",
            format_count(member.flops),
            format_count(member.params),
            format_bytes(member.file),
            f"{100 * member.validation:.1f}",
            f"{100 * member.test:.1f}",
            format_duration(latency.p50) if latency else "–",
        )
    return table
