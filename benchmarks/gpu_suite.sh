#!/usr/bin/env bash
# Checks and measures everything on a machine with an NVIDIA GPU, in one command:
#
#     bash benchmarks/gpu_suite.sh [FOLDER] [options of benchmarks.gpu.kernels]
#
# It compiles the kernels for the chip of this machine and compares them with the definition (100,000 steps of two
# students, with int8 weights and with packed four-bit weights, and compute-sanitizer where it is installed). It times
# them beside PyTorch where that is installed, writes
# FOLDER/DEVICE/kernels.json (FOLDER: benchmarks/results) and prints a table of it. With PyCUDA and pytest it also runs
# the tests that are marked gpu. It takes about five minutes, or one or two with --quick, and changes no setting of the
# GPU.
#
# It needs an NVIDIA driver, nvcc (CUDA 12 or later), gcc and g++, and Python 3.10 with numpy, scipy and safetensors.
# Python is $PYTHON, or else .venv/bin/python, or else python3. Nothing is downloaded or installed.
#
# Exit status: 0 if all is well, 1 if something is wrong or could not be compiled, 2 if all is right but slower than
# promised, 3 if this machine lacks something. What it lacks, and the command that brings it, is printed then.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="$root/benchmarks/results"
if [[ $# -gt 0 && "$1" != -* ]]; then
    mkdir -p "$1"
    out="$(cd "$1" && pwd)"
    shift
fi

say() { printf '%s\n' "$*" >&2; }
lacking=0
lack() {
    say "missing: $1"
    say "  next: $2"
    lacking=1
}

# ---------------------------------------------------------------- what there must be

python="${PYTHON:-}"
if [[ -z "$python" ]]; then
    python="$root/.venv/bin/python"
    [[ -x "$python" ]] || python="python3"
fi
if ! command -v "$python" >/dev/null; then
    say "missing: Python ($python)"
    say "  next: sudo apt install python3 python3-pip"
    exit 3
fi
say "python: $("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    lack "Python 3.10 or later" "PYTHON=/path/to/python3.10 bash benchmarks/gpu_suite.sh"

packages="$("$python" - <<'PY'
import importlib.util, sys
wanted = ["numpy", "scipy", "safetensors"] + (["tomli"] if sys.version_info < (3, 11) else [])
print(*(name for name in wanted if importlib.util.find_spec(name) is None))
PY
)"
[[ -z "$packages" ]] || lack "Python packages: $packages" "$python -m pip install $packages"

for compiler in gcc g++; do
    command -v "$compiler" >/dev/null || lack "$compiler" "sudo apt install gcc g++ libc6-dev"
done
# JetPack and NVIDIA's installers do not put nvcc on the PATH.
if ! command -v nvcc >/dev/null && [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
    if [[ -e /etc/nv_tegra_release ]]; then
        lack "nvcc" "sudo apt install cuda-toolkit-12-6   (JetPack 6; another JetPack, another number)"
    else
        lack "nvcc" "install the CUDA toolkit of the driver's version: developer.nvidia.com/cuda-downloads"
    fi
fi
((lacking == 0)) || exit 3

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
# The reference runs on one core; threads of its libraries would only disturb the clock.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"

# Says what is missing where there is no driver or no GPU.
"$python" - <<'PY' || exit 3
import sys
from edgedistill.errors import EdgeDistillError
from edgedistill.machine.gpu import find_gpu
try:
    gpu = find_gpu()
except EdgeDistillError as error:
    sys.exit(f"missing: a GPU: {error}")
print(f"gpu: {gpu.name} ({gpu.chip}), driver for CUDA {gpu.cuda}", file=sys.stderr)
PY

# ---------------------------------------------------------------- checks and times

status=0
(cd "$root" && exec "$python" -m benchmarks.gpu.kernels --out "$out" "$@") || status=$?

# ---------------------------------------------------------------- the tests that need a GPU

absent="$("$python" - <<'PY'
import importlib.util
print(*(name for name in ("pytest", "pytest_timeout", "pycuda") if importlib.util.find_spec(name) is None))
PY
)"
if [[ -n "$absent" ]]; then
    say "skipped: the tests marked gpu (benchmarks.gpu.kernels has checked the same kernels without PyCUDA)"
    say "  next: PATH=/usr/local/cuda/bin:\$PATH $python -m pip install ${absent//_/-}"
else
    say "tests marked gpu"
    (cd "$root" && "$python" -m pytest -q -m gpu tests/kernels/test_cuda_device.py) || status=1
fi
exit "$status"
