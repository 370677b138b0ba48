"""Tests that the page tells the figures, needs nothing from outside, and describes its pictures in words."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgedistill.errors import ConfigError
from edgedistill.report import page_from_results
from edgedistill.report.charts import draw_robustness, draw_trace
from edgedistill.report.summary import summarize_result
from edgedistill.report.svg import Axis, choose_tick_step

from .results import full_result, subject

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
VOID = {"meta", "circle", "rect", "polygon", "polyline", "br"}


class Page(HTMLParser):
    """Reads the tags of a page and checks that they nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return page_from_results([full_result()], ["decoder <1>"])


def test_the_page_is_well_formed_and_loads_nothing_from_outside(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in parsed.seen}
    assert all("src" not in attrs and "href" not in attrs for _, attrs in parsed.seen)
    outside = re.findall(r"https?://[^\"' <]+", page)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}
    assert "url(" not in page
    assert "@import" not in page


def test_text_from_a_result_is_escaped(page: str) -> None:
    assert "a &lt;processor&gt; &amp; more" in page
    assert "<processor>" not in page
    assert "decoder &lt;1&gt;" in page


def test_names_neither_control_a_terminal_nor_turn_the_line_they_stand_in() -> None:
    result = full_result()
    result["bundle"] = {**result["bundle"], "name": "x\x1b[31m\u202e\x00y"}
    shown = page_from_results([result], ["a\u202eb"])
    assert not set(shown) & set("\x1b\u202e\x00")
    assert "<h1>x[31my</h1>" in shown


def test_odd_results_are_refused_by_name() -> None:
    deep: list[object] = []
    for _ in range(3000):
        deep = [deep]
    few = {**full_result(), "bundle": {"label_minutes": 2.0, "session": {"id": ["x"]}, "metrics": {"int8_r2": "x"}}}
    for odd in ({**full_result(), "command": deep}, few, {**full_result(), "subjects": 3}):
        with pytest.raises(ConfigError, match="not a result of"):
            page_from_results([odd, odd], ["a", "b"])


def test_every_picture_has_a_name_and_a_description(page: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 8  # latency, cost, two traces, four curves
    for picture in pictures:
        assert re.search(r'role="img".*?<title>[^<]+</title><desc>[^<]{10,}</desc>', picture, re.DOTALL)


def test_the_summary_says_what_is_gained_and_what_is_not() -> None:
    words = summarize_result(full_result())
    for said in ("12 µs", "published shape", "R² 0.610", "0.790 of the spike student", "same compute", "longevity"):
        assert said in words
    other = summarize_result(
        {"subjects": [subject("lfp-student-int8", 3.0), subject("spike-student-int8", 74.0, engine="x")]}
    )
    assert "ran on another engine, x: 73.8 µs" in other
    lonely = summarize_result({"subjects": [subject("lfp-student-int8", 12.0)]})
    assert "accuracy is unknown" in lonely
    assert "spike student" not in lonely
    assert summarize_result({"subjects": [subject("spike-teacher", 5.0)]}) == "This result holds no LFP student."


def test_the_summary_compares_with_the_best_linear_decoder_by_name() -> None:
    metrics = {"ridge_lfp_r2": 0.31, "kalman_lfp_power_r2": 0.452, "ridge_power_r2": None, "ridge_spike_r2": 0.9}
    result = {"subjects": [subject("lfp-student-int8", 3.0)], "bundle": {"metrics": {**metrics, "int8_r2": 0.5}}}
    words = summarize_result(result)
    assert "a Kalman filter on slow LFP and band power, reaches R² 0.452 in the build" in words
    assert "the LFP student in INT8 0.500, which is 0.048 more." in words
    result["bundle"] = {"metrics": {**metrics, "int8_r2": 0.4}}
    assert "0.400, which is 0.052 less." in summarize_result(result)
    result["bundle"] = {"metrics": {"ridge_spike_r2": 0.9, "int8_r2": 0.4}}
    assert "linear" not in summarize_result(result)


def test_a_value_below_a_chart_is_drawn_as_an_arrow_with_its_figure() -> None:
    deep = [{"mean": m, "min": m - 1, "max": m + 1} for m in (0.7, -0.3, -3.4)]
    curve = {"kind": "lost channels", "unit": "share", "levels": [0, 0.05, 0.5], "r2": {"lfp": deep}, "draws": 3}
    picture = draw_robustness(curve)
    assert ">-3.4<" in picture
    assert ">-0.3<" not in picture
    heights = [float(y) for y in re.findall(r"[0-9.]+,([0-9.-]+)", " ".join(re.findall(r'points="([^"]*)"', picture)))]
    assert max(heights) <= 210.0  # nothing is drawn below the axis
    words = summarize_result({"subjects": [subject("lfp-student-int8", 3.0)], "robustness": [curve]})
    assert "With 5% of the channels lost R² is: lfp -0.30." in words


def test_the_summary_says_what_is_kept_with_a_quarter_of_the_channels_lost() -> None:
    words = summarize_result(full_result())
    assert "With 25% of the channels lost R² is: lfp-student-int8 0.40 (67% of what it was)" in words


def test_the_page_says_which_limits_are_met(page: str) -> None:
    row = "<td>lost channels, 0.25 share of the channels</td><td>67%</td><td>90%</td><td>missed</td>"
    assert row in page
    assert "<td>–</td><td>70%</td><td>–</td>" in page
    older = full_result()
    for curve in older["robustness"]:
        del curve["limits"]
    assert "67%</td>" not in page_from_results([older], ["older"])


def test_subjects_of_a_curve_have_a_line_a_mark_and_a_place_of_their_own() -> None:
    picture = draw_robustness(full_result()["robustness"][0])
    lines = re.findall(r'<polyline class="l(\d)" points="[^"]*"(?: stroke-dasharray="([^"]*)")?', picture)
    assert lines == [("0", ""), ("1", "5 3"), ("2", "2 3")]
    names = re.findall(r'<text class="label" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)', picture)
    assert [name for *_, name in names] == ["lfp-student-int8", "lfp-ridge", "spike-student-int8"]
    assert len({(x, y) for x, y, _ in names}) == 3
    assert all(float(x) + 7 * len(name) < 370 for x, _, name in names)


def test_a_trace_has_a_band_of_intervals_around_what_has_deviations() -> None:
    trace = full_result()["trace"]
    picture = draw_trace(trace, 0)
    (band,) = re.findall(r'<polygon class="f0 band" points="([^"]*)"', picture)
    corners = [tuple(map(float, pair.split(","))) for pair in band.split()]
    assert len(corners) == 2 * len(trace["seconds"])
    upper, lower = corners[: len(trace["seconds"])], corners[len(trace["seconds"]) :][::-1]
    assert [x for x, _ in upper] == [x for x, _ in lower]
    heights = np.array([below - above for (_, above), (_, below) in zip(upper, lower, strict=True)])
    assert heights == pytest.approx(heights[0], abs=0.2)  # the deviation is 1 everywhere
    assert heights[0] > 0
    trace["decoded"]["lfp-student-int8"][5][0] = None
    assert len(re.findall(r'f0 band" points="([^"]*)"', draw_trace(trace, 0))[0].split()) == len(corners) - 2
    del trace["deviation"]  # as results before 0.3 have it
    assert "band" not in draw_trace(trace, 0)


def test_the_page_tells_what_intervals_cover(page: str) -> None:
    assert "True values inside the intervals of lfp-student-int8" in page
    assert "91.1% ± 0.8%" in page
    assert "91.1% ± –" in page
    assert "8 channels, bank" in page


def test_the_page_tells_missed_gates_and_what_was_not_measured(page: str) -> None:
    assert "Missed: step_p99_us is 14, limit 10." in page
    assert "only root may read the counter" in page
    assert "never trained in this shape" in page


def test_the_time_from_a_signal_to_its_output_counts_the_filters(page: str) -> None:
    assert "5.34 ms, filters included" in page


def test_parts_that_a_result_lacks_are_left_out() -> None:
    plain = {key: full_result()[key] for key in ("device", "subjects")}
    page = page_from_results([plain, plain], ["a", "b"])
    assert "Robustness" not in page
    assert "None" not in page
    assert page.count("<h1>") == 2


@pytest.mark.parametrize("result", [{}, {"device": {}, "subjects": []}, [], {"subjects": [1]}])
def test_json_that_is_no_result_is_refused_by_name(result: object) -> None:
    with pytest.raises(ConfigError, match=r"odd\.json: not a result"):
        page_from_results([result], ["odd.json"])  # type: ignore[list-item]


def test_axes_have_round_ticks_and_place_values() -> None:
    assert Axis(1, 1000, 0, 300, log=True).ticks() == [1, 10, 100, 1000]
    assert Axis(0, 1, 0, 100).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Axis(0, 10, 100, 0)(5) == 50
    assert choose_tick_step(0) == 1.0


def contrast(one: str, other: str) -> float:
    """Returns the contrast of two #rrggbb by WCAG 2.1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_and_lines_can_be_told_from_the_ground_in_both_schemes(page: str) -> None:
    schemes = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", scheme))
        for name in ("ink", "soft", "warn"):
            assert contrast(colours[name], colours["ground"]) >= 4.5
        for series in range(8):
            assert contrast(colours[f"s{series}"], colours["card"]) >= 3.0


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
def test_a_browser_shows_both_schemes_without_a_warning(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page)
    for scheme, colour in (("dark", 0), ("light", 1)):
        log = shown(tmp_path, scheme, colour)
        assert "CONSOLE" not in log
        assert (tmp_path / f"{scheme}.png").stat().st_size > 20_000
    assert (tmp_path / "dark.png").read_bytes() != (tmp_path / "light.png").read_bytes()


def shown(folder: Path, scheme: str, colour: int) -> str:
    """Takes a screenshot into `folder` and returns the browser's log. A request would be an error."""
    assert CHROMIUM is not None
    quiet = (
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
        "--disable-dev-shm-usage",
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", *quiet, "--disable-component-update", "--hide-scrollbars",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / scheme}", "--enable-logging=stderr",
         f"--blink-settings=preferredColorScheme={colour}", "--window-size=420,3000",
         f"--screenshot={folder / scheme}.png", f"file://{folder / 'report.html'}"],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    return done.stderr


@pytest.mark.parametrize(
    "odd",
    [
        [],
        {"device": 1, "subjects": 1},
        {"device": {}, "subjects": []},
        {"device": {}, "subjects": ["a"]},
        {"device": {}, "subjects": [{}]},
        {"device": {}, "subjects": [{"name": "a", "latency_us": {"p50": -1}}]},
    ],
)
def test_json_of_another_kind_is_refused_by_name(odd: object) -> None:
    with pytest.raises(ConfigError, match=r"odd\.json: not a result"):
        page_from_results([full_result(), odd], ["good.json", "odd.json"])  # type: ignore[list-item]


def test_an_energy_below_idle_is_not_drawn() -> None:
    result = full_result()
    for row in result["subjects"]:
        row["energy_mj_per_step"] = -0.01
    assert "no power sensor" in page_from_results([result], ["noisy"])


def test_a_search_is_told_with_every_trial_and_which_was_chosen(page: str) -> None:
    (part,) = re.findall(r"<h2>How the student was chosen</h2>(.*?)<h2>", page, re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", part)]
    assert ["deployed", "0.634", "ships"] in rows
    assert ["supervised_lfp", "–", ""] in rows
    assert "4 trials, 1 of them stopped early" in part
    assert ["1", "0.634", "chosen", "0.0015", "none", "–"] in rows
    assert [row[2] for row in rows if row and row[0] in "023"] == ["finished", "stopped at step 150", "diverged"]
    bare = full_result()
    bare["bundle"] = {**bare["bundle"], "training": None}
    assert "How the student was chosen" not in page_from_results([bare], ["decoder"])


def test_energies_of_different_sensors_are_not_drawn_on_one_axis() -> None:
    result = full_result()
    for row in result["subjects"]:
        row |= {"energy_mj_per_step": 0.5, "energy_source": "NVML: GPU board"}
    assert "energy of a step, mJ" in page_from_results([result], ["one"])
    result["subjects"][0]["energy_source"] = "RAPL: CPU package"
    assert "energy of a step, mJ (log axis)" not in page_from_results([result], ["two"])
