"""Makes the report: results of `bench` go in, and one HTML page comes out.

The page needs no network and no scripts, has a light and a dark scheme, and can be printed.
"""

from edgedistill.report.page import page_from_results

__all__ = ["page_from_results"]
