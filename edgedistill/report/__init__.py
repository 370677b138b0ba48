"""Results of `bench` in, one self-contained HTML page out: no network, no scripts, light and dark, printable."""

from edgedistill.report.page import page_from_results

__all__ = ["page_from_results"]
