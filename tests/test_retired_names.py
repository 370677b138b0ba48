"""Names that were retired stay retired: one word has one meaning, and a stranger who searches for it finds that one.

The table holds a regular expression for each retired name and what is written instead. Only the change log, the
decisions and the measured results may still tell of the old names.
"""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from .git_files import tracked_files

ROOT = Path(__file__).resolve().parents[1]
MAY_TELL = ("CHANGELOG.md", "docs/decisions.md", "benchmarks/results/", "tests/test_retired_names.py")
OLD_SPELLING = (  # files of others and folders of earlier versions are read, whichever spelling they have
    "edgedistill/models/files.py",
    "tests/models/test_files.py",
    "tests/pipeline/test_pretrained_student.py",
)

PACKAGE = r"edgedistill[./]"  # a module's path or its dotted name
WORDS = {
    r"(?i)behaviour": "behavior, as NWB writes it",
    r"\bdescribed\(": "read_decoder_spec()",
    r"\b_?planned\(": "build_spec()",
    r"\bmade_once\b": "build_if_missing()",
    r"\b_?judged\(": "size_gates()",
    r"\bknows\(": "has_session()",
    r"\btaught_by\b": "distillation_of()",
    r"\bSpread\b": "RowLayout",
    r"\bclass Plan\b|\bcommands\.Plan\b": "BuildSpec: a plan is TensorRT's alone",
    r"student_tasks import .*\b(Row|ROWS)\b": "StudentTask, STUDENT_TASKS",
    r"\bin (str\()?\w+\.what\b": "a typed error of edgedistill.errors: NotCompiled, StalePlan",
    r"\b(given|rows|fits)\.py\b": "pretrained_student.py, student_tasks.py, holdout_scores.py",
    r"\bspike_view\b": "bundle/spike_student.py",
    r"\bcuda_driver\b": "machine/gpu.py",
    r"\bbuilt_folder\b": "compile/build_folder.py",
    r"\btensorrt_machine\b|\btensorrt_(builder|forms|plan|trials)\.py\b": "compile/tensorrt/",
    r"\bc_(library|model|frontend|packing)\.py\b": "compile/c/",
    r"\bcuda_(module|packing)\.py\b|\bgpu_chip\b": "compile/cuda/",
    r"\bcommands import .*\banswer\b": "machine.programs.ask_program()",
    r"\battention_window\b": "nothing: the kernel had no caller",
    r"\bruntime\.cpp\b": "kernels/tensorrt/engine.cpp",
}
MODULES = {
    "subjects": "bench/",
    "runs": "decoding.py",
    "build": "pipeline/",
    "runtime[./](processor|cuda_driver|jetson|build_record|compiled)": "machine/, bundle/, runtime/compiled_engines.py",
    "measure[./](machine|report)": "machine/description.py, report/",
    "data[./](windows|behaviour|behaviour_choice|simulate)": "bins.py, behavior.py, behavior_choice.py, simulation.py",
    "training[./](rows|finetune)": "training/student_tasks.py, quantization/training/finetuning.py",
    "quantization[./](fake_quant|straight_through)": "quantization/training/",
    "quantization[./](activations|observers|thresholds|ranges|recipe|calibrate|windows)": "quantization/calibration/",
    "quantization[./](graph_rules\\.py|graph_typing|attention_rules|graph_reading)": "quantization/graph_rules/",
    "compile[./](c_library|c_model|c_frontend|c_packing|toolchain|footprint)": "compile/c/",
    "compile[./](cuda_module|cuda_packing|nvcc|gpu_chip)": "compile/cuda/",
    "compile[./]tensorrt_\\w+": "compile/tensorrt/",
    "pipeline[./](given|options|run|quantize|assemble|reference|stages)": "the modules of pipeline/ are nouns",
}
FOLDERS = {
    r"\bkernels/cuda/(emulation|driver\.h|build_file\.h)": "emulation/cuda/, kernels/gpu/",
    r"\bkernels/fuzz\b": "emulation/fuzz/",
    r"\bkernels/c/cortex-m7\b": "emulation/cortex-m/",
    r"\bbenchmarks/gpu_(checks|device|machine|peers|students|subjects|tables)\b": "benchmarks/gpu/",
}
RETIRED = (
    WORDS
    | {rf"\b{PACKAGE}{name}\b".replace(r"[./](", r"([./]| import )("): now for name, now in MODULES.items()}
    | FOLDERS
)


Texts = dict[str, list[str]]


def read_texts(root: Path) -> Texts:
    """Returns path and lines of every tracked file under `root` that must not use a retired name."""
    texts = {}
    for name in tracked_files(root):
        if not name.startswith(MAY_TELL):
            with suppress(UnicodeDecodeError):  # a picture
                texts[name] = (root / name).read_text(encoding="utf-8").splitlines()
    return texts


def places(texts: Texts, pattern: str) -> list[str]:
    """Returns path, line number and text wherever the pattern stands, and each path that holds it."""
    retired = re.compile(pattern)
    lines = (f"{name}:{i}: {line.strip()}" for name, text in texts.items() for i, line in enumerate(text, 1)
             if retired.search(line))  # fmt: skip
    return [*filter(retired.search, texts), *lines]


@pytest.fixture(scope="module")
def texts() -> Texts:
    return read_texts(ROOT)


@pytest.mark.parametrize("pattern", RETIRED)
def test_a_retired_name_is_not_used(texts: Texts, pattern: str) -> None:
    found = places(texts, pattern)
    if pattern == "(?i)behaviour":
        found = [place for place in found if not place.startswith(OLD_SPELLING)]
    assert not found, f"write instead: {RETIRED[pattern]}\n" + "\n".join(found)


def test_a_retired_name_is_noticed_in_a_text_and_in_a_path(tmp_path: Path) -> None:
    git = subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, capture_output=True, check=False)
    if git.returncode:
        pytest.skip("git does not answer here")
    (tmp_path / "edgedistill" / "data").mkdir(parents=True)
    (tmp_path / "edgedistill" / "data" / "windows.py").write_text("\nfrom edgedistill.runtime import processor\n")
    for name in ("README.md", "CHANGELOG.md"):
        (tmp_path / name).write_text("see edgedistill/runtime/processor.py and the Behaviour of made_once()\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG behaviour")
    found = {place.split(": ")[0] for pattern in RETIRED for place in places(read_texts(tmp_path), pattern)}
    assert found == {"edgedistill/data/windows.py", "edgedistill/data/windows.py:2", "README.md:1"}
