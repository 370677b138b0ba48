"""Two processes train what one would have trained, go on as one after a kill, and end with one message.

The processes are those of `rank_worker.py`. What they compute is compared with the same functions in this process.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from edgedistill.training.losses import DISTILLED_WITH_BEHAVIOR

from . import rank_worker
from .rank_worker import CONFIG, KILLED_AT, Losses, remember

ROOT = Path(__file__).parents[2]
WORKER = ["-m", "tests.training.rank_worker"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Returns the folder and the stderr of two processes, one of which killed itself in the last training."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *WORKER]
    done = subprocess.run(
        [*command, folder, "kill"], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 1
    assert not done.stdout
    return folder, done.stderr


def test_two_processes_train_what_one_would_have_trained(killed: tuple[Path, str]) -> None:
    """The batch has five segments, and each process knows another number of labels, so their shares weigh unlike."""
    together = json.loads((killed[0] / "2.json").read_text())
    alone = rank_worker.train_all()
    assert together.keys() == alone.keys()
    for name, (losses, r2) in alone.items():
        found, found_r2 = together[name]
        assert len(found) == len(losses) == CONFIG.steps
        assert found == pytest.approx(losses, rel=0, abs=1e-5), name
        assert found_r2 == pytest.approx(r2, abs=1e-3), name
        assert r2 > 0.2, name  # it has learned something that could differ


def test_a_killed_process_ends_all_with_one_message_and_one_process_goes_on(killed: tuple[Path, str]) -> None:
    folder, stderr = killed
    assert stderr.count("error: ") == 1, stderr
    assert "run the same command again" in stderr
    losses: Losses = []
    resumed = rank_worker.train_one_student(
        DISTILLED_WITH_BEHAVIOR, remember(losses), folder / "killed.safetensors"
    ).state_dict()
    assert len(losses) == CONFIG.steps - KILLED_AT // CONFIG.eval_every * CONFIG.eval_every
    whole: Losses = []
    undisturbed = rank_worker.train_one_student(DISTILLED_WITH_BEHAVIOR, remember(whole))
    assert losses == pytest.approx(whole[-len(losses) :], rel=0, abs=1e-5)
    for name, weight in undisturbed.state_dict().items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=1e-3, msg=name)


def find_port() -> int:
    """Returns a free port that no other program is given by chance, since it lies below those that the system deals."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.Random(os.getpid()).sample(range(lowest // 2, lowest), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.mark.variant
def test_a_process_that_raises_ends_all_with_one_message(tmp_path: Path) -> None:
    """They are started without torchrun here, as a cluster may do it, so that nobody else ends the other one."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_port())}
    both = [
        subprocess.Popen(
            [sys.executable, *WORKER, tmp_path, "raise"],
            env={**ENVIRONMENT, **place, "RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [1, 1]
    said = [text for end in ends for text in end if text]
    assert len(said) == 1, said
    assert said[0].count("Traceback") == 1
    assert said[0].endswith("ValueError: a defect of one process\n")
    assert not list(tmp_path.iterdir())
