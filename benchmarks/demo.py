"""Runs `make demo`: simulates sessions, builds a decoder for this machine, and decodes and draws a held-out stretch.

It runs the commands that a user would type, step by step, and leaves everything in demo-output/. report.html is the
file to open first.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from edgedistill.files import atomic_write, atomic_write_text

OUT = Path("demo-output")
SESSIONS, MINUTES, STEPS = 4, 4, 100
SHOWN_S = 12
FIRST_OUTPUT = 5  # column of the predictions, after bin, end_frame, time_s, flags and bad_channels
TIMES_90 = 1.645  # standard deviations in which nine in ten true values lie


def main() -> None:
    start = monotonic()
    run_command(
        "simulate", "--out", f"{OUT}/sessions", "--sessions", f"{SESSIONS}", "--minutes", f"{MINUTES}", "--seed", "7"
    )
    bundle = OUT / "demo.edge"
    arguments = ["--target", "host", "--preset", "nano", "--data", f"{OUT}/sessions", "--out", f"{bundle}"]
    built = run_command("build", *arguments, "--steps", f"{STEPS}", "--baselines", keep="build.json")
    session = sorted((OUT / "sessions").glob("*.nwb"))[-1]
    run_command("run", f"{bundle}", f"{session}", "--out", f"{OUT}/predictions.csv")
    measured = run_command("bench", f"{bundle}", "--robustness", "--system", "--closed-loop", "2", keep="bench.json")
    run_command("report", f"{OUT}/bench.json", "--out", f"{OUT}/report.html")
    picture = OUT / "decoded.png"
    draw(session, OUT / "predictions.csv", built["metrics"], picture)
    print_summary(built["metrics"], measured)
    print(f"\nall of it on one page: {OUT}/report.html\ndecoded against true velocity: {picture}")
    print(f"the whole demo took {monotonic() - start:.0f} s")


def run_command(*arguments: str, keep: str | None = None) -> dict[str, Any]:
    """Shows and runs `edgedistill ARGUMENTS`. With `keep`, its JSON is written under that name and returned."""
    print(f"\n$ edgedistill {' '.join(arguments)}", flush=True)
    line = [sys.executable, "-m", "edgedistill", *arguments]
    if keep is None:
        subprocess.run(line, check=True)
        return {}
    done = subprocess.run([*line, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    atomic_write_text(OUT / keep, done.stdout, "the output of the command")
    return dict(json.loads(done.stdout))


def print_summary(metrics: dict[str, Any], measured: dict[str, Any]) -> None:
    """Prints how well each model decodes, and how long a step takes."""
    print(f"\nheld-out R², mean over outputs ({STEPS} optimizer steps a stage; longer training decodes better)")
    for name, what in (
        ("teacher_r2", "spike teacher (sees the future)"),
        ("spike_student_r2", "spike student, size of the LFP student"),
        ("ridge_spike_r2", "lagged ridge on spikes"),
        ("kalman_spike_r2", "Kalman filter on spikes"),
        ("deployed_r2", "deployed LFP student"),
        ("int8_r2", "deployed LFP student in INT8"),
        ("distilled_r2", "LFP student distilled without labels, probe"),
        ("supervised_lfp_r2", "LFP student on behavior alone"),
        ("multi_session_lfp_r2", "LFP student, many sessions, no teacher, probe"),
        ("single_session_lfp_r2", "LFP student, one session, no teacher, probe"),
        ("ridge_lfp_r2", "lagged ridge on slow LFP"),
        ("kalman_lfp_r2", "Kalman filter on slow LFP"),
        ("ridge_power_r2", "lagged ridge on band power"),
        ("kalman_power_r2", "Kalman filter on band power"),
        ("ridge_lfp_power_r2", "lagged ridge on slow LFP and band power"),
        ("kalman_lfp_power_r2", "Kalman filter on slow LFP and band power"),
    ):
        if metrics[name] is not None:  # the preset may have no bands
            print(f"  {metrics[name]:7.3f}   {what}")
    print("\nstep latency on this machine, one thread")
    for subject in measured["subjects"]:
        p = subject["latency_us"]
        name = f"{subject['name']}, {subject['engine']}"
        print(f"  {name:32s} p50 {p['p50']:6.1f} µs   p99 {p['p99']:6.1f} µs   max {p['max']:.0f} µs")


def draw(session: Path, predictions: Path, metrics: dict[str, Any], picture: Path) -> None:
    """Draws decoded and true velocity over a stretch of the test block, with one panel for each output.

    Around what was decoded lies the band in which nine in ten true values should be.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from edgedistill.data.recording import open_recording

    with predictions.open() as file:
        rows = list(csv.DictReader(file))
    outputs = list(rows[0])[FIRST_OUTPUT:]  # the values, then their standard deviations
    names, deviations = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
    times = np.array([float(row["time_s"]) for row in rows])
    shown = times >= times[-1] - SHOWN_S
    with open_recording(session) as recording:
        assert recording.behavior is not None
        truth, units = recording.behavior.sample_at(times), recording.behavior.units
    figure, axes = plt.subplots(len(names), 1, figsize=(9, 5), sharex=True, constrained_layout=True)
    panels = zip(np.atleast_1d(axes), names, deviations, units, truth.T, strict=True)
    for axis, name, deviation, unit, true in panels:
        decoded, spread = (np.array([float(row[column]) for row in rows]) for column in (name, deviation))
        low, high = decoded - TIMES_90 * spread, decoded + TIMES_90 * spread
        orange = {"color": "tab:orange"}
        axis.fill_between(times[shown], low[shown], high[shown], alpha=0.2, lw=0, label="90 % interval", **orange)
        axis.plot(times[shown], true[shown], color="0.25", lw=1.2, label="true")
        axis.plot(times[shown], decoded[shown], lw=1.6, label="decoded from LFP, streaming", **orange)
        axis.set_ylabel(f"{name.split(' (')[0]}\n({unit})")
        axis.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.22))
    np.atleast_1d(axes)[-1].set_xlabel("time in the session (s)")
    figure.suptitle(f"held-out stretch, INT8 in C, R² = {metrics['int8_r2']:.2f} over the whole test block")
    with atomic_write(picture, "the picture") as partial:
        figure.savefig(partial, dpi=130)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    main()
