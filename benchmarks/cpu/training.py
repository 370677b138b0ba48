"""Measures what training costs: windows a second, memory, and how soon the nano student reaches a given loss.

Tables and `training.json` come out. Each measurement is a process of its own, on a CPU:

  steps      runs the training loop of `build` on random bins of the shape that each preset is meant for, and takes the
             median time of an optimizer step after the warm-up, and the largest memory that the process ever held
  attention  compares `window_attention` of the student with dense masked attention of the same weights, in turn in one
             process, after their outputs and gradients were found equal
  loss       counts optimizer steps and seconds until the distilled nano student first validates at or below LEVEL, on
             three short simulated sessions and over three initializations. This is the figure to improve.

A window is one segment of the preset (5.12 s, or 5 s in paper). Paper at its batch of 32 windows would need tens of
gigabytes and minutes a step on one core. It is measured at one or two windows, where windows a second are about the
same but memory is smaller.

    OMP_NUM_THREADS=1 python -m benchmarks.cpu.training [--quick] [--out benchmarks/results/cpu]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cpu.training_steps import STEP_SUBJECTS, Enough, StepSubject, make_random_session, train_subject
from benchmarks.harness import (
    RESULTS,
    describe_conditions,
    option_parser,
    read_peak_mb,
    run_isolated,
    say,
    write_result,
)
from edgedistill.config import Preset, load_preset
from edgedistill.data.session_loading import load_sessions
from edgedistill.data.simulation.nwb import simulate_to_nwb
from edgedistill.data.simulation.sessions import SimulationConfig
from edgedistill.models.student import StudentBlock
from edgedistill.models.window_attention import attend_at_once, window_attention
from edgedistill.training.batches import TrainingSession, compute_gap, training_session_from_bins
from edgedistill.training.distill import make_student
from edgedistill.training.pretrain import train_teacher
from edgedistill.training.student_tasks import STUDENT_TASKS, train_task
from edgedistill.training.teacher_targets import TEACHER_COMPONENTS, compute_targets

# Validation loss of the distilled student, chosen from a whole run of seed 0: it starts at 5.1, passes 4.36 after about
# 100 of its 300 steps, where it still falls fast enough to be timed, and ends at 4.24. Results that were kept before
# students followed features have the level 3.6, which is that of other targets.
LEVEL = 4.36
MODULE = "benchmarks.cpu.training"
SESSIONS, MINUTES, DATA_SEED = 3, 4.0, 100  # a seed that neither tuning nor benchmarks/accuracy/accuracy.py uses
TEACHER_STEPS, STUDENT_SEEDS, EVAL_EVERY = 100, (0, 1, 2), 10

Figures = dict[str, Any]
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--quick", action="store_true", help="nano alone, few steps; for a look, writes no result")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.quick) | {"peak_mb": read_peak_mb()}))
        return
    begin, quick = time.perf_counter(), options.quick
    subjects = [s for s in STEP_SUBJECTS if s.preset == "nano"] if quick else STEP_SUBJECTS
    result = {
        **describe_conditions(MODULE),
        "threads": 1,
        "torch": torch.__version__,
        "timed": "optimizer step: segments drawn, augmented, forward, loss, backward, clipping, AdamW",
        "steps": [run_alone(subject.name, quick) for subject in subjects],
        "attention": run_alone("attention", quick),
        "loss": run_alone("loss", quick),
    }
    result |= {"load_after": os.getloadavg()[0], "took_s": time.perf_counter() - begin}
    show(result)
    if not quick:
        write_result(options.out, "training", result)


def measure(name: str, quick: bool) -> Figures:
    """Measures one subject, in a process of its own."""
    torch.set_num_threads(1)
    if name == "attention":
        return measure_attention(quick)
    if name == "loss":
        return measure_loss(quick)
    subject = next(s for s in STEP_SUBJECTS if s.name == name)
    return measure_steps(replace(subject, steps=3) if quick else subject)


# ---------------------------------------------------------------- optimizer steps


class Clock:
    """A progress callback that times `steps` optimizer steps after `warmup`, and then leaves the loop."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps = warmup, steps
        self.marks, self.cpu_marks = list[float](), list[float]()

    def __call__(self, step: int, of: int, loss: float, rate: float) -> None:
        """Takes the time after a step."""
        self.marks.append(time.perf_counter())
        self.cpu_marks.append(time.process_time())
        if step == self.warmup + self.steps:
            raise Enough

    def seconds(self) -> list[float]:
        """Returns the seconds of each step after the first `warmup`."""
        return np.diff(self.marks)[self.warmup - 1 :].tolist()

    def cpu_seconds(self) -> list[float]:
        """Returns the same by the processor's clock, which does not count the time of other programs."""
        return np.diff(self.cpu_marks)[self.warmup - 1 :].tolist()


def measure_steps(subject: StepSubject) -> Figures:
    """Measures windows and bins a second, and the memory before the first step."""
    preset = load_preset(subject.preset)
    published = preset.teacher_training if subject.model == "teacher" else preset.training
    clock, before = Clock(subject.warmup, subject.steps), read_peak_mb()
    config = train_subject(subject, clock)
    segments, preset_segments = (c.bins_per_step // c.segment_bins for c in (config, published))
    step_s, step_cpu_s = median(clock.seconds()), median(clock.cpu_seconds())
    return {
        **asdict(subject),
        "segments": segments,
        "segment_bins": config.segment_bins,
        "segments_of_preset": preset_segments,
        "step_s": step_s,
        "step_cpu_s": step_cpu_s,
        "step_s_each": clock.seconds(),
        "windows_per_s": segments / step_s,
        "windows_per_cpu_s": segments / step_cpu_s,
        "bins_per_s": segments * config.segment_bins / step_s,
        "before_mb": before,
    }


# ---------------------------------------------------------------- attention


def attend_densely(q: Tensor, k: Tensor, v: Tensor, age_bias: Tensor, live: int = 0) -> Tensor:
    """Computes `window_attention` without blocks. Every query scores every key, and a mask hides other windows."""
    k, v, bias = make_dense_arguments(k, v, age_bias, live)
    return ((q / math.sqrt(q.shape[3])) @ k.transpose(2, 3) + bias).softmax(-1) @ v


def attend_by_library(q: Tensor, k: Tensor, v: Tensor, age_bias: Tensor, live: int = 0) -> Tensor:
    """Computes the same by torch's own attention, which is fused on a CPU if the mask needs no gradient."""
    k, v, bias = make_dense_arguments(k, v, age_bias, live)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])  # torch fuses only with four axes


def make_dense_arguments(k: Tensor, v: Tensor, age_bias: Tensor, live: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns keys and values of n bins without the empty slots before them, and a bias (heads, n, n)."""
    assert live == 0, "training starts every segment from a fresh state"
    slots = age_bias.shape[1] - 1
    age = torch.arange(k.shape[2] - slots)[:, None] - torch.arange(k.shape[2] - slots)
    bias = age_bias[:, age.clamp(0, slots)].masked_fill((age < 0) | (age > slots), -math.inf)
    return k[:, :, slots:], v[:, :, slots:], bias


ATTENTIONS: dict[str, Attention] = {
    "window": window_attention,
    "at_once": attend_at_once,
    "dense": attend_densely,
    "library": attend_by_library,
}


def measure_attention(quick: bool) -> Figures:
    """Times the three attentions in turn, for segments of training, a validation block and a whole optimizer step."""
    shapes = [("nano", 8, 512)] if quick else [("nano", 8, 512), ("edge", 8, 512), ("nano", 1, 2048)]
    repeats = 3 if quick else 5
    return {
        "differences": "largest absolute difference from `window`, outputs and gradients, of unit-variance values",
        "op": [measure_attention_op(load_preset(name), batch, n, repeats) for name, batch, n in shapes],
        "student_step": measure_student_step(load_preset("nano"), repeats),
    }


def measure_attention_op(preset: Preset, batch: int, n: int, repeats: int) -> Figures:
    """Times the operation alone, with one layer's queries, keys, values and age bias."""
    torch.manual_seed(0)
    block = StudentBlock(preset.student)
    with torch.no_grad():
        q, k, v = block.qkv(torch.randn(batch, n, preset.student.d))
    slots = preset.student.window - 1
    k, v = (F.pad(x, (0, 0, slots, 0)) for x in (k, v))  # the empty cache before the first bin
    inputs = [x.detach().requires_grad_() for x in (q, k, v, block.age_bias)]
    found = {name: [t.detach() for t in compute_outputs_and_gradients(f, inputs)] for name, f in ATTENTIONS.items()}
    differences = {
        name: max(float((a - b).abs().max()) for a, b in zip(parts, found["window"], strict=True))
        for name, parts in found.items()
    }
    if max(differences.values()) > 1e-3:  # generous, since gradients of the bias are sums over batch x n terms
        raise SystemExit(f"the attentions disagree: {differences}")

    def forward(attention: Attention) -> object:
        with torch.no_grad():
            return attention(*inputs, 0)  # type: ignore[call-arg, arg-type]

    forward_s = time_in_turn({name: (lambda f=f: forward(f)) for name, f in ATTENTIONS.items()}, repeats)
    both_s = time_in_turn(
        {name: (lambda f=f: compute_outputs_and_gradients(f, inputs)) for name, f in ATTENTIONS.items()}, repeats
    )
    shape = {"preset": preset.name, "batch": batch, "bins": n, "window": preset.student.window}
    return {
        **shape,
        "differences": differences,
        "forward": add_ratios(forward_s),
        "forward_backward": add_ratios(both_s),
    }


def compute_outputs_and_gradients(attention: Attention, inputs: list[Tensor]) -> list[Tensor]:
    """Returns the output, and the gradients of queries, keys, values and bias for the mean square of the output."""
    out = attention(*inputs, 0)  # type: ignore[call-arg, arg-type]
    return [out, *torch.autograd.grad(out.square().mean(), inputs)]


def measure_student_step(preset: Preset, repeats: int) -> Figures:
    """Times loss and backward of the whole student with each attention, on the same weights and segments."""
    config, session = preset.training, make_random_session(32)
    student = make_student([session], "lfp", preset.student, TEACHER_COMPONENTS, 0)
    bins = torch.randn(config.bins_per_step // config.segment_bins, config.segment_bins, 32)

    def step(name: str) -> Tensor:
        with use_attention(name):
            latents: Tensor = student(session.id, bins)
        student.zero_grad()
        latents.square().mean().backward()
        return latents.detach()

    latents = {name: step(name) for name in ATTENTIONS}
    differences = {name: float((x - latents["window"]).abs().max()) for name, x in latents.items()}
    if max(differences.values()) > 1e-3:
        raise SystemExit(f"the students disagree: {differences}")
    seconds = time_in_turn({name: (lambda name=name: step(name)) for name in ATTENTIONS}, repeats)
    return {"preset": preset.name, "batch": len(bins), "bins": bins.shape[1], "differences": differences} | (
        {"forward_backward": add_ratios(seconds)}
    )


@contextmanager
def use_attention(name: str) -> Iterator[None]:
    """Makes the student compute with another attention."""
    with mock.patch("edgedistill.models.student.window_attention", ATTENTIONS[name]):
        yield


def time_in_turn(subjects: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Returns the median seconds of each subject. They take turns so that all see the same load, after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats + 1):
        for name, call in subjects.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: median(times[1:]) for name, times in seconds.items()}


def add_ratios(seconds: dict[str, float]) -> Figures:
    """Returns milliseconds, and how many times as long as `window` the others take."""
    ratios = {f"{name}_over_window": s / seconds["window"] for name, s in seconds.items() if name != "window"}
    return {f"{name}_ms": 1e3 * s for name, s in seconds.items()} | ratios


# ---------------------------------------------------------------- steps to a loss


def measure_loss(quick: bool) -> Figures:
    """Trains a teacher for a few steps, and then students that follow it until they validate at LEVEL."""
    preset, seeds = load_preset("nano"), STUDENT_SEEDS[:1] if quick else STUDENT_SEEDS
    with tempfile.TemporaryDirectory() as folder:
        config = SimulationConfig(sessions=SESSIONS, minutes=MINUTES, seed=DATA_SEED)
        bins = load_sessions(list(simulate_to_nwb(config, Path(folder))))
        sessions = [training_session_from_bins(b, compute_gap(bins, preset.student)) for b in bins]
        begin = time.perf_counter()
        schedule = replace(preset.teacher_training, steps=TEACHER_STEPS, eval_every=TEACHER_STEPS)
        teacher = train_teacher(sessions, preset.teacher, schedule, 0)
        teacher_latents = compute_targets(teacher, sessions, schedule)
        teacher_s = time.perf_counter() - begin
        runs = [train_to_level(sessions, teacher_latents, preset, seed, Path(folder), quick) for seed in seeds]
    reached = all(run["steps"] is not None for run in runs)
    return {
        "level": LEVEL,
        "what": "validation loss of row `distilled`: 0.1 x reconstruction + 5 x (1 - cosine to the teacher)",
        "data": f"{SESSIONS} simulated sessions of {MINUTES:g} min, 32 channels, 64 units, seed {DATA_SEED}",
        "teacher": f"preset nano, {TEACHER_STEPS} steps, seed 0; its features are the same for every student",
        "schedule_steps": preset.training.steps,
        "checked_every": EVAL_EVERY,
        "teacher_s": teacher_s,
        "runs": runs,
        "steps": median(run["steps"] for run in runs) if reached else None,
        "seconds": median(run["seconds"] for run in runs) if reached else None,
        "cpu_s": median(run["cpu_s"] for run in runs) if reached else None,
    }


def train_to_level(
    sessions: list[TrainingSession],
    teacher_latents: dict[str, Tensor],
    preset: Preset,
    seed: int,
    folder: Path,
    quick: bool,
) -> Figures:
    """Trains one student until it validates at LEVEL or its schedule ends. Seconds include validating."""
    checkpoint = folder / f"student-{seed}.safetensors"
    marks, cpu_marks = [time.perf_counter()], [time.process_time()]
    config = replace(preset.training, eval_every=EVAL_EVERY, patience=preset.training.steps)

    def watch(step: int, of: int, loss: float, rate: float) -> None:
        marks.append(time.perf_counter())
        cpu_marks.append(time.process_time())
        done = step % EVAL_EVERY == 0 and read_history(checkpoint)[-1][1] <= LEVEL
        if done or (quick and step == 2 * EVAL_EVERY):
            raise Enough

    with suppress(Enough):
        train_task(STUDENT_TASKS["distilled"], sessions, preset, config, seed, teacher_latents, checkpoint, watch)
    history = read_history(checkpoint)
    step = next((step for step, loss in history if loss <= LEVEL), None)
    return {
        "seed": seed,
        "steps": step,
        "seconds": None if step is None else marks[step] - marks[0],
        "cpu_s": None if step is None else cpu_marks[step] - cpu_marks[0],
        "step_s": median(np.diff(marks).tolist()),
        "validation": history,
    }


def read_history(checkpoint: Path) -> list[tuple[int, float]]:
    """Returns (step, validation loss) so far, which the training loop keeps in its checkpoint."""
    with safe_open(checkpoint, "pt") as file:
        history = json.loads(file.metadata()["state"])["history"]
    return [(int(step), float(loss)) for step, loss in history]


# ---------------------------------------------------------------- processes and the result


def run_alone(subject: str, quick: bool) -> Figures:
    """Measures one subject in a process of its own, with one thread, no GPU and a peak memory of its own."""
    say(f"measuring {subject}")
    arguments = ["--measure", subject, *(["--quick"] if quick else [])]
    return run_isolated(MODULE, arguments, environment={"CUDA_VISIBLE_DEVICES": ""})


def show(result: Figures) -> None:
    console = Console(width=110)
    table = Table(
        "model",
        "windows/step",
        "step s",
        "windows/s",
        "per CPU s",
        "bins/s",
        "peak MB",
        title=str(result["device"]["cpu"]),
    )
    for row in result["steps"]:
        windows = f"{row['segments']} of {row['segments_of_preset']} x {row['segment_bins']}"
        rates = f"{row['step_s']:.2f}", f"{row['windows_per_s']:.2f}", f"{row['windows_per_cpu_s']:.2f}"
        ends = f"{row['bins_per_s']:.0f}", f"{row['peak_mb']:.0f}"
        table.add_row(f"{row['preset']} {row['model']}", windows, *rates, *ends)
    console.print(table)
    table = Table("attention", "pass", "window ms", "dense", "torch's own", title="times as long as window_attention")
    for row in (*result["attention"]["op"], result["attention"]["student_step"]):
        whole = ", whole student" if row is result["attention"]["student_step"] else ""
        for part in ("forward", "forward_backward"):
            if part in row:
                ratios = (f"x {row[part][f'{name}_over_window']:.2f}" for name in ("dense", "library"))
                shape = f"{row['preset']}, {row['batch']} x {row['bins']}{whole}"
                table.add_row(shape, part.replace("_", " + "), f"{row[part]['window_ms']:.0f}", *ratios)
    console.print(table)
    loss = result["loss"]
    table = Table("seed", "steps", "s", "CPU s", "last validation", title=f"to a validation loss of {loss['level']}")
    for run in loss["runs"]:
        step, last = run["validation"][-1]
        table.add_row(
            str(run["seed"]), *(format_number(run[k]) for k in ("steps", "seconds", "cpu_s")), f"{last:.3f} at {step}"
        )
    table.add_row("median", *(format_number(loss[k]) for k in ("steps", "seconds", "cpu_s")), "")
    console.print(table)


def format_number(value: float | None) -> str:
    """Formats a figure for a table. A level that was not reached has none."""
    return "-" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
