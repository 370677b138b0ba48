"""Which step graphs of a bundle may be used: what `manifest.json` says under "graphs".

A build compares every step graph with the student that it was written from, and records what it measured. A graph that
decodes something else stays out of use, and the reason stands in the manifest. The key maps the name of a graph's file
to its verdict; a bundle that was written before the key existed has none, and all of its graphs may be used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from edgedistill.bundle.reading import MANIFEST, Bundle
from edgedistill.errors import BundleError

GRAPHS_KEY = "graphs"


@dataclass(frozen=True)
class GraphVerdict:
    """What a build measured of one step graph. A figure that was not measured is None."""

    usable: bool
    reason: str | None = None  # why it is not usable
    integers_off_share: float | None = None  # of the integers of an INT8 graph that differ from the oracle's
    largest_integer_difference: int | None = None
    largest_output_deviation: float | None = None  # in standard deviations of that output
    r2_difference: float | None = None  # its R² minus the R² of what it was written from

    def to_json(self) -> dict[str, object]:
        """Returns the entry of `manifest.json`; JSON has no NaN, which becomes None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def graph_verdicts(bundle: Bundle) -> dict[str, GraphVerdict]:
    """Returns the verdicts by file name. BundleError where the manifest's "graphs" is not what a build writes."""
    known = {field.name for field in fields(GraphVerdict)}  # a later version may write more
    try:
        found = (bundle.manifest.get(GRAPHS_KEY) or {}).items()
        return {name: GraphVerdict(**{k: v for k, v in entry.items() if k in known}) for name, entry in found}
    except (AttributeError, TypeError) as error:
        raise BundleError(f"{bundle.path}: '{MANIFEST}' does not describe its graphs", got=repr(error)) from error


def why_left_out(bundle: Bundle, file: str) -> str | None:
    """Returns why a graph of this file name may not be used; None where it may, and in older bundles."""
    verdict = graph_verdicts(bundle).get(file)
    return None if verdict is None or verdict.usable else verdict.reason or "the build found it to be off"


def left_out(verdicts: Mapping[str, GraphVerdict]) -> dict[str, str]:
    """Returns file name and reason of each graph that may not be used."""
    return {name: verdict.reason or "" for name, verdict in verdicts.items() if not verdict.usable}
