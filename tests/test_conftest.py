"""Tests that share fixtures of minutes run on one worker."""

from __future__ import annotations

import re
import subprocess
import sys

from .conftest import LONG, group_of, place_in_line
from .test_house import ROOT


def test_the_tests_of_a_file_and_those_of_the_pipeline_are_groups() -> None:
    assert group_of("tests/pipeline/test_build.py::test_a[x::y]") == group_of("tests/pipeline/test_smoothed.py::test_b")
    alone = {group_of(f"tests/pipeline/{file}.py::test_a") for file in ("test_build", "test_confidence", "test_memory")}
    assert len(alone) == 3
    assert group_of("tests/test_files.py::test_a") == group_of("tests/test_files.py::test_b[1]")
    assert group_of("tests/test_files.py::test_a") != group_of("tests/test_errors.py::test_a")


def test_the_longest_come_first() -> None:
    assert all((ROOT / file).exists() for file in LONG)
    files = ("pipeline/test_build", "kernels/test_aarch64", "test_errors")
    places = [place_in_line(f"tests/{file}.py::test_a") for file in files]
    assert places == sorted(set(places))


def test_two_workers_take_whole_files() -> None:
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadscope", "-v", "-p", "no:cacheprovider"]
    files = ("tests/test_errors.py", "tests/test_files.py")
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    ran = set(re.findall(r"\[(gw\d)\].* (tests/\w+\.py)::", done.stdout))
    assert {file for _, file in ran} == set(files), done.stdout[-2000:]
    assert len(ran) == len(files)
