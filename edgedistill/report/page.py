"""Writes the page of the report, with one section for each result of `bench`.

A section begins with the sentence that matters most and ends with the provenance of the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from importlib import resources
from typing import Any

from edgedistill.errors import ConfigError
from edgedistill.limits import plain_text
from edgedistill.report.charts import draw_cost, draw_latency, draw_robustness, draw_trace
from edgedistill.report.label_curve import curves_from_results, draw_label_curves, list_label_rows
from edgedistill.report.summary import read_label_minutes, summarize_result
from edgedistill.report.svg import format_number

Result = Mapping[str, Any]
FLAT_OUT = (
    "Steps one after the other without pauses, all subjects in turn. Marks show p50, p99 and the maximum. Heights are "
    "square roots of counts, so that rare slow steps show."
)
COST = "R² against what one step costs. Subjects without an R² are left out."
IN_USE = (
    "The response is the time from when the last sample was due to the output. Waking up is part of it. The subject "
    "“empty” does nothing, so its figures are the machine's own."
)
HARM = (
    "The harm is done to the holdout after the filters. Lost channels of the LFP are then filled in from the others, "
    "as the decoder does it, and lost units are 0. Lines are means of several draws, and bands are their extremes. "
    "Days are a model: LFP channels drift in gain, by about a tenth in 15 days (an assumption), and units turn over "
    "as published. These two assumptions decide how LFP and spikes compare."
)
BANDS = "Bands are 90 % intervals: nine in ten true values should lie in them."
INTERVALS = (
    "An interval is the decoded value plus and minus a number of its standard deviations: 0.674 for 50 %, 1.645 for "
    "90 %. The standard error says how sure a share is, because the holdout is short and errors last."
)
LABELS = (
    "R² on the test block of each build. The best linear decoder is the one with the highest R² there, which favors "
    "it. Bundles that learned from all labels are left out."
)
MODEL = (
    "These figures were not measured. They are computed from the assumptions below, each of which can be replaced "
    "(bench --assume NAME=VALUE)."
)


def page_from_results(results: Sequence[Result], titles: Sequence[str]) -> str:
    """Returns the HTML of `bench` results (parsed JSON), each under its title.

    Raises ConfigError where one is not a result of `bench`.
    """
    folder = resources.files("edgedistill.report")
    css = "".join((folder / name).read_text(encoding="utf-8") for name in ("colours.css", "page.css"))
    sections = "".join(_check_section(result, title) for result, title in zip(results, titles, strict=True))
    with _refuse_others(", ".join(titles)):
        curves = _label_curves(results)
    return plain_text(  # which leaves out what would turn the direction of a line
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>edgedistill: {escape(', '.join(titles))}</title><style>{css}</style></head>"
        f"<body><main>{curves}{sections}</main></body></html>\n"
    )


def _check_section(result: Result, title: str) -> str:
    with _refuse_others(title):
        if not result["subjects"]:
            raise ValueError("no subjects")
        return _write_section(result, title)


@contextmanager
def _refuse_others(title: str) -> Iterator[None]:
    """Turns whatever goes wrong with a part that is not as `bench` writes it into one ConfigError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{title}: not a result of `edgedistill bench`",
            got=f"{type(error).__name__}: {error}",
            next_step="edgedistill bench BUNDLE --out RESULT.json",
        ) from error


def _write_section(result: Result, title: str) -> str:
    subjects, device = result["subjects"], result["device"]
    deadline = next((s["deadline_us"] for s in subjects if s.get("deadline_us")), None)
    name = str((result.get("bundle") or {}).get("name") or title)
    where = device.get("board") or device.get("cpu") or "an unnamed machine"
    parts = [
        f"<h1>{escape(name)}</h1><p class='soft'>{escape(f'{title}, measured on {where}')}</p>",
        f"<p class='summary'>{escape(summarize_result(result))}</p>",
        _gates(result.get("gates") or []),
        "<h2>What each costs and gives</h2>" + _subjects(subjects),
        _figure(draw_latency(subjects, deadline), FLAT_OUT),
        _paced(result, deadline),
        _figure(draw_cost(subjects), COST),
        _few_labels(result.get("bundle") or {}),
        _traces(result.get("trace")),
        _intervals(result.get("intervals")),
        _robustness(result.get("robustness") or []),
        _system(result.get("system")),
        _training((result.get("bundle") or {}).get("training") or {}),
        _layers(result.get("layers") or []),
        _calibration(result.get("calibration") or []),
        _provenance(result),
    ]
    return "".join(parts)


# ---------------------------------------------------------------- parts


def _gates(gates: Sequence[Result]) -> str:
    missed = [g for g in gates if g.get("ok") is False]
    if not missed:
        return ""
    words = "; ".join(f"{g['name']} is {format_number(g['value'])}, limit {format_number(g['limit'])}" for g in missed)
    return f"<p class='missed'>Missed: {escape(words)}.</p>"


def _subjects(subjects: Sequence[Result]) -> str:
    rows = []
    for s in subjects:
        latency = s.get("latency_us") or {}
        rows.append(
            [
                s["name"],
                _format_r2(s.get("r2")),
                *(_format_or_dash(latency.get(key)) for key in ("p50", "p99", "p999", "max")),
                _format_or_dash(s.get("energy_mj_per_step")),
                f"{s.get('engine', '')}, {s.get('precision', '')}",
                _format_or_dash(s.get("steps")),
                _format_or_dash(s.get("params")),
                _format_or_dash(s.get("artifact_bytes")),
            ]
        )
    head = ["subject", "R²", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "mJ a step"]
    head += ["engine", "steps", "parameters", "bytes"]
    reasons = sorted({str(s.get("energy_source")) for s in subjects if s.get("energy_mj_per_step") is None})
    note = f"<p class='soft'>Energy: {escape('; '.join(reasons))}.</p>" if reasons else ""
    missing = "; ".join(
        f"{s['name']}: {s['r2_source']}" for s in subjects if s.get("r2") is None and s.get("r2_source")
    )
    return _table(head, rows) + note + (f"<p class='soft'>No R²: {escape(missing)}.</p>" if missing else "")


def _paced(result: Result, deadline: float | None) -> str:
    ways = (("paced", "every 10 ms"), ("paced_cold", "every 10 ms, caches emptied"))
    measured = [(s["name"], how, s[key]) for s in result["subjects"] for key, how in ways if s.get(key)]
    measured += [
        (name, "every 10 ms", result[key])
        for name, key in (("the decoder on raw frames", "frames_paced"), ("empty", "empty_paced"))
        if result.get(key)
    ]
    rows = []
    for name, how, paced in measured:
        step, response = paced["step_us"], paced["response_us"]
        figures = [step["p50"], step["p99"], response["p99"], response["max"], paced["jitter_us"]]
        rows.append([name, how, *map(format_number, figures), f"{paced['deadline_misses']} of {paced['steps']}"])
    if not rows:
        return ""
    head = ["subject", "woken", "step p50 µs", "p99", "response p99 µs", "max", "jitter µs", "missed"]
    limit = f", deadline {format_number(deadline / 1e3)} ms" if deadline else ""
    whole = (result.get("frames_paced") or {}).get("signal_to_output_ms")
    delay = (
        f" From a signal to the output that reports it: {format_number(whole)} ms, filters included." if whole else ""
    )
    return f"<h2>In use{limit}</h2>{_table(head, rows)}<p class='soft'>{escape(IN_USE + delay)}</p>"


def _traces(trace: Result | None) -> str:
    if not trace:
        return ""
    pictures = "".join(_figure(draw_trace(trace, i), "") for i in range(len(trace["names"])))
    words = ". ".join([trace.get("source", ""), *([BANDS] if trace.get("deviation") else [])])
    return f"<h2>Decoded traces</h2><p class='soft'>{escape(words)}</p>{pictures}"


def _few_labels(bundle: Result) -> str:
    """Returns a table of the decoders that learned from few labels, where the bundle did."""
    minutes, rows = read_label_minutes(bundle), list_label_rows(bundle.get("metrics") or {})
    if minutes is None or not rows:
        return ""
    table = _table(["decoder", "R²"], [[name, f"{r2:.3f}"] for name, r2 in rows.items()])
    return f"<h2>With {minutes:g} min of labels</h2>{table}"


def _label_curves(results: Sequence[Result]) -> str:
    """Returns a picture for each session whose bundles learned from different amounts of labels."""
    return "".join(
        f"<h2>{escape(f'What minutes of labels of {session} bring')}</h2>{_figure(draw_label_curves(curves), LABELS)}"
        for session, curves in curves_from_results(results).items()
    )


def _intervals(intervals: Result | None) -> str:
    if not intervals:
        return ""
    rows = []
    for row in intervals["rows"]:
        lost = f"{row['channels']} channels, {row['lost']}" if row["channels"] else "none"
        shares = [f"{c['share']:.1%} ± {_format_share(c['standard_error'])}" for c in row["coverage"]]
        rows.append([lost, *shares, ", ".join(map(format_number, row["deviation"]))])
    head = ["channels lost", *(f"in {c['level']:.0%} intervals" for c in intervals["rows"][0]["coverage"])]
    table = _table([*head, "deviation of each output"], rows)
    title = f"<h2>True values inside the intervals of {escape(intervals['subject'])}</h2>"
    return f"{title}{table}<p class='soft'>{INTERVALS}</p>"


def _robustness(curves: Sequence[Result]) -> str:
    if not curves:
        return ""
    pictures = "".join(_figure(draw_robustness(curve), "") for curve in curves)
    rows = [
        [
            name,
            curve["kind"],
            *(f"{format_number(lv)}: {r['mean']:.2f}" for lv, r in zip(curve["levels"], series, strict=True)),
        ]
        for curve in curves
        for name, series in curve["r2"].items()
    ]
    longest = max(map(len, rows))
    table = _table(["subject", "harm", *[""] * (longest - 2)], [row + [""] * (longest - len(row)) for row in rows])
    return (
        f"<h2>What is left when things go wrong</h2><div class='pictures'>{pictures}</div>{_limits(curves)}"
        f"<p class='soft'>{HARM}</p><details><summary>The same as a table</summary>{table}</details>"
    )


def _limits(curves: Sequence[Result]) -> str:
    """Returns a table of what the LFP student should keep of its R², and what it does keep."""
    verdict = {True: "met", False: "missed", None: "–"}
    rows = []
    for curve in curves:
        for found in curve.get("limits") or []:
            what = f"{curve['kind']}, {format_number(found['level'])} {curve['unit']}"
            kept, least = (_percent(found[key]) for key in ("kept_share", "limit"))
            rows.append([what, kept, least, verdict[found["ok"]]])
    return _table(["what the LFP student keeps of its R²", "kept", "at least", ""], rows) if rows else ""


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _system(system: Result | None) -> str:
    if not system:
        return ""
    head = ["signal", "decoded", "Mb/s", "acquisition mW", "detection mW", "radio mW", "compute mW", "total mW"]
    keys = ("mbit_per_s", "acquisition_mw", "processing_mw", "radio_mw", "compute_mw", "total_mw")
    rows = [[r["signal"], r["decoded"], *(_format_or_dash(r[key]) for key in keys)] for r in system["rows"]]
    assumed = [[n, format_number(a["value"]), a["unit"], a["source"]] for n, a in system["assumptions"].items()]
    folded = _table(["name", "value", "unit", "source"], assumed, words=3)
    words = f"<p class='soft'>{MODEL}</p>{_table(head, rows)}<details><summary>Assumptions</summary>{folded}</details>"
    return f"<h2>The whole implant: a model</h2>{words}"


def _layers(layers: Sequence[Result]) -> str:
    if not layers:
        return ""
    rows = [[r["name"], format_number(r["multiply_adds"]), format_number(r["bytes"])] for r in layers]
    return "<h2>Where the work is</h2>" + _table(["part of a step", "multiply–adds", "bytes read"], rows)


def _calibration(table: Sequence[Result]) -> str:
    if not table:
        return ""
    rows = [[r["name"], format_number(r["range"]), f"{r['clipped']:.3%}", format_number(r["noise_db"])] for r in table]
    words = _table(["activation", "range", "clipped", "signal to noise, dB"], rows)
    return f"<h2>Calibration</h2><details><summary>{len(rows)} activations</summary>{words}</details>"


def _training(training: Result) -> str:
    """Returns which of its candidates ships, and every trial of each search."""
    parts = [_candidates(training), *(_trials(name, found) for name, found in (training.get("search") or {}).items())]
    return f"<h2>How the student was chosen</h2>{''.join(parts)}" if any(parts) else ""


def _candidates(training: Result) -> str:
    known = training.get("candidates") or {}
    rows = [[name, _format_r2(r2), "ships" if name == training.get("shipped") else ""] for name, r2 in known.items()]
    return _table(["student", "R² on the validation block", ""], rows) if rows else ""


def _trials(name: str, trials: Sequence[Result]) -> str:
    settings = list(dict.fromkeys(key for trial in trials for key in trial["settings"]))
    rows = []
    for trial in trials:
        end = "chosen" if trial["chosen"] else trial["state"]
        if trial["state"] == "stopped":
            end += f" at step {trial['last_step']}"
        values = (trial["settings"].get(key) for key in settings)
        shown = ["–" if v is None else v if isinstance(v, str) else format_number(v) for v in values]
        rows.append([str(trial["trial"]), _format_r2(trial["validation_r2"]), end, *shown])
    stopped = sum(trial["state"] == "stopped" for trial in trials)
    title = f"Search for {name}: {len(trials)} trials, {stopped} of them stopped early. Trial 0 is the preset"
    head = ["trial", "R² on the validation block", "", *settings]
    return f"<details><summary>{escape(title)}</summary>{_table(head, rows)}</details>"


def _format_r2(r2: float | None) -> str:
    return "–" if r2 is None else f"{r2:.3f}"


def _provenance(result: Result) -> str:
    bundle = {key: value for key, value in (result.get("bundle") or {}).items() if key != "training"}
    facts = {**{f"device: {k}": v for k, v in result["device"].items()}, **bundle}
    facts |= {key: result[key] for key in ("command", "created", "harness") if result.get(key)}
    rows = [[key, _flatten(value)] for key, value in facts.items() if value not in (None, "", {}, [])]
    return "<h2>Device and provenance</h2>" + _table(["", ""], rows, words=1)


# ---------------------------------------------------------------- HTML


def _figure(drawing: str, caption: str) -> str:
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{drawing}{words}</figure>" if drawing else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int | None = None) -> str:
    """Returns a table of HTML. `words` is the column whose text may wrap."""
    top = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=word' if i == words else ''}>{escape(c)}</td>" for i, c in enumerate(row))
        + "</tr>"
        for row in rows
    )
    head_row = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f"<div class='table' tabindex='0'><table>{head_row}<tbody>{body}</tbody></table></div>"


def _format_or_dash(value: float | None) -> str:
    return "–" if value is None else format_number(value)


def _format_share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _flatten(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flatten(part)}" for key, part in value.items())
    return ", ".join(map(_flatten, value)) if isinstance(value, (list, tuple)) else str(value)
