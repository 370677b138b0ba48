"""Draws the pictures of the documents from kept results.

    python -m benchmarks.overview                 draws docs/images/overview.svg and label-minutes-nano.svg anew
    python -m benchmarks.overview demo-output     takes the decoded trace of a finished `make demo` first

The template of the picture of the README is benchmarks/overview.svg. Its trace is kept in demo-trace.json among the
results: 10 s of the first output, from the end of the recording, which lies in the test block.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from benchmarks.accuracy.label_minutes import draw_figure
from benchmarks.demo import FIRST_OUTPUT, MINUTES, SESSIONS, STEPS
from benchmarks.harness import RESULTS, ROOT, describe_conditions, write_result
from edgedistill.data.recording import open_recording
from edgedistill.files import atomic_write_text

IMAGES = ROOT / "docs" / "images"
TEMPLATE = Path(__file__).with_name("overview.svg")
TRACE = "demo-trace"
SOURCES = ("accuracy-nano", "features/accuracy-nano", "latency", TRACE)  # in benchmarks/results/cpu
CURVE = "label-minutes-nano"  # there too
H100 = RESULTS / "nvidia-h100-80gb-hbm3" / "kernels.json"
TRACE_S, EVERY = 10, 2  # seconds shown, bins from one point to the next
BARS = (  # row of the accuracy benchmark, what it is, style
    ("spike_student", "spike student of the same size", "sp"),
    ("ridge_spike", "ridge on spikes", "sp"),
    ("deployed, int8, percentile", "LFP student in INT8", "ours"),
    ("distilled", "LFP student, no labels", "bar"),
    ("ridge_lfp_power", "ridge on LFP with labels", "bar"),
    ("single_session_lfp", "no labels and no teacher", "bar"),
)
LEFT, RIGHT, TOP, MIDDLE, BOTTOM = 40.0, 470.0, 290.0, 388.0, 486.0  # of the trace
BAR_LEFT, BAR_LENGTH, BAR_TOP, BAR_STEP = 718, 220, 282, 22
TIMES_TOP, TIMES_STEP = 466, 19


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", nargs="?", type=Path, help="folder of a finished `make demo`")
    demo = parser.parse_args().demo
    if demo is not None:
        assert __spec__ is not None
        write_result(RESULTS / "cpu", TRACE, {**describe_conditions(__spec__.name), **read_trace(demo)})
    for name, picture in draw_pictures().items():
        atomic_write_text(IMAGES / name, picture, "the picture")


def draw_pictures() -> dict[str, str]:
    """Returns every picture as SVG by the name of its file. They depend on templates and kept results alone."""
    curves = read_result(CURVE)["curves"]
    return {"overview.svg": draw_overview(), f"{CURVE}.svg": draw_figure(curves)}


def read_result(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / "cpu" / f"{name}.json").read_text()))


def read_trace(demo: Path) -> dict[str, Any]:
    """Returns the decoded and the true values of the first output at the end of the demo's recording, and its R²."""
    with (demo / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))[-100 * TRACE_S :][::EVERY]
    column = list(rows[0])[FIRST_OUTPUT]
    session = sorted((demo / "sessions").glob("*.nwb"))[-1]
    with open_recording(session) as recording:
        assert recording.behavior is not None
        truth = recording.behavior.sample_at(np.array([float(row["time_s"]) for row in rows]))[:, 0]
    built = json.loads((demo / "build.json").read_text())
    return {
        "sessions": SESSIONS,
        "minutes": MINUTES,
        "steps": STEPS,
        "output": column,
        "int8_r2": built["metrics"]["int8_r2"],
        "true": [round(float(value), 2) for value in truth],
        "decoded": [round(float(row[column]), 2) for row in rows],
    }


def draw_overview() -> str:
    """Returns the picture of the README."""
    accuracy, newer, latency, trace = map(read_result, SOURCES)  # rows that were measured again replace the older ones
    name, unit = trace["output"].rstrip(")").split(" (")
    highest = max(abs(value) for value in (*trace["true"], *trace["decoded"]))
    return Template(TEMPLATE.read_text()).substitute(
        sources=", ".join(f"benchmarks/results/cpu/{source}.json" for source in SOURCES),
        trace_caption=f"make demo: {trace['steps']} steps a model, R² {trace['int8_r2']:.2f} on the test block",
        axis="".join(draw_axes(highest)),
        lines=draw_line("true", trace["true"], highest) + draw_line("dec", trace["decoded"], highest),
        output=f"{name}, {unit}",
        preset=accuracy["preset"],
        seeds=len(accuracy["seeds"]),
        bars="".join(draw_bars(accuracy["rows"] | newer["rows"])),
        times="".join(draw_times(latency)),
        gpu=f"One H100, edge without bands: {json.loads(H100.read_text())['step']['edge, warm']['p50']:.0f} µs."
        " No board was at hand.",
    )


def draw_axes(highest: float) -> Iterator[str]:
    """Yields the labels of the trace: seconds below it, and two values beside it."""
    for second in range(0, TRACE_S + 1, 2):
        x = LEFT + (RIGHT - LEFT) * second / TRACE_S
        yield f'<text class="s" x="{x:.0f}" y="503" text-anchor="middle">{second} s</text>\n'
    tick = int(0.75 * highest / 5) * 5
    for value in (0, tick, -tick):
        y = place(value, highest) + 4
        yield f'<text class="s" x="34" y="{y:.0f}" text-anchor="end">{value:d}</text>\n'.replace(
            ">-", ">\N{MINUS SIGN}"
        )


def place(value: float, highest: float) -> float:
    return MIDDLE - (MIDDLE - TOP) * value / highest


def draw_line(style: str, values: Sequence[float], highest: float) -> str:
    step = (RIGHT - LEFT) / (len(values) - 1)
    points = " ".join(f"{LEFT + i * step:.1f},{place(value, highest):.1f}" for i, value in enumerate(values))
    return f'<polyline class="{style}" points="{points}"/>\n'


def draw_bars(rows: dict[str, Any]) -> Iterator[str]:
    for i, (row, words, style) in enumerate(BARS):
        mean, top = rows[row]["mean"], BAR_TOP + i * BAR_STEP
        text = "n" if style == "ours" else "s"
        yield f'<text class="{text}" x="{BAR_LEFT - 8}" y="{top + 12}" text-anchor="end">{words}</text>\n'
        width = BAR_LENGTH * mean
        yield f'<rect class="{style}" x="{BAR_LEFT}" y="{top}" width="{width:.0f}" height="15" rx="2"/>\n'
        yield f'<text class="{text}" x="{BAR_LEFT + width + 6:.0f}" y="{top + 12}">{mean:.3f}</text>\n'


def draw_times(latency: dict[str, Any]) -> Iterator[str]:
    steps = latency["step"]
    paced = [how["p50"] for how in latency["paced"]["edge with bands, avx512"].values()]
    peers = [times["p50"] for name, times in latency["peers"].items() if name.startswith("edge, onnxruntime")]
    found = (
        ("edge (1.1 M), flat out", f"{steps['edge with bands, avx512']['p50']:.1f} µs"),
        ("edge, every 10 ms, as in use", f"{min(paced):.0f} to {max(paced):.0f} µs"),
        ("nano (0.15 M), flat out", f"{steps['nano with bands, avx512']['p50']:.1f} µs"),
        ("edge without bands", f"{steps['edge, avx512']['p50']:.1f} µs; onnxruntime {min(peers):.0f} µs"),
    )
    for i, (words, value) in enumerate(found):
        y = TIMES_TOP + i * TIMES_STEP
        yield f'<text class="s" x="746" y="{y}" text-anchor="end">{words}</text>'
        yield f'<text class="n" x="758" y="{y}">{value}</text>\n'


if __name__ == "__main__":
    main()
