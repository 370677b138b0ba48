#!/usr/bin/env bash
# Does all that a GPU is needed for, in one command of at most ten minutes, on a machine with an NVIDIA GPU:
#
#     bash benchmarks/gpu_session.sh FOLDER
#
#   1. gpu_suite.sh --quick: every kernel against the definition, and its times, with int8 weights and with packed
#      four-bit weights, for blocks of several sizes
#   2. two simulated sessions, and a build of `nano` for this GPU that trains on it: seconds of every stage
#   3. compile --target cuda, which holds the compiled engine against the bundle's reference
#   4. bench --engine cuda with energy: NVML before, while and after decoding, mJ a step with its interval
#   5. the same build again, which must find every stage, and a build of `edge`
#
# FOLDER/session.json says of each part how long it took and how it ended; the other files beside it are what the parts
# wrote. A part that fails or takes longer than its limit ends, and the others go on. Without PyTorch, pynwb and onnx
# parts 2 to 5 are left out. $SESSION_STEPS limits the optimizer steps of a stage (default 300), $SESSION_PRESETS names
# the presets of parts 2 and 5 (default "nano edge"), $SESSION_ENERGY is the --energy of bench (default 3),
# $SUITE_OPTIONS takes the place of `--quick --blocks 128 256 512`, and $SESSION_LIMIT that of 600 seconds.
#
# Exit status: 0 if every part ended well, 1 otherwise, 3 if gpu_suite.sh says that this machine lacks something.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ $# -eq 1 ]] || { echo "usage: bash benchmarks/gpu_session.sh FOLDER" >&2; exit 1; }
mkdir -p "$1" || exit 1
out="$(cd "$1" && pwd)"
python="${PYTHON:-}"
if [[ -z "$python" ]]; then
    python="$root/.venv/bin/python"
    [[ -x "$python" ]] || python="python3"
fi
export PYTHON="$python" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
read -ra presets <<<"${SESSION_PRESETS:-nano edge}"
read -ra suite <<<"${SUITE_OPTIONS:---quick --blocks 128 256 512}"
steps="${SESSION_STEPS:-300}"
limit="${SESSION_LIMIT:-600}"
parts=()
failed=0

# part NAME SECONDS COMMAND...: runs a command for at most SECONDS of a session of ten minutes
part() {
    local name="$1" most=$(($2 * limit / 600)) began="$SECONDS" status=0
    shift 2
    ((most < limit - SECONDS)) || most=$((limit - SECONDS))
    if ((most < 5)); then
        status=124
    else
        echo "part $name: at most $most s" >&2
        timeout "$most" "$@" >"$out/$name.out" 2>"$out/$name.log" || status=$?
    fi
    parts+=("{\"part\": \"$name\", \"seconds\": $((SECONDS - began)), \"status\": $status}")
    ((status == 0)) || { failed=1; echo "part $name ended with status $status; see $out/$name.log" >&2; }
    return "$status"
}

finish() {
    local IFS=,
    printf '{"limit_s": %d, "seconds": %d, "parts": [%s]}\n' "$limit" "$SECONDS" "${parts[*]}" >"$out/session.json"
    cat "$out/session.json"
    exit "$1"
}

part suite 240 bash "$root/benchmarks/gpu_suite.sh" "$out" "${suite[@]}"
case $? in
3) finish 3 ;;
2) failed=0 ;; # all is right but slower than promised, which kernels.json says
esac

if ! "$python" -c "import torch, pynwb, onnx" 2>/dev/null; then
    echo "left out: training and bench, which need PyTorch, pynwb and onnx: $python -m pip install -e $root" >&2
    finish 1
fi

part simulate 60 "$python" -m edgedistill simulate --out "$out/data" --sessions 2 --minutes "${SESSION_MINUTES:-4}" \
    --seed 1 --json
first="${presets[0]}"
build() { # build NAME PRESET: the work folder belongs to the preset
    part "build-$1" 240 "$python" -m edgedistill build --target cuda --data "$out/data" --preset "$2" --steps "$steps" \
        --out "$out/$(basename "$2" .toml).edge" --work "$out/$(basename "$2" .toml).work" --json
}
bundle="$out/$(basename "$first" .toml).edge"
build "$(basename "$first" .toml)" "$first"
part compile 60 "$python" -m edgedistill compile "$bundle" --target cuda --json
part bench 150 "$python" -m edgedistill bench "$bundle" --engine cuda --against onnxruntime-int8 \
    --closed-loop 2 --energy "${SESSION_ENERGY:-3}" --json --out "$out/bench.json"
build "$(basename "$first" .toml)-again" "$first"
for preset in "${presets[@]:1}"; do
    build "$(basename "$preset" .toml)" "$preset"
done
finish "$failed"
