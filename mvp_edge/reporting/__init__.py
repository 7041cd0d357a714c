"""The page that explains a run, and the page that compares several: `mvp-edge report`.

run directory → results → measures, findings, comparison → charts → page
"""

from mvp_edge.reporting.page import report

__all__ = ["report"]
