"""Every JSON key that a command prints stands in docs/json.md, and every key there is printed.

The keys are those of real output: tiny sessions go through every command, from `simulate` to `report`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.cpu.small_builds import quick_measures, write_quick_host
from edgedistill.cli import main
from edgedistill.measure import closed_loop, robustness

from ..convert.published import write_flint, write_makin
from ..signatures import make_keys
from .pages import DOCS, section, table_rows, text_of

PAGE = DOCS / "json.md"

TINY = """name = "tiny"
[student]
d = 8
layers = 1
heads = 2
ff = 8
window = 20
taps = 2
dilation = 2
lags = 2
[teacher]
{patches}
[patch_student]
{patches}
[teacher_training]
{training}
[training]
{training}
"""
PATCHES = (
    "d = 8\nlayers = 1\nheads = 2\nff = 8\npatch = 8\nspan = 2\npredictor_layers = 1\npredictor_d = 8\nmask_share = 0.3"
)
TRAINING = "bins_per_step = 256\nsegment_bins = 128\nburn_in = 16\nsteps = 2"

# What this machine does not print: another device has it, or an odd session.
NOT_HERE = {
    "inspect bundle": (  # with other options
        "provenance.adapt",
        "provenance.probe",
        "provenance.label_minutes",
        "provenance.labels_from_spikes.",
    ),
    "build": ("training.labels_from_spikes.",),  # with --label-minutes, see tests/pipeline/test_few_labels.py
    "adapt": ("read[].series.units",),  # no command that adapts reads spikes
    "calibrate": ("left_out[].", "read[].series.units"),  # with an artefact in the data; with a recipe that fine-tunes
    "compile": ("device.*", "forms[].", "notes[]"),  # on a GPU
    "bench": (
        "ratios.spike_teacher_published",
        "harness.closed_loop.",
        "device.load[]",
        "absent[].",
        "bundle.training.labels_from_spikes.",
    ),
}


def run(*words: object, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, words), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in codes, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each command printed, by the section of the page that describes it."""
    home = tmp_path_factory.mktemp("json")
    (home / "tiny.toml").write_text(TINY.format(patches=PATCHES, training=TRAINING))
    write_quick_host(home / "host.toml")
    sessions, bundle, gates = home / "sessions", home / "tiny.edge", (0, 3)
    training = ("--preset", home / "tiny.toml", "--steps", 2)
    simulated = ("--sessions", 1, "--minutes", 2.2, "--channels", 4, "--units", 10, "--rate", 500)
    found: dict[str, list[dict[str, Any]]] = {}
    with quick_measures(), pytest.MonkeyPatch.context() as patch:
        for levels in ("LOST", "NOISE", "DAYS"):
            patch.setattr(robustness, levels, getattr(robustness, levels)[:2])
        patch.setattr(robustness, "DRAWS", 1)
        patch.setattr(closed_loop, "_require_room", lambda *_: None)  # other tests may make a step slow
        found["simulate"] = [run("simulate", "--out", sessions, *simulated)]
        file = found["simulate"][0]["files"][0]["path"]
        made, mat = write_makin(home / "makin", seconds=2), home / "Flint_2012_e2.mat"
        write_flint(mat, trials=2)
        found["convert"] = [run("convert", "makin", made.mat, made.broadband, "--out", home / "makin.nwb")]
        found["convert"].append(run("convert", "flint", mat, "--out", home / "flint.nwb"))
        found["inspect session"] = [run("inspect", file)]
        (home / "mixed").mkdir()
        (home / "mixed/whole.nwb").symlink_to(file)
        (home / "mixed/empty.nwb").touch()
        found["inspect folder"] = [run("inspect", sessions), run("inspect", home / "mixed", codes=(1,))]
        found["pretrain"] = [run("pretrain", sessions, "--out", home / "teacher", *training)]
        taught = ("--teacher", home / "teacher", "--out", home / "student", "--supervised", "--trials", 2)
        found["distill"] = [run("distill", sessions, *taught, *training)]
        found["runs"] = [run("runs", home)]
        found["embed"] = [run("embed", home / "student", sessions, "--out", home / "latents.npz")]
        ranges = ("--out", home / "ranges.json", "--sensitivity")
        found["calibrate"] = [run("calibrate", home / "student", sessions, *ranges)]
        target = ("--target", home / "host.toml")
        words = (*target, "--data", sessions, "--out", bundle, "--trials", 2, *training)
        found["build"] = [run("build", *words, codes=gates)]
        found["inspect bundle"] = [run("inspect", bundle)]
        found["compile"] = [run("compile", bundle, *target, codes=gates)]
        found["run"] = [run("run", bundle, file)]
        replayed = ("--from", f"replay:{file}", "--speed", 50, "--seconds", 3, "--to", f"csv:{home / 'live.csv'}")
        found["stream"] = [run("stream", bundle, *replayed, "--no-real-time")]
        found["sign"] = [run("sign", bundle, "--key", make_keys(home)[0])]
        found["verify"] = [run("verify", bundle, "--key", home / "lab.pub")]
        adapted = ("adapt", bundle, file, "--out", home / "adapted.edge", *target)
        found["adapt"] = [run(*adapted, codes=gates), run(*adapted, "--to", 60, codes=gates)]
        found["inspect bundle"].append(run("inspect", home / "adapted.edge"))
        run("run", bundle, file, "--out", home / "decoded.csv")
        with (home / "decoded.csv").open() as csv:
            found["csv"] = [{"columns": csv.readline().strip().split(",")}]
        quick = ("--steps", 20, "--closed-loop", 0.3, "--robustness", "--system", "--out", home / "bench.json")
        against = [w for name in ("spike-student", "spike-student-int8", "spike-teacher") for w in ("--against", name)]
        found["bench"] = [run("bench", bundle, *quick, *against, codes=gates)]
        found["report"] = [run("report", home / "bench.json", "--out", home / "page.html")]
        found["targets"] = [run("targets")]
        found["target"] = [run("targets", name) for name in ("host", "cuda", "jetson")]
        found["cache"] = [run("cache", home / "tiny.edge.work"), run("cache", "--prune", 9999)]
        found["doctor"] = [run("doctor")]
        found["error"] = [run("inspect", home / "none.nwb", codes=(1,)), run("bench", codes=(2,))]
    return found


SECTIONS = (
    *(
        "simulate",
        "convert",
        "inspect session",
        "inspect folder",
        "inspect bundle",
        "pretrain",
        "distill",
        "runs",
        "embed",
        "calibrate",
        "build",
    ),
    *(
        "compile",
        "sign",
        "verify",
        "run",
        "stream",
        "adapt",
        "bench",
        "report",
        "targets",
        "target",
        "cache",
        "doctor",
        "error",
    ),
)


@pytest.mark.parametrize("command", SECTIONS)
def test_every_key_that_is_printed_stands_in_the_page(outputs: dict[str, list[dict[str, Any]]], command: str) -> None:
    documented = documented_paths(command)
    for printed in outputs[command]:
        nulls = set(empty(printed))
        missing = [
            path
            for path in {*paths(printed), *nulls}
            if not any(stands_for(known, path) or (path in nulls and lies_below(known, path)) for known in documented)
        ]
        assert not missing, f"{command}: {sorted(set(missing))}"


@pytest.mark.parametrize("command", SECTIONS)
def test_every_key_in_the_page_is_printed(outputs: dict[str, list[dict[str, Any]]], command: str) -> None:
    printed = {path for one in outputs[command] for path in paths(one)}
    nulls = {path for one in outputs[command] for path in empty(one)}
    documented = documented_paths(command)
    for known in documented:
        whole = any(other.startswith((f"{known}.", f"{known}[")) for other in documented)
        if whole or known.startswith(NOT_HERE.get(command, ())):
            continue
        hidden = any(lies_below(known, path) for path in nulls)
        assert hidden or any(stands_for(known, path) for path in {*printed, *nulls}), f"{command}: {known}"


def test_every_form_of_a_plan_stands_in_the_page() -> None:
    """What only a Jetson prints, by the fields that are printed there."""
    from edgedistill.compile.tensorrt.forms import Outcome

    known = documented_paths("compile")
    for field in fields(Outcome):
        assert f"forms[].{field.name}" in known


def test_columns_and_flags_of_the_csv_stand_in_the_page(outputs: dict[str, list[dict[str, Any]]]) -> None:
    from edgedistill.runtime import Flag

    *rows, an_output, its_deviation = [cells[0] for cells in table_rows(section(PAGE, "The CSV of run"))]
    columns = outputs["csv"][0]["columns"]
    assert rows == [f"`{column}`" for column in columns[: len(rows)]]
    axes = ("cursor_vel_x", "cursor_vel_y")
    assert columns[len(rows) :] == [f"{axis}{kind} (cm/s)" for kind in ("", " sd") for axis in axes]
    assert "output" in an_output
    assert f"`{columns[-2]}`" in its_deviation
    flags = {int(cells[0]): cells[1] for cells in table_rows(section(PAGE, "Flags"))}
    assert flags == {int(flag): str(flag.name).lower() for flag in Flag}


def test_every_key_of_a_build_record_stands_in_the_page() -> None:
    from edgedistill.bundle.build_record import BuildRecord, Fingerprint

    told = section(PAGE, "build.json")
    for field in (*fields(BuildRecord), *fields(Fingerprint)):
        assert f"`{field.name}`" in told, field.name


# ---------------------------------------------------------------- keys as paths: a.b, a[] and a.*


def paths(value: object, path: str = "") -> Iterator[str]:
    """The path of every leaf of a JSON value; lists of lists count as one list, and what is empty is no leaf."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from paths(part, below(path, key))
    elif isinstance(value, list):
        for part in value:
            yield from paths(part, path if path.endswith("[]") else f"{path}[]")
    else:
        yield path


def empty(value: object, path: str = "") -> Iterator[str]:
    """The paths that hold null, an empty list or an empty object: what stands below them cannot be seen here."""
    if value is None or value in ({}, []):
        yield path
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from empty(part, below(path, key))
    elif isinstance(value, list):
        for part in value:
            yield from empty(part, f"{path}[]")


def below(path: str, key: str) -> str:
    """The path of a key; a dot of its own, as in the name of a file, is no border between two keys."""
    plain = key.replace(".", "·")
    return f"{path}.{plain}" if path else plain


def documented_paths(heading: str, seen: tuple[str, ...] = ()) -> set[str]:
    """The paths of a section of the page, those of the objects that it links to included."""
    found: set[str] = set()
    for cells in table_rows(section(PAGE, heading)):
        linked = re.fullmatch(r"\[([^\]]+)\]\(#[\w-]+\)", cells[1])
        for key in re.findall(r"`([^`]+)`", cells[0]):
            found.add(key)
            if linked and linked[1] not in seen:
                found |= {f"{key}.{part}" for part in documented_paths(linked[1], (*seen, heading))}
    return found


def stands_for(known: str, path: str) -> bool:
    """Whether a documented path names this one; `*` is any key."""
    return re.fullmatch(re.escape(known).replace(r"\*", r"[^.\[\]]+"), path) is not None


def lies_below(known: str, path: str) -> bool:
    """Whether a documented path is a part of the list or object that is empty or null at `path`."""
    starts = [known[: at.start()] for at in re.finditer(r"\[\]|\.", known)]
    return any(stands_for(start, path) for start in (*starts, known))


def test_paths_are_compared_as_they_are_meant() -> None:
    value = {"a": [{"b": 1, "c": None}], "d": {"x-1": {"e": [[1, 2]]}}, "f": []}
    assert list(dict.fromkeys(paths(value))) == ["a[].b", "a[].c", "d.x-1.e[]"]
    assert list(empty(value)) == ["a[].c", "f"]
    assert stands_for("d.*.e[]", "d.x-1.e[]")
    assert [stands_for("g.*.h", path) for path in paths({"g": {"a.onnx": {"h": 1, "i": 2}}})] == [True, False]
    assert not stands_for("a[].b", "a[].c")
    assert not stands_for("a[]", "a[].b")
    assert lies_below("f[].g", "f")
    assert lies_below("a[].c.d", "a[].c")
    assert not lies_below("a[].b", "f")
    assert "error.what" in documented_paths("error")
    assert "gates[].limit" in documented_paths("build")
    assert "`" not in "".join(documented_paths("bench"))
    assert text_of(PAGE).count("\n## ") > 10
