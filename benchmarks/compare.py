"""Compares two results of `edgedistill bench --json` and says what changed and what is only noise.

    python -m benchmarks.compare before.json after.json

A time changed if the medians of the two runs lie further apart than the medians of the parts of each run. An R² changed
if it differs at all, because it is computed and not measured. The exit code is 1 if something got worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOISE = 0.02  # least share of a time that is noise, because the clocks of two runs on one machine differ by as much


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    before, after = (json.loads(path.read_text()) for path in (options.before, options.after))
    if before["device"].get("cpu") != after["device"].get("cpu"):
        print(f"Different devices: {before['device'].get('cpu')} and {after['device'].get('cpu')}.", file=sys.stderr)
    lines = compare_results(before, after)
    for line in lines:
        print(line)
    return int(any(line.endswith("worse") for line in lines))


def compare_results(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Returns a line for each figure of each subject that both results hold."""
    old, new = ({s["name"]: s for s in result["subjects"]} for result in (before, after))
    lines = [f"{name}: only in one of them" for name in sorted(old.keys() ^ new.keys())]
    for name in (name for name in old if name in new):
        lines += [
            f"{name}: {line}"
            for line in (compare_times(old[name], new[name]), *compare_figures(old[name], new[name]))
            if line
        ]
    return lines


def compare_times(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns the line that compares the median of a step."""
    before, after = old["latency_us"]["p50"], new["latency_us"]["p50"]
    noise = max(NOISE * before, measure_spread(old), measure_spread(new))
    verdict = "noise" if abs(after - before) <= noise else "better" if after < before else "worse"
    return f"p50 {before:.4g} -> {after:.4g} µs, noise ±{noise:.2g}: {verdict}"


def measure_spread(subject: Mapping[str, Any]) -> float:
    """Returns how far the medians of a run's parts lie from its median at most, or 0 if the result has no parts."""
    parts, whole = subject.get("p50_of_parts_us") or [], subject["latency_us"]["p50"]
    return max((abs(part - whole) for part in parts), default=0.0)


def compare_figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the lines that compare R² and sizes, which have no noise."""
    lines = []
    for key, better in (("r2", 1), ("artifact_bytes", -1), ("state_bytes", -1)):
        before, after = old.get(key), new.get(key)
        if before is not None and after is not None and before != after:
            lines.append(f"{key} {before:.6g} -> {after:.6g}: {'better' if (after - before) * better > 0 else 'worse'}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
