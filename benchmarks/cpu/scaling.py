"""Measures what several processes gain that train one model together, and what they send to each other.

It is started by torchrun with as many processes as are to be measured, or alone, and prints one line of JSON. The
models are those of `nano` on bins of noise. `--sessions` says how many sessions the model has weights for. With `--all`
the weights of all sessions are in DistributedDataParallel, which then sends them in every step, for comparison.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 -m benchmarks.cpu.scaling --sessions 300
"""

from __future__ import annotations

import argparse
import json
import os
import time
from contextlib import suppress
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import distributed

from benchmarks.cpu.training import Clock
from benchmarks.cpu.training_steps import Enough, make_random_session
from edgedistill import ranks
from edgedistill.config import load_preset
from edgedistill.training import shared_steps
from edgedistill.training.pretrain import train_teacher
from edgedistill.training.student_tasks import STUDENT_TASKS, train_task
from edgedistill.training.teacher_targets import TEACHER_COMPONENTS

INPUTS = {"teacher": 64, "student": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=sorted(INPUTS), default="teacher")
    parser.add_argument("--sessions", type=int, default=34)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--all", action="store_true", help="weights of all sessions in DistributedDataParallel")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with ranks.joined():
        if options.all:
            shared_steps.is_named_after_a_session = lambda name: False  # type: ignore[assignment]
        result = measure(options.model, options.sessions, options.steps)
        if ranks.is_main():
            print(json.dumps(result | {"all": options.all}))
        with suppress(ranks.Released):
            ranks.release()


def measure(model: str, count: int, steps: int) -> dict[str, Any]:
    """Returns the duration of a step, and the bytes and the waiting time of what is added up over the processes."""
    preset, clock, sent = load_preset("nano"), Clock(2, steps), [0, 0.0]
    one = make_random_session(INPUTS[model])
    sessions = [replace(one, id=f"day{number}") for number in range(count)]
    latents = {session.id: torch.randn(len(one.valid), TEACHER_COMPONENTS) for session in sessions}
    add_up = ranks.sum_in_place

    def watched(value: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        found = add_up(value)
        sent[0], sent[1] = sent[0] + value.numel() * value.element_size(), sent[1] + time.perf_counter() - start
        return found

    ranks.sum_in_place = watched
    buckets = [0]
    wrapped = shared_steps.DistributedDataParallel

    def wrap(module: torch.nn.Module, **settings: Any) -> torch.nn.Module:
        buckets[0] = sum(weight.numel() * weight.element_size() for weight in module.parameters())
        return wrapped(module, **settings)

    shared_steps.DistributedDataParallel = wrap  # type: ignore[assignment,misc]
    with suppress(Enough):
        if model == "teacher":
            config = replace(preset.teacher_training, eval_every=preset.teacher_training.steps)
            train_teacher(sessions, preset.teacher, config, 0, progress=clock)
        else:
            config = replace(preset.training, eval_every=preset.training.steps)
            train_task(STUDENT_TASKS["distilled"], sessions, preset, config, 0, latents, progress=clock)
    taken, step_s = len(clock.marks), median(clock.seconds())
    return {
        "model": model,
        "processes": ranks.size(),
        "sessions": count,
        "step_s": step_s,
        "step_cpu_s": median(clock.cpu_seconds()),
        "windows_per_s": config.bins_per_step / config.segment_bins / step_s,
        "bucket_bytes": buckets[0],
        "own_bytes_a_step": sent[0] / taken,
        "own_wait_s_a_step": sent[1] / taken,
        "all_reduce_s": time_all_reduce(buckets[0]) if ranks.size() > 1 else 0.0,
        "load": os.getloadavg()[0],
    }


def time_all_reduce(size: int) -> float:
    """Returns the median time in which all processes add up so many bytes, with nothing else to do."""
    values, times = torch.zeros(max(1, size // 4)), []
    for _ in range(10):
        distributed.barrier()
        start = time.perf_counter()
        distributed.all_reduce(values)
        times.append(time.perf_counter() - start)
    return median(times)


if __name__ == "__main__":
    main()
