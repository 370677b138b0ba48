"""Two results of `edgedistill bench --json`: what changed, and what is only noise.

    python -m benchmarks.compare before.json after.json

A time differs where the medians of the two runs lie further apart than the medians of the parts of each run do; an R²
where it differs at all, since it is computed and not measured. Exit code 1 where something got worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOISE = 0.02  # of a time, at least: clocks of two runs on one machine differ by as much


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    before, after = (json.loads(path.read_text()) for path in (options.before, options.after))
    if before["device"].get("cpu") != after["device"].get("cpu"):
        print(f"Different devices: {before['device'].get('cpu')} and {after['device'].get('cpu')}.", file=sys.stderr)
    lines = compared(before, after)
    for line in lines:
        print(line)
    return int(any(line.endswith("worse") for line in lines))


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each figure of each subject that both results hold."""
    old, new = ({s["name"]: s for s in result["subjects"]} for result in (before, after))
    lines = [f"{name}: only in one of them" for name in sorted(old.keys() ^ new.keys())]
    for name in (name for name in old if name in new):
        lines += [
            f"{name}: {line}" for line in (time_line(old[name], new[name]), *figures(old[name], new[name])) if line
        ]
    return lines


def time_line(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The median of a step."""
    before, after = old["latency_us"]["p50"], new["latency_us"]["p50"]
    noise = max(NOISE * before, spread(old), spread(new))
    verdict = "noise" if abs(after - before) <= noise else "better" if after < before else "worse"
    return f"p50 {before:.4g} -> {after:.4g} µs, noise ±{noise:.2g}: {verdict}"


def spread(subject: Mapping[str, Any]) -> float:
    """How far the medians of the parts of a run lie from the median of all, at most; 0 where parts are not told."""
    parts, whole = subject.get("p50_of_parts_us") or [], subject["latency_us"]["p50"]
    return max((abs(part - whole) for part in parts), default=0.0)


def figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """R² and sizes, which have no noise."""
    lines = []
    for key, better in (("r2", 1), ("artifact_bytes", -1), ("state_bytes", -1)):
        before, after = old.get(key), new.get(key)
        if before is not None and after is not None and before != after:
            lines.append(f"{key} {before:.6g} -> {after:.6g}: {'better' if (after - before) * better > 0 else 'worse'}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
