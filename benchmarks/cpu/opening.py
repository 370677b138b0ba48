"""Opens and closes a decoder many times, and measures what stays: descriptors, mappings of memory, resident memory.

A service that opens a decoder for each stream must not lose any of them. The result is written to `opening.json`. The
exit code is 1 if descriptors or mappings grew, or memory by more than 8 MB.

    python -m benchmarks.cpu.opening BUNDLE [--engine c] [--times 10000] [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import RESULTS, describe_conditions, option_parser, write_result
from edgedistill.bundle import open_bundle
from edgedistill.runtime import ENGINES, Decoder

WARM_UP = 100  # the first ones load modules and fill pools
MOST_GROWTH_MB = 8.0


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", choices=ENGINES, default="c")
    parser.add_argument("--times", type=int, default=10_000)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)

    def open_some(times: int) -> None:
        for _ in range(times):
            with Decoder(bundle, options.engine) as decoder:
                decoder.push(np.zeros((20, len(decoder.info.channel_ids)), np.float32))

    open_some(WARM_UP)
    before, began = measure_held(), time.monotonic()
    open_some(options.times)
    seconds, after = time.monotonic() - began, measure_held()
    grew = {name: after[name] - before[name] for name in before}
    result = {
        **describe_conditions("benchmarks.cpu.opening"),
        "bundle": bundle.manifest.name,
        "engine": options.engine,
        "times": options.times,
        "ms_each": round(1000 * seconds / options.times, 3),
        "before": before,
        "after": after,
    }
    write_result(options.out, "opening", result)
    print(json.dumps({name: value for name, value in result.items() if name != "device"}, indent=1))
    if grew["descriptors"] > 0 or grew["mappings"] > 3 or grew["resident_mb"] > MOST_GROWTH_MB:
        sys.exit(f"grew: {grew}")


def measure_held() -> dict[str, float]:
    """Returns what this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "resident_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
    }


if __name__ == "__main__":
    main()
