"""Shows what `latency.py` found, as tables on a terminal or, for docs/latency.md, in Markdown.

python -m benchmarks.cpu.latency_tables benchmarks/results/cpu/latency.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 140
PERCENTILES = ("p50", "p95", "p99", "p999", "max")


def show(result: dict[str, Any]) -> None:
    console = Console(width=WIDTH)
    device = result["device"]
    load = f"load {device['load']} before, {result['after']['load']} after"
    console.print(f"{device['cpu']}, {device['compiler']}; one core, {result['core_share']:.0%} of it ours; {load}")
    for table in (
        make_step_table(result),
        make_peer_table(result),
        make_paced_table(result),
        make_roofline_table(result),
        *make_scale_tables(result),
        make_size_table(result),
    ):
        console.print(table)
    for gate in result["gates"]:
        verdict = {True: "met   ", False: "MISSED", None: "not measured"}[gate["ok"]]
        value = "" if gate["value"] is None else f": {gate['value']:.2f}, limit {gate['limit']:g}"
        console.print(f"{verdict} {gate['name']}{value}")


def make_percentile_table(title: str, first: str) -> Table:
    return make_number_table(first, *(f"{name} us" for name in PERCENTILES), title=title)


def make_number_table(first: str, *more: str, title: str) -> Table:
    """Returns a table with a column of names and columns of numbers."""
    table = Table(first, title=title)
    for heading in more:
        table.add_column(heading, justify="right")
    return table


def add_row(table: Table, name: str, found: dict[str, float], *more: str) -> None:
    table.add_row(name, *(f"{found[part]:.2f}" for part in PERCENTILES), *more)


def make_step_table(result: dict[str, Any]) -> Table:
    """Returns the table of the C engine: the presets, other data, whole bins of frames, and the empty loops."""
    table = make_percentile_table("C engine, in C", "subject")
    for name, found in result["step"].items():
        if not name.startswith(("window", "layers", "channels")):
            add_row(table, f"ed_step, {name}", found)
    for name, found in result["push"].items():
        add_row(table, f"ed_push of 10 frames, {name}", found)
    for name, found in result["data"].items():
        add_row(table, f"ed_step, {name}", found)
    for name, found in result["empty"].items():
        add_row(table, f"empty loop, {name}", found)
    return table


def make_peer_table(result: dict[str, Any]) -> Table:
    table = make_percentile_table("from Python", "subject")
    table.add_column("times ed_step", justify="right")
    for name, found in result.get("peers", {}).items():
        step = result["step"][f"{name.split(', ')[0]}, {result['variants'][0]}"]
        add_row(table, name, found, f"{found['p50'] / step['p50']:.1f}")
    return table


def make_paced_table(result: dict[str, Any]) -> Table:
    table = make_percentile_table("one step every 10 ms", "subject")
    for key, ways in result["paced"].items():
        add_row(table, f"{key}, flat out", result["step"][key])
        for way, found in ways.items():
            add_row(table, f"{key}, {way}", found)
    return table


def make_roofline_table(result: dict[str, Any]) -> Table:
    found = result["roofline"]
    reads = ", ".join(f"{name} {rate:.0f}" for name, rate in found["bytes_per_ns"].items() if rate)
    title = f"roofline: {found['multiply_adds_per_ns']:.0f} multiply-adds a ns; GB/s from {reads}"
    table = make_number_table(
        "step", "bytes", "us", "multiply-adds", "us", "larger", "sum", "measured p50", "over larger", title=title
    )
    for key, floor in found["steps"].items():
        if floor and not key.startswith(("window", "layers", "channels")):
            p50 = result["step"][key]["p50"]
            table.add_row(key, *format_floor(floor), f"{p50:.2f}", f"{floor['ratio']:.2f}")
    return table


def format_floor(floor: dict[str, float]) -> list[str]:
    counted = (f"{floor['bytes']:,.0f}", f"{floor['bytes_us']:.2f}")
    computed = (f"{floor['multiply_adds']:,.0f}", f"{floor['multiply_adds_us']:.2f}")
    return [*counted, *computed, f"{floor['max_us']:.2f}", f"{floor['sum_us']:.2f}"]


def make_scale_tables(result: dict[str, Any]) -> list[Table]:
    """Returns a table for each dimension, whose last column tells a cliff from linear growth."""
    tables = []
    for what in ("window", "layers", "channels"):
        table = make_number_table(
            what, "bytes", "p50 us", "p99 us", "roofline us", "over roofline", "us each more", title=f"edge, by {what}"
        )
        before: tuple[int, float] | None = None
        for name, found in result["step"].items():
            if not name.startswith(f"{what}, "):
                continue
            value, floor = int(name.split(", ")[1]), result["roofline"]["steps"][name]
            slope = "" if before is None else f"{(found['p50'] - before[1]) / (value - before[0]):.4f}"
            before = value, found["p50"]
            facts = (
                (f"{floor['bytes']:,}", f"{floor['max_us']:.2f}", f"{floor['ratio']:.2f}") if floor else ("", "", "")
            )
            table.add_row(str(value), facts[0], f"{found['p50']:.2f}", f"{found['p99']:.2f}", *facts[1:], slope)
        tables.append(table)
    return tables


def make_size_table(result: dict[str, Any]) -> Table:
    names = ("state", "exported", "weights", "code", "constants")
    table = make_number_table("model", *names, title="bytes")
    for key, found in result["sizes"].items():
        table.add_row(key, *(f"{found[name]:,}" for name in names))
    return table


# ---------------------------------------------------------------- Markdown


def format_markdown(result: dict[str, Any]) -> str:
    """Returns the rows that a reader chooses by."""
    native, push, floor = result["variants"][0], result["push"], result["roofline"]["steps"]
    lines = ["| | p50 µs | p99 | p99.9 | max | |", "|:--|--:|--:|--:|--:|:--|"]
    for preset in ("edge", "nano", "paper"):
        key = f"{preset}, {native}"
        over = f"{floor[key]['ratio']:.2f} × its roofline of {floor[key]['max_us']:.2f} µs" if floor[key] else ""
        lines.append(format_row(f"`{preset}`, `ed_step`", result["step"][key], over))
        lines.append(format_row(f"`{preset}`, `ed_push` of ten frames", push[key], ""))
        for name, found in result["step"].items():
            if name.startswith(f"{preset}, ") and name != key:
                lines.append(format_row(f"`{preset}`, `ed_step`, {name.split(', ')[1]}", found, ""))
        for name, found in result["paced"][key].items():
            lines.append(format_row(f"`{preset}`, every 10 ms, {name}", found, ""))
        lines += format_fastest_peers(result, preset, result["step"][key]["p50"])
    lines.append(format_row("the loop without a step", result["empty"]["step"], ""))
    return "\n".join(lines)


def format_row(name: str, found: dict[str, float], remark: str) -> str:
    figures = (found[part] for part in ("p50", "p99", "p999", "max"))
    return f"| {name} | {' | '.join(f'{x:.2f}' if x < 100 else f'{x:,.0f}' for x in figures)} | {remark} |"


def format_fastest_peers(result: dict[str, Any], preset: str, step_us: float) -> list[str]:
    """Returns a row for each peer, and for each graph that of the faster way to run it."""
    best: dict[str, dict[str, float]] = {}
    for name, found in result.get("peers", {}).items():
        of, _, subject = name.partition(", ")
        subject = subject.removesuffix(", no MatMulAddFusion")
        if of == preset and (subject not in best or found["p50"] < best[subject]["p50"]):
            best[subject] = found
    return [
        format_row(f"`{preset}`, {name}", found, f"{found['p50'] / step_us:,.1f} × `ed_step`")
        for name, found in best.items()
    ]


if __name__ == "__main__":
    print(format_markdown(json.loads(Path(sys.argv[1]).read_text())))
