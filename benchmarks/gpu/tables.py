"""Judges kernels.json and formats it as a table for docs/gpu.md: a result goes in, gates and Markdown come out.

python -m benchmarks.gpu.tables benchmarks/results/DEVICE/kernels.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FLOOR = "graph of an empty node, warm"
OVER_FLOOR, OVER_PYTORCH = 3.0, 5.0  # at most, at least
GRAPHS = ("PyTorch CUDA graph",)  # a step is compared with the peers whose names begin so
FIGURES = ("p50", "p99")
FOUR_BITS = "-four-bits"  # behind the name of a preset whose student has packed four-bit weights


def judge_gates(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Judges what the documents promise. `ok` is None, with the reason, where something was not measured."""
    judged = [
        _judge_right(name, part["differ"] == 0, f"{part['differ']} differ") for name, part in result["numerics"].items()
    ]
    for tool, said in result.get("sanitizer", {}).items():
        judged.append(_judge_right(f"compute-sanitizer, {tool}", said["ok"], said.get("reason")))
    for preset in result.get("roofline", {}):
        judged += [judge_over_floor(result, preset), judge_over_pytorch(result, preset)]
    return judged


def _judge_right(name: str, ok: bool | None, reason: str | None) -> dict[str, Any]:
    return {"name": name, "kind": "right", "value": None, "limit": None, "ok": ok, "reason": None if ok else reason}


def judge_over_floor(result: dict[str, Any], preset: str) -> dict[str, Any]:
    """Judges a step, host to host, over the sum of an empty graph and the roofline of its weights."""
    gate = {"name": f"{preset}: step over empty graph + roofline", "kind": "fast", "limit": OVER_FLOOR}
    step, empty = result["step"][f"{preset}, warm"]["p50"], result["floor"][FLOOR]["p50"]
    reading = result["roofline"][preset]["weights"]["us"]
    if reading is None:
        return gate | {"value": None, "ok": None, "reason": "the time to read the weights is lost in the noise"}
    value = step / (empty + reading)
    return gate | {"value": value, "ok": value <= OVER_FLOOR}


def judge_over_pytorch(result: dict[str, Any], preset: str) -> dict[str, Any]:
    """Judges the fastest CUDA graph of PyTorch over our step, both called from Python."""
    gate = {"name": f"{preset}: fastest PyTorch CUDA graph over step", "kind": "fast", "limit": OVER_PYTORCH}
    times = [times["p50"] for name, times in _select_peers(result, preset).items() if name.startswith(GRAPHS)]
    if not times:
        named = f"{preset.removesuffix(FOUR_BITS)}, PyTorch CUDA graph"
        why = [reason for name, reason in result["missing"].items() if named in name]
        return gate | {"value": None, "ok": None, "reason": why[0] if why else "measured without peers"}
    value = min(times) / result["step"][f"{preset}, from Python, warm"]["p50"]
    return gate | {"value": value, "ok": value >= OVER_PYTORCH}


def _select_peers(result: dict[str, Any], preset: str, how: str = ", warm") -> dict[str, dict[str, float]]:
    """Returns the times of the peers of one preset, by their names without the preset.

    A peer has weights of its own, so that those of four-bit weights are the preset's too.
    """
    preset = preset.removesuffix(FOUR_BITS)
    named = ((name.removeprefix(f"{preset}, "), times) for name, times in result.get("peers", {}).items())
    return {name.removesuffix(how): times for name, times in named if name.endswith(how)}


# ---------------------------------------------------------------- markdown


def format_markdown(result: dict[str, Any]) -> str:
    """Returns the table of one device, what the numbers belong to, and the verdicts."""
    device = result["device"]
    head = f"{device['name']} ({device['chip']}), driver for CUDA {device['driver_cuda']}, toolkit {device['toolkit']}"
    return "\n".join([head, "", *_format_times(result), "", *_format_verdicts(result)])


def _format_times(result: dict[str, Any]) -> list[str]:
    if "step" not in result:
        return ["not timed: the numerics are wrong"]
    lines = ["| | p50 µs | p99 | L2 flushed, p50 | |", "|:--|--:|--:|--:|:--|"]
    lines += [
        _format_row(name, result["floor"], name) for name in ("graph of an empty node", "graph of an empty kernel")
    ]
    lines.append(_format_row("launch of an empty kernel", result["floor"], "empty kernel, launched", ""))
    for preset in result["roofline"]:
        lines += _format_preset(result, preset)
    return lines


def _format_preset(result: dict[str, Any], preset: str) -> list[str]:
    roof, python = result["roofline"][preset], result["step"][f"{preset}, from Python, warm"]["p50"]
    judged = judge_over_floor(result, preset)["value"]
    remark = "" if judged is None else f"{judged:.2f} × empty graph + roofline"
    weights = roof["weights"]
    reading = "not measured" if weights["us"] is None else f"{weights['us']:.2f}"
    lines = [
        _format_row(f"`{preset}`, `ed_step`", result["step"], preset, remark=remark),
        _format_row(f"`{preset}`, `ed_step` from Python", result["step"], f"{preset}, from Python"),
        f"| `{preset}`, its weights, read by one multiprocessor | {reading} | | | {_format_port(weights)} |",
    ]
    for what, text in (("kernel", "`ed_student_step`"), ("core", "`ed_attention_step`"), ("append", "`ed_append`")):
        name = f"{preset}, back to back"
        if name in result[what]:
            lines.append(_format_row(f"`{preset}`, {text} on the device, back to back", result[what], name, ""))
    for name, times in result.get("blocks", {}).items():
        if name.startswith(f"{preset}, "):
            lines.append(_format_cells(f"`{preset}`, {name.removeprefix(f'{preset}, ')}", times, None, "on the device"))
    for section in () if preset.endswith(FOUR_BITS) else ("peers", "core peers"):
        for name, times in _select_peers({"peers": result.get(section, {})}, preset).items():
            flushed = _select_peers({"peers": result[section]}, preset, ", L2 flushed").get(name)
            over = f"{times['p50'] / python:.1f} × `ed_step` from Python" if section == "peers" else "from Python"
            lines.append(_format_cells(f"`{preset}`, {name}", times, flushed, over))
    return lines


def _format_port(weights: dict[str, Any]) -> str:
    parts = [f"{weights['bytes'] / 1e6:.2f} MB"]
    if weights["bytes_a_clock"]:
        parts.append(f"{weights['bytes_a_clock']:.0f} B a clock measured")
    if weights["computed_us"]:
        parts.append(f"{weights['computed_us']:.2f} µs at 64")
    return ", ".join(parts)


def _format_row(text: str, times: dict[str, Any], name: str, how: str = ", warm", remark: str = "") -> str:
    return _format_cells(text, times[name + how], times.get(f"{name}, L2 flushed") if how else None, remark)


def _format_cells(text: str, warm: dict[str, float], flushed: dict[str, float] | None, remark: str) -> str:
    cold = f"{flushed['p50']:.2f}" if flushed else ""
    return f"| {text} | {' | '.join(f'{warm[part]:.2f}' for part in FIGURES)} | {cold} | {remark} |"


def _format_verdicts(result: dict[str, Any]) -> list[str]:
    lines = []
    for gate in result["gates"]:
        verdict = {True: "met   ", False: "MISSED", None: "not measured"}[gate["ok"]]
        value = "" if gate["value"] is None else f": {gate['value']:.2f}, limit {gate['limit']:g}"
        reason = f" ({gate['reason']})" if gate.get("reason") else ""
        lines.append(f"{verdict} {gate['name']}{value}{reason}")
    return lines + [f"missing {name}: {reason}" for name, reason in result.get("missing", {}).items()]


if __name__ == "__main__":
    print(format_markdown(json.loads(Path(sys.argv[1]).read_text())))
