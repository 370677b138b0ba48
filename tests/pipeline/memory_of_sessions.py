"""Says how much memory it takes to open a kept session, prepare it for training, draw from it and fit a read-out.

Run as a program, with the file of the session and a folder for scratch files. It prints megabytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from edgedistill import scratch
from edgedistill.config import TrainingConfig
from edgedistill.data import session
from edgedistill.data.session_store import load_session_bins
from edgedistill.pipeline.run_context import sha256_of
from edgedistill.training.augment import draw_augmented
from edgedistill.training.batches import make_generator, training_session_from_bins
from edgedistill.training.evaluate import find_calm_bins, probe
from edgedistill.training.lagged_features import LaggedFeatures

TRAINING = TrainingConfig(bins_per_step=1024, segment_bins=256, burn_in=8, learning_rate=5e-3, steps=12)


def main(kept: Path, folder: Path) -> None:
    """Prints the most memory that was in use."""
    scratch.BLOCK_VALUES, session.COLUMN_BYTES = 1 << 18, 1 << 22
    torch.set_num_threads(1)
    with scratch.scratch_in(folder):
        made = training_session_from_bins(load_session_bins(kept), 300)
        bins = made.inputs("lfp")
        sha256_of(bins)
        for step in range(4):
            draw_augmented(made, "lfp", [made.targets("lfp")], TRAINING, make_generator(0, step))
        latents = scratch.keep(bins[:, :8].numpy())
        probe(LaggedFeatures(latents, bins.numpy(), 1), made, find_calm_bins(made, "lfp", 1))
    status = Path("/proc/self/status").read_text().splitlines()  # getrusage would count what the parent held
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    sys.stdout.write(f"{peak // 1024}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
