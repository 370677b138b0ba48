"""Tests that the C front end gives the bits of `edgedistill.frontend`, for any chunks, samples and compiler."""

from __future__ import annotations

import atexit
import ctypes
import math
import re
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.assets import asset_folder
from edgedistill.compile.c.frontend_source import frontend_constants, normalization_tables
from edgedistill.errors import EngineError
from edgedistill.frontend import FrontEnd, FrontEndConfig, band_sections, count_notches, filter_sections
from edgedistill.frontend.design import rest_states, resume_bins
from edgedistill.numerics.arithmetic import log64

from .frontend_states import state_dtype, state_from_c, state_to_c

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc (apt install gcc)")
quick = settings(deadline=None, max_examples=25)

FLAGS = ["-std=c11", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
FAST = ("gcc", "-O3", "-march=native")
PLAIN = ("gcc", "-O0")
CLANG = ("clang", "-O3", "-march=native")
SANITIZED = ("gcc", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ARM64 = ("aarch64-linux-gnu-gcc", "-O3", "-static")
CORTEX_M7 = ("arm-none-eabi-gcc", "-O3", *["-mcpu=cortex-m7", "-mthumb", "-mfpu=fpv5-d16", "-mfloat-abi=hard"])

# rules that act, and filters that settle, within a few bins
SHORT = {"flat_s": 0.05, "recover_s": 0.04, "bridged_s": 0.03, "highpass_hz": 4}
CONFIGS = {
    "one channel": FrontEndConfig(Fraction(250), 1, line_hz=0, **SHORT),
    "250 Hz": FrontEndConfig(Fraction(250), 5, filter_order=3, **SHORT),
    "1 kHz": FrontEndConfig(Fraction(1000), 19, line_hz=50, **SHORT),
    "1 kHz, two": FrontEndConfig(Fraction(1000), 2, flat_s=0.02, saturated_ms=70, recover_s=0.01, bridged_s=0),
    "1 kHz, 48": FrontEndConfig(Fraction(1000), 48, **SHORT),
    "long bins": FrontEndConfig(Fraction(1000), 3, bin_ms=50, **SHORT),
    "a bin's memory": FrontEndConfig(Fraction(1000), 3, flat_s=0.01, saturated_ms=10, bin_ms=25),
    "1017 Hz": FrontEndConfig(Fraction(390625, 384), 3, **SHORT),
    "24 kHz": FrontEndConfig(Fraction(390625, 16), 9, **SHORT),
    "silence": FrontEndConfig(Fraction(2000), 2, line_hz=0, highpass_hz=20, recover_s=10),
    "first and last out": FrontEndConfig(Fraction(1000), 19, left_out=(0, 7, 18), **SHORT),
    "24 kHz, first and last out": FrontEndConfig(Fraction(390625, 16), 9, left_out=(0, 4, 5, 8), **SHORT),
    "one left": FrontEndConfig(Fraction(250), 3, left_out=(0, 2), **SHORT),
    "bands": FrontEndConfig(Fraction(1000), 17, bands=((8, 30), (60, 150), (200, 400)), **SHORT),
    "bands, one channel": FrontEndConfig(
        Fraction(1000), 1, bands=((70, 110),), line_hz=0, bin_ms=50, band_ms=1, **SHORT
    ),
    "bands, 500 Hz": FrontEndConfig(Fraction(500), 3, bands=((15, 40), (70, 200)), filter_order=3, **SHORT),
    "bands, 2 kHz": FrontEndConfig(Fraction(2000), 33, bands=((60, 200),), line_hz=50, left_out=(1, 32), **SHORT),
    "bands, 30 kHz": FrontEndConfig(Fraction(30000), 9, bands=((30, 70), (70, 400)), bin_ms=25, **SHORT),
    "bands, silence": FrontEndConfig(Fraction(2000), 2, line_hz=0, highpass_hz=20, recover_s=10, bands=((100, 400),)),
}

# It is a library for ctypes, and a program for sanitizers and emulators: operations from stdin, bins to stdout.
PROBE = """
#include "constants.h"
#include "ed_frontend_state.h"
#include <stdio.h>
#include <stdlib.h>

#define INPUTS (ED_FE_FEATURES * ED_FE_CHANNELS)
typedef struct { uint64_t kind, n; } operation; /* 0: frames, 1: int16, 2: gap */
typedef struct { uint64_t bin, end_frame, gap, unsettled; } facts;

size_t probe_size(int which);
size_t probe_size(int which) { return which ? sizeof(ed_fe_exchange) : sizeof(ed_fe_state); }
void probe_reset(ed_fe_state *fe);
void probe_reset(ed_fe_state *fe) { ed_fe_reset(fe); }
void probe_export(const ed_fe_state *fe, ed_fe_exchange *out);
void probe_export(const ed_fe_state *fe, ed_fe_exchange *out) { ed_fe_export(fe, out); }
int probe_import(ed_fe_state *fe, const ed_fe_exchange *in);
int probe_import(ed_fe_state *fe, const ed_fe_exchange *in) { return ed_fe_import(fe, in); }
uint64_t probe_bins_for(const ed_fe_state *fe, uint64_t n);
uint64_t probe_bins_for(const ed_fe_state *fe, uint64_t n) { return ed_fe_bins_for(fe, n); }

void probe_log(double *x, size_t n);
void probe_log(double *x, size_t n) {
    for (size_t i = 0; i < n; i += ED_DOUBLES) {
        ed_doubles values;
        memcpy(&values, x + i, sizeof values);
        values = ed_log(values);
        memcpy(x + i, &values, sizeof values);
    }
}

size_t probe_run(ed_fe_state *fe, uint64_t kind, const char *data, size_t n, const double *gain, const double *offset,
                 double *values, uint32_t *bad, facts *out);
size_t probe_run(ed_fe_state *fe, uint64_t kind, const char *data, size_t n, const double *gain, const double *offset,
                 double *values, uint32_t *bad, facts *out) {
    size_t bins = 0;
    do { /* a push or gap of nothing is one, too */
        int complete;
        size_t used;
        if (kind == 0) used = ed_fe_take(fe, (const float *)(const void *)data, n, &complete);
        else if (kind == 1) used = ed_fe_take_i16(fe, (const int16_t *)(const void *)data, n, gain, offset, &complete);
        else used = ed_fe_take_gap(fe, n, &complete);
        data += used * ED_FE_CHANNELS * (kind == 0 ? 4 : kind == 1 ? 2 : 0);
        n -= used;
        if (!complete) continue;
        ed_fe_bin bin;
        const double(*value)[ED_FE_PADDED] = ed_fe_finish_bin(fe, &bin);
        for (size_t f = 0; f < ED_FE_FEATURES; f++, values += ED_FE_CHANNELS)
            memcpy(values, value[f], sizeof(double) * ED_FE_CHANNELS);
        memcpy(bad + bins * ED_FE_CHANNELS, fe->channels.bad, sizeof fe->channels.bad);
        out[bins++] = (facts){bin.bin, bin.end_frame, bin.lost, bin.unsettled};
    } while (n > 0);
    return bins;
}

int main(void) {
    static ed_fe_state fe;
    ed_fe_reset(&fe);
    operation op;
    while (fread(&op, sizeof op, 1, stdin) == 1) {
        const size_t bytes = op.kind == 2 ? 0 : op.n * ED_FE_CHANNELS * sizeof(float), bins = ed_fe_bins_for(&fe, op.n);
        char *data = malloc(bytes + 1); /* of the exact size, so that a sanitizer sees a step too far */
        double *values = malloc(bins * sizeof(double) * INPUTS + 1);
        uint32_t *bad = malloc(bins * sizeof(uint32_t) * ED_FE_CHANNELS + 1);
        facts *out = malloc(bins * sizeof(facts) + 1);
        if (!data || !values || !bad || !out || fread(data, 1, bytes, stdin) != bytes) return 1;
        if (probe_run(&fe, op.kind, data, op.n, ed_fe_std, ed_fe_mean, values, bad, out) != bins) return 2;
        fwrite(values, sizeof(double) * INPUTS, bins, stdout);
        fwrite(bad, sizeof(uint32_t) * ED_FE_CHANNELS, bins, stdout);
        fwrite(out, sizeof(facts), bins, stdout);
        free(data), free(values), free(bad), free(out);
    }
    static ed_fe_exchange exchanged;
    ed_fe_export(&fe, &exchanged);
    return ed_fe_import(&fe, &exchanged) ? 3 : 0;
}
"""


@lru_cache(maxsize=1)
def workplace() -> Path:
    folder = Path(mkdtemp(prefix="c_frontend_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def normalization(config: FrontEndConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns statistics, one of them of a silent channel. The program takes them as offset and gain."""
    rng = np.random.default_rng(config.channels)
    mean, std = rng.normal(size=config.inputs), rng.uniform(5, 60, config.inputs)
    std[1:2], std[2:3] = 0, 1e-40
    return mean, std


@cache
def compiled(config: FrontEndConfig, compiler: tuple[str, ...], *kind: str) -> Path:
    """Compiles the probe as a program, with `-shared` as a library, with `-c` as an object."""
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]}")
    folder = Path(mkdtemp(dir=workplace()))
    text = frontend_constants(config) + normalization_tables(config, *map(np.ndarray.tolist, normalization(config)))
    (folder / "constants.h").write_text(text)
    (folder / "probe.c").write_text(PROBE)
    include = ["-I", str(folder), "-I", str(asset_folder("kernels") / "c")]
    command = [*compiler, *FLAGS, *kind, *include, "-o", str(folder / "probe"), str(folder / "probe.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "probe"


FACTS = np.dtype([(name, np.uint64) for name in ("bin", "end_frame", "gap", "unsettled")])
Seen = dict[str, np.ndarray]


class CFrontEnd:
    """Runs the C front end through ctypes, with the calls of `FrontEnd`."""

    def __init__(self, config: FrontEndConfig, compiler: tuple[str, ...] = FAST) -> None:
        self.config = config
        self.c = ctypes.CDLL(str(compiled(config, compiler, "-shared", "-fPIC")))
        self.c.probe_size.restype = self.c.probe_run.restype = ctypes.c_size_t
        self.c.probe_bins_for.restype = ctypes.c_uint64
        room = np.zeros(self.c.probe_size(0) + 64, np.uint8)
        self.state = room[-room.ctypes.data % 64 :][: self.c.probe_size(0)]
        self.c.probe_reset(self.at(self.state))

    @staticmethod
    def at(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def push(self, frames: np.ndarray, gain: np.ndarray | None = None, offset: np.ndarray | None = None) -> Seen:
        kind = 0 if gain is None else 1
        frames = np.ascontiguousarray(frames, (np.float32, np.int16)[kind])
        return self.run(kind, frames, len(frames), gain, offset)

    def gap(self, n: int) -> Seen:
        return self.run(2, np.empty(0), n)

    def run(self, kind: int, data: np.ndarray, n: int, *affine: np.ndarray | None) -> Seen:
        bins = self.bins_for(n)
        values = np.full((bins, self.config.inputs), np.nan)
        bad, facts = np.full((bins, self.config.channels), 7, np.uint32), np.empty(bins, FACTS)
        scale = [self.at(a) if a is not None else None for a in affine] or [None, None]
        got = self.c.probe_run(
            self.at(self.state), ctypes.c_uint64(kind), self.at(data), ctypes.c_size_t(n),
            *scale, *map(self.at, (values, bad, facts)),
        )  # fmt: skip
        assert got == bins
        return {
            "values": values,
            "bad": bad.astype(bool),
            **{name: facts[name].astype(np.int64) for name in FACTS.names},
        }

    def bins_for(self, n: int) -> int:
        return self.c.probe_bins_for(self.at(self.state), ctypes.c_uint64(n))

    def export_state(self) -> bytes:
        out = np.empty(self.c.probe_size(1), np.uint8)
        self.c.probe_export(self.at(self.state), self.at(out))
        return out.tobytes()

    def import_state(self, data: bytes) -> int:
        aligned = np.frombuffer(data, np.uint8).copy()
        return self.c.probe_import(self.at(self.state), self.at(aligned))


class Definition(FrontEnd):
    """Runs the Python front end, and returns what the C front end does."""

    def push(self, frames: np.ndarray) -> Seen:  # type: ignore[override]
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            return self.seen(super().push(frames))

    def gap(self, n: int) -> Seen:  # type: ignore[override]
        return self.seen(super().gap(n))

    def seen(self, bins: Any) -> Seen:
        return {
            "values": bins.values,
            "bad": bins.bad,
            "bin": bins.first_bin + np.arange(len(bins.values)),
            "end_frame": bins.end_frame,
            "gap": bins.gap.astype(np.int64),
            "unsettled": bins.unsettled.astype(np.int64),
        }


def recording(config: FrontEndConfig, bins: int, seed: int) -> np.ndarray:
    """Returns frames (n, C) float32 on offsets, with every fault of a channel, and with frames that are lost.

    Faults are NaN, infinities, denormals, huge values, and dead, saturated and silent channels.
    """
    rng = np.random.default_rng(seed)
    n = config.edge(bins) + int(rng.integers(0, config.edge(1)))
    offset = rng.normal(scale=300, size=config.channels)
    x = (rng.normal(scale=50, size=(n, config.channels)) + offset).astype(np.float32)
    for channel in range(config.channels):
        a, b = np.sort(rng.integers(0, n, 2))
        fault = rng.integers(0, 11)
        if fault == 0:
            x[a:b, channel] = np.nan
        elif fault == 1:
            x[rng.integers(0, n, 2), channel] = (np.inf, -np.inf)
        elif fault == 2:
            x[:, channel] = 0
        elif fault == 3:
            x[:, channel] = np.clip(x[:, channel], -60, 60)
            x[a:b, channel] = 60
        elif fault == 4:
            x[a:b, channel] = 1e-4 * x[a:b, channel].clip(-1, 1)
        elif fault == 5:
            x[a:b, channel] = rng.choice(np.array([1e-45, -1e-40, 1e-38, -0.0], np.float32), b - a)
        elif fault == 6:
            x[a:b, channel] = rng.choice(np.array([3.4e38, -3.4e38, 1e30, -1e30], np.float32), b - a)
    used = ~np.isin(np.arange(config.channels), config.left_out)
    for first in rng.integers(0, n, rng.integers(0, 3)):
        x[np.ix_(range(first, min(n, first + rng.integers(1, 3 * config.edge(1)))), used)] = np.nan
    return x


def joined(parts: list[Seen]) -> Seen:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same(got: Seen, expected: Seen) -> None:
    """Checks that all bits are equal, the sign of zero included."""
    for name in expected:
        assert got[name].shape == expected[name].shape, name
        assert got[name].tobytes() == expected[name].astype(got[name].dtype).tobytes(), name


def assert_states_equal(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Checks that all bits are equal, except for signs of zero in ranges, which no rule sees and numpy leaves open."""
    assert got.keys() == expected.keys()
    for name in expected:
        assert (got[name].shape, got[name].dtype) == (expected[name].shape, expected[name].dtype), name
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
        if name in ("shaper", "decimator", "bands", "power", "clean", "frame"):
            assert got[name].tobytes() == expected[name].tobytes(), name


# ------------------------------------------------------------------------------------ the same bits


def variants(*values: Any) -> list[Any]:
    """Returns values of a parameter, of each of which another one already shows most."""
    return [
        pytest.param(*(value if isinstance(value, list) else [value]), marks=pytest.mark.variant) for value in values
    ]


@pytest.mark.parametrize(
    ("compiler", "name"),
    [(FAST, name) for name in CONFIGS]
    + [(compiler, name) for compiler in (PLAIN, CLANG) for name in ("24 kHz", "first and last out", "bands")]
    + variants(
        *(
            [compiler, name]
            for compiler in (PLAIN, CLANG)
            for name in ("1 kHz", "a bin's memory", "1 kHz, 48", "bands, 30 kHz")
        )
    ),
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_equals_the_definition_bit_for_bit(compiler, name):
    for seed in range(4):
        x = recording(CONFIGS[name], 40, seed)
        assert_same(CFrontEnd(CONFIGS[name], compiler).push(x), Definition(CONFIGS[name]).push(x))


@quick
@given(st.sampled_from(sorted(CONFIGS)), st.integers(0, 2**32), st.data())
def test_any_chunks_and_gaps_equal_the_definition(name, seed, data):
    config = CONFIGS[name]
    x = recording(config, 20, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=20)))
    gaps = data.draw(
        st.lists(st.sampled_from([0, 0, 0, 1, 7, 60, 600]), min_size=len(cuts) + 1, max_size=len(cuts) + 1)
    )
    c, python = CFrontEnd(config), Definition(config)
    for a, b, lost in zip([0, *cuts], [*cuts, len(x)], gaps, strict=True):
        assert_same(c.push(x[a:b]), python.push(x[a:b]))
        assert_same(c.gap(lost), python.gap(lost))
    assert_same(c.push(x[:0]), python.push(x[:0]))


@pytest.mark.parametrize("name", ["1 kHz", "24 kHz"])
def test_frame_by_frame_equals_the_definition(name):
    x = recording(CONFIGS[name], 12, 5)
    c = CFrontEnd(CONFIGS[name])
    got = joined([c.push(x[i : i + 1]) for i in range(len(x))])
    assert_same(got, Definition(CONFIGS[name]).push(x))


def test_the_default_rules_over_many_bins_equal_the_definition():
    config = FrontEndConfig(Fraction(1000), 96)
    x = recording(config, 420, 1)
    x[:, 7] = np.where(np.arange(len(x)) // 1100 % 2, 3.25, x[:, 7])  # flat, and good again, more than once
    x[1000:2500] = np.where(np.random.default_rng(0).uniform(size=96) > 0.3, x[1000:2500], 0)
    x[3400:3440] = np.nan  # lost, and bridged
    expected = Definition(config).push(x)
    assert_same(CFrontEnd(config).push(x), expected)
    assert np.any(np.diff(expected["bad"][:, 7].astype(int)) == -1)


@pytest.mark.parametrize("name", ["first and last out", "24 kHz, first and last out"])
@pytest.mark.parametrize("compiler", [FAST, PLAIN, pytest.param(CLANG, marks=pytest.mark.variant)], ids=" ".join)
def test_what_a_left_out_channel_holds_changes_nothing(compiler, name):
    """Compares streams with 3000 uV of mains in the channel, with NaN in it, and with NaN and nothing left out."""
    config, plain = CONFIGS[name], replace(CONFIGS[name], left_out=())
    out = list(config.left_out)
    x = np.random.default_rng(6).normal(scale=50, size=(config.edge(40), config.channels)).astype(np.float32)
    mains = 3000 * np.sin(2 * np.pi * 60 * np.arange(len(x)) / float(config.rate))
    x[:, out] += mains[:, None].astype(np.float32)
    x[config.edge(20), 1] = np.inf
    lost = x.copy()
    lost[:, out] = np.nan
    others = ~np.isin(np.arange(config.channels), out)

    def pushed(config: FrontEndConfig, frames: np.ndarray) -> Seen:
        seen = CFrontEnd(config, compiler).push(frames)
        return {**seen, "values": seen["values"][:, others]}

    seen = pushed(config, x)
    assert seen["bad"][:, out].all()
    assert set(seen["bad"][:, others].sum(axis=1)) == {0, 1}
    assert not seen["gap"].any()
    assert_same(pushed(config, lost), seen)
    assert_same(pushed(plain, lost), seen)


def test_a_frame_with_samples_in_left_out_channels_only_is_lost():
    config = CONFIGS["one left"]
    x = np.random.default_rng(6).normal(scale=50, size=(config.edge(9), 3)).astype(np.float32)
    x[config.edge(4) + 1, 1] = np.nan
    assert CFrontEnd(config).push(x)["gap"].tolist() == [0] * 4 + [1] + [0] * 4
    seen = CFrontEnd(replace(config, left_out=())).push(x)
    assert not seen["gap"].any()
    assert seen["bad"][4].tolist() == [False, True, False]


@pytest.mark.parametrize("compiler", [FAST, PLAIN], ids=" ".join)
@pytest.mark.parametrize("name", ["silence", "bands, silence"])
def test_small_states_are_cleared_as_in_the_definition(name, compiler):
    config = CONFIGS[name]
    x = np.zeros((2600, 2), np.float32)
    x[:60] = np.random.default_rng(1).normal(size=(60, 2))
    x[0] = 1e3, 1e-30
    c, python = CFrontEnd(config, compiler), Definition(config)
    for i in range(0, len(x), 20):
        assert_same(c.push(x[i : i + 20]), python.push(x[i : i + 20]))
        assert_states_equal(state_from_c(config, c.export_state()), python.export_state())
    state = state_from_c(config, c.export_state())
    assert not state["shaper"][:, 0].any()
    if config.bands:
        assert not state["bands"][:, 0].any()
        assert (state["power"] == 2.0**-20).all()


def test_the_limit_of_a_flat_channel_is_compared_in_float64():
    config = CONFIGS["1 kHz"]
    x = recording(config, 12, 3)
    x[:, 0] = 1e-3  # as float32 4.7e-11 above the limit
    x[::2, 0] = 5e-11  # and so below it by 2e-12, which float32 cannot represent
    x[:, 1], x[::2, 1] = x[:, 0], 3e-11
    expected = Definition(config).push(x)
    assert expected["bad"][-1, :2].tolist() == [True, False]
    assert_same(CFrontEnd(config).push(x), expected)


@quick
@given(st.sampled_from(["1 kHz", "24 kHz"]), st.integers(0, 2**32), st.sampled_from([0.195, 1e37, np.inf, np.nan]))
def test_integers_with_gain_and_offset_equal_the_definition(name, seed, gain_uv):
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    raw = rng.integers(-(2**15), 2**15, (config.edge(8), config.channels), dtype=np.int16)
    gain, offset = rng.uniform(0.1, 0.3, config.channels), rng.normal(size=config.channels)
    gain[0] = gain_uv
    with np.errstate(over="ignore", invalid="ignore"):
        frames = (raw * gain + offset).astype(np.float32)
    c, cut = CFrontEnd(config), int(rng.integers(0, len(raw)))
    got = joined([c.push(part, gain, offset) for part in (raw[:cut], raw[cut:])])
    assert_same(got, Definition(config).push(frames))


def test_reset_starts_over():
    config = CONFIGS["24 kHz"]
    c, x = CFrontEnd(config), recording(config, 10, 2)
    c.gap(100)
    c.push(x)
    c.c.probe_reset(c.at(c.state))
    assert c.export_state() == CFrontEnd(config).export_state()
    assert_same(c.push(x), Definition(config).push(x))


# ------------------------------------------------------------------------------------ bands


@pytest.mark.parametrize(
    "compiler",
    [
        FAST,
        PLAIN,
        *(pytest.param(c, marks=pytest.mark.variant) for c in (CLANG, ("gcc", "-O3"), ("gcc", "-O3", "-mavx2"))),
    ],
    ids=" ".join,
)
def test_the_logarithm_equals_the_definition_and_is_off_by_at_most_a_billionth(compiler):
    rng, exponents = np.random.default_rng(0), np.arange(-1022, 1024)
    edges = np.array([1.0, np.sqrt(0.5), np.sqrt(2), 4 / 3, np.nextafter(2, 1)])
    bits = (edges[:, None] * 2.0**exponents).ravel().view(np.int64)
    bits = np.concatenate([bits - 1, bits, bits + 1, rng.integers(1 << 52, 0x7FF << 52, 200_000)])
    x = bits.view(np.float64)
    x = np.ascontiguousarray(x[(x >= 2.0**-1022) & (x < np.inf)])
    x = np.concatenate([x, np.ones(-len(x) % 8)])
    found = x.copy()
    CFrontEnd(CONFIGS["bands"], compiler).c.probe_log(CFrontEnd.at(found), ctypes.c_size_t(len(found)))
    assert found.tobytes() == log64(x).tobytes()
    assert max(abs(value - math.log(number)) for value, number in zip(found.tolist(), x.tolist(), strict=True)) < 1e-9


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("bands")])
def test_power_goes_through_faults_gaps_and_moves_as_in_the_definition(name):
    """Moves the state between both after every few bins, through gaps of all lengths, and checks all of its bits."""
    config, rng = CONFIGS[name], np.random.default_rng(4)
    x, at = recording(config, 90, 8), 0
    python, c = Definition(config), CFrontEnd(config)
    for lost in [*range(config.bridged_bins + 2), 0, 9, 0]:
        stop = config.edge(config.bin_of(at) + int(rng.integers(3, 9)))
        assert_same(c.push(x[at:stop]), python.push(x[at:stop]))
        at = stop + config.edge(config.bin_of(stop) + lost) - stop
        assert_same(c.gap(at - stop), python.gap(at - stop))
        state = python.export_state()
        assert_states_equal(state_from_c(config, c.export_state()), state)
        assert (state["power"] >= 2.0**-20).all()
        python, c = Definition(config), CFrontEnd(config)
        python.import_state(state)
        assert c.import_state(state_to_c(config, state)) == 0
    assert (state["power"] > 1).any() or name == "bands, silence"


# ------------------------------------------------------------------------------------ the clock

ODD = Fraction(10**15 + 37, 10**12 + 39)  # products of its clock need 128 bits


@pytest.mark.parametrize("rate", [Fraction(1000), Fraction(390625, 384), Fraction(390625, 16), ODD])
@pytest.mark.parametrize("frame", [0, 10**6 + 3, 2**53 + 1, 2**60 + 12345])
def test_bin_edges_stay_exact_for_as_long_as_frames_can_be_counted(rate, frame):
    config = replace(CONFIGS["one channel"], rate=rate)
    frame = config.edge(config.bin_of(frame))
    c = CFrontEnd(config)
    state = np.frombuffer(c.export_state(), state_dtype(config)).copy()
    state["frame"] = frame
    assert c.import_state(state.tobytes()) == 0
    for n in (0, 1, 9, 10, 11, 10**5, 10**15, 2**61):
        assert c.bins_for(n) == config.bin_of(frame + n) - config.bin_of(frame)
    n = 300 * config.edge(1)
    seen = c.gap(n)
    bins = range(config.bin_of(frame), config.bin_of(frame + n))
    assert seen["bin"].tolist() == list(bins)
    assert seen["end_frame"].tolist() == [config.edge(k + 1) - 1 for k in bins]


@quick
@given(
    st.fractions(min_value=200, max_value=900, max_denominator=10**9),
    st.integers(0, 2**60),
)
def test_the_clock_of_any_rate_is_exact(rate, frame):
    """Checks the formulas of ed_clock.h in Python's integers: quotients, remainders and steps."""
    config = FrontEndConfig(rate, 1)
    text = frontend_constants(config)
    num, den = (int(re.search(rf"CLOCK_{part} UINT64_C\((\d+)\)", text)[1]) for part in ("NUM", "DEN"))
    assert Fraction(num, den) == rate * config.bin_ms / 1000
    k = config.bin_of(frame)
    over = config.edge(k + 1) * den - (k + 1) * num
    assert 0 <= over < den < 2**62
    more = num % den > over
    assert config.edge(k + 2) == config.edge(k + 1) + num // den + more


def test_a_rate_that_is_too_odd_is_refused():
    with pytest.raises(EngineError, match="a fraction with too large numbers"):
        frontend_constants(FrontEndConfig(Fraction(10**21 + 9, 10**18 + 37), 1))


# ------------------------------------------------------------------------------------ states


@quick
@given(st.sampled_from(sorted(CONFIGS)), st.integers(0, 2**32), st.data())
def test_a_state_moves_from_python_to_c_and_back(name, seed, data):
    config = CONFIGS[name]
    x = recording(config, 14, seed)
    cut = data.draw(st.integers(0, len(x)))
    if data.draw(st.booleans()):  # at the end of a bin, where both directions exist for every rate
        cut = config.edge(config.bin_of(cut))
    python, c = Definition(config), CFrontEnd(config)
    python.push(x[:cut])
    python.gap(lost := data.draw(st.sampled_from([0, config.edge(1)])))
    state = python.export_state()
    assert c.import_state(state_to_c(config, state)) == 0
    whole = config.decimation == 1 or config.edge(config.bin_of(cut + lost)) == cut + lost
    if whole:
        assert_states_equal(state_from_c(config, c.export_state()), state)
    other = CFrontEnd(config)
    assert other.import_state(c.export_state()) == 0
    expected = python.push(x[cut:])
    assert_same(c.push(x[cut:]), expected)
    assert_same(other.push(x[cut:]), expected)


@quick
@given(st.sampled_from(sorted(CONFIGS)), st.integers(0, 2**32), st.data())
def test_a_state_from_c_equals_that_of_the_definition(name, seed, data):
    config = CONFIGS[name]
    x = recording(config, 14, seed)
    cut = data.draw(st.integers(0, len(x)))
    c, python = CFrontEnd(config), Definition(config)
    c.push(x[:cut])
    python.push(x[:cut])
    assert_same_c(config, c.export_state(), state_to_c(config, python.export_state()))


def assert_same_c(config: FrontEndConfig, got: bytes, expected: bytes) -> None:
    a, b = (np.frombuffer(data, state_dtype(config))[0] for data in (got, expected))
    for name in a.dtype.names:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_state_inside_a_bin_of_a_decimating_front_end_stays_in_c():
    config = CONFIGS["24 kHz"]
    c = CFrontEnd(config)
    c.push(recording(config, 2, 0)[: config.edge(2) + 5])
    with pytest.raises(EngineError, match="5 frames into bin 2"):
        state_from_c(config, c.export_state())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frame", -1), ("frame", 2**62 + 1), ("frame", 2**63 - 1),
        ("pending_gap", 2), ("pending_gap", -1), ("lost_bins", -1), ("lost_bins", 5),
        ("decimator", np.nan), ("decimator", -1.0001 * 2.0**256), ("shaper", np.inf), ("shaper", 1.0001 * 2.0**256),
        ("pending", np.nan), ("pending", 1e90), ("clean", 9999), ("clean", -1), ("clean", 3.5), ("clean", 1e300),
        ("clean", np.nan), ("broken", 2), ("broken", np.nan), ("lowest", np.nan), ("highest", np.nan),
        ("part_low", np.nan), ("part_high", np.nan), ("low", np.nan), ("high", np.nan), ("shaper", 1e-31),
        ("lowest", np.inf), ("highest", np.inf), ("lowest", 1e39), ("part_low", 0.1), ("part_high", -np.inf),
        ("low", np.inf), ("high", -np.inf), ("low", 3e38), ("bands", -1e-31), ("pending", 1.0),
        ("bands", np.nan), ("bands", 1.0001 * 2.0**256), ("power", np.nan), ("power", 0.9999 * 2.0**-20),
        ("power", 1.0001 * 2.0**512),
    ],
)  # fmt: skip
def test_an_impossible_state_is_refused_and_changes_nothing(field, value):
    config = CONFIGS["bands, 30 kHz"]
    c = CFrontEnd(config)
    c.push(recording(config, 9, 0))
    before = c.state.copy()
    state = np.frombuffer(c.export_state(), state_dtype(config)).copy()
    state[field].reshape(-1)[-1:] = value
    assert c.import_state(state.tobytes()) == -1
    np.testing.assert_array_equal(c.state, before)


@pytest.mark.parametrize("name", ["1 kHz", "bands"])
def test_the_most_extreme_state_goes_on_as_in_the_definition(name):
    """Filters at their limit, clean at both ends, lost bins at the most that are bridged: nothing overflows."""
    config = CONFIGS[name]
    python, c, rng = Definition(config), CFrontEnd(config), np.random.default_rng(0)
    x = rng.normal(300, 50, (600, config.channels)).astype(np.float32)
    python.push(x[:203])
    state = python.export_state()
    state["shaper"] = 2.0**256 * rng.choice([-1.0, 0, 1e-80, 1], state["shaper"].shape)
    if config.bands:
        state["bands"] = 2.0**256 * rng.choice([-1.0, 0, 1e-80, 1], state["bands"].shape)
        state["power"] = rng.choice([2.0**-20, 1.0, 2.0**512], state["power"].shape)
    state["clean"] = rng.choice([0.0, config.recover_bins, config.settled_bins], config.channels)
    state["lost_bins"] = np.array(config.bridged_bins, np.int64)
    state["lowest"][:], state["highest"][:] = np.inf, -np.inf
    python.import_state(state)
    assert c.import_state(state_to_c(config, state)) == 0
    expected = python.push(x[203:])
    assert np.abs(expected["values"]).max() > 1e60
    assert np.isfinite(expected["values"]).all()
    assert_same(c.push(x[203:]), expected)
    assert_states_equal(state_from_c(config, c.export_state()), python.export_state())


def test_lost_bins_are_counted_and_what_they_cost_equals_the_definition():
    """A state after each of many gaps, from none to beyond what is bridged, and the bins that follow it."""
    config = CONFIGS["24 kHz"]
    for lost in range(config.bridged_bins + 3):
        python, c = Definition(config), CFrontEnd(config)
        x = np.random.default_rng(lost).normal(300, 50, (config.edge(200), 9)).astype(np.float32)
        for front in (python, c):
            front.push(x[: config.edge(150)])
            front.gap(config.edge(150 + lost) - config.edge(150))
        state = python.export_state()
        assert state["lost_bins"] == min(lost, config.bridged_bins + 1)
        assert_states_equal(state_from_c(config, c.export_state()), state)
        expected = python.push(x[config.edge(150 + lost) :])
        assert_same(c.push(x[config.edge(150 + lost) :]), expected)
        assert expected["unsettled"].any() == (lost > 0)
        assert_states_equal(state_from_c(config, c.export_state()), python.export_state())


def test_a_state_of_another_configuration_or_of_float64_samples_is_refused():
    config = CONFIGS["1 kHz"]
    with pytest.raises(EngineError, match="another configuration"):
        state_from_c(config, CFrontEnd(CONFIGS["24 kHz"]).export_state())
    python = FrontEnd(config)
    python.push(np.full((15, 19), 0.1))
    with pytest.raises(EngineError, match="is not float32"):
        state_to_c(config, python.export_state())


@pytest.mark.parametrize("name", ["first and last out", "24 kHz, first and last out"])
def test_a_state_of_a_stream_that_left_nothing_out_goes_on_the_same_in_both(name):
    config, x = CONFIGS[name], recording(CONFIGS[name], 14, 4)
    before = FrontEnd(replace(config, left_out=()))
    before.push(x[: config.edge(6)])
    python, c = Definition(config), CFrontEnd(config)
    python.import_state(before.export_state())
    assert c.import_state(state_to_c(config, before.export_state())) == 0
    assert_same(c.push(x[config.edge(6) :]), python.push(x[config.edge(6) :]))
    assert_same_c(config, c.export_state(), state_to_c(config, python.export_state()))


# ------------------------------------------------------------------------------------ constants, objects, machines


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_are_written_exactly(name):
    config = CONFIGS[name]
    mean, std = normalization(config)
    text = frontend_constants(config) + normalization_tables(config, mean.tolist(), std.tolist())
    bands, notches = band_sections(config), count_notches(config)
    before = filter_sections(config)[1][:notches]
    band_rest = [rest_states(np.concatenate([before, band]))[notches:] for band in bands]
    for table, expected in (
        ("decimator", np.delete(filter_sections(config)[0], 3, axis=1)),
        ("shaper", np.delete(filter_sections(config)[1], 3, axis=1)),
        ("bands", np.delete(np.concatenate([*bands, np.empty((0, 6))]), 3, axis=1)),
        ("bands_rest", np.concatenate([*band_rest, np.empty((0, 2))])),
        ("decimator_rest", rest_states(filter_sections(config)[0])),
        ("shaper_rest", rest_states(filter_sections(config)[1])),
        ("mean", mean),
        ("std", std),
        ("left_out", np.isin(np.arange(config.channels), config.left_out).astype(float)),
    ):
        match = re.search(rf"ed_fe_{table}\[.*?= \{{(.*?)\}};", text, re.DOTALL)
        numbers = [
            float.fromhex(word) for word in re.findall(r"-?0x[0-9a-fp.+-]+|\b[01]\b(?!\.)", match[1] if match else "")
        ]
        assert numbers == expected.ravel().tolist()
    defined = dict(re.findall(r"#define ED_FE_(\w+) (\w+)", text))
    assert int(defined["SETTLED_BINS"].rstrip("u")) == config.settled_bins
    assert int(defined["RESUME_BINS"].rstrip("u")) == resume_bins(config)
    assert int(defined["BRIDGED_BINS"].rstrip("u")) == config.bridged_bins
    assert (int(defined["BANDS"]), int(defined["FEATURES"])) == (len(config.bands), config.features)
    assert (int(defined["NOTCHES"]), int(defined["BAND_SECTIONS"])) == (notches, config.filter_order)
    assert defined["MIRRORED"] == str(int(config.filter_order % 2 == 0))


@pytest.mark.parametrize("std", [[1.0] * 4, [1.0, np.inf, 1, 1, 1], [1.0, -1, 1, 1, 1]])
def test_statistics_that_do_not_fit_are_refused(std):
    with pytest.raises(EngineError, match="the std of the normalization does not fit"):
        normalization_tables(CONFIGS["250 Hz"], [0.0] * 5, std)


@pytest.mark.parametrize("compiler", [FAST, CLANG, ARM64, CORTEX_M7], ids=lambda compiler: compiler[0])
@pytest.mark.parametrize("name", ["24 kHz", *variants("1 kHz", "bands, 2 kHz")])
def test_the_object_needs_only_memcpy_and_memset(name, compiler, monkeypatch):
    """The object compiles without warnings, and has no allocation, libm, errno or writable data of its own."""
    calls = [line for line in PROBE.split("int main")[0].splitlines() if "stdio" not in line and "stdlib" not in line]
    monkeypatch.setitem(globals(), "PROBE", "\n".join(calls))
    options = [option for option in compiler if option != "-static"]
    built = compiled.__wrapped__(CONFIGS[name], tuple(options), "-c")
    symbols = subprocess.run([shutil.which("nm") or "nm", built], capture_output=True, text=True, check=True).stdout
    kinds = {line.split()[-1]: line.split()[-2] for line in symbols.splitlines()}
    needed = {symbol for symbol, kind in kinds.items() if kind == "U"}
    assert needed <= {
        "memcpy",
        "memset",
        "__aeabi_uldivmod",
        "__aeabi_ldivmod",
    }  # the last two are 64-bit divisions of libgcc
    assert not {symbol for symbol, kind in kinds.items() if kind in "BDbdC" and not symbol.startswith("zeros")}


def operations(config: FrontEndConfig, seed: int) -> tuple[bytes, list[tuple[int, np.ndarray]]]:
    """Returns hostile chunks and gaps as the program reads them, and as a list."""
    rng = np.random.default_rng(seed)
    x = recording(config, 60, seed)
    hostile = rng.integers(0, 2**32, x.shape, dtype=np.uint32).view(np.float32)  # every kind of float32
    x = np.where(rng.random(x.shape) < 0.002, hostile, x)
    parts = np.split(x, np.sort(rng.integers(0, len(x), 20)))
    steps = [step for part in parts for step in ((len(part), part), (int(rng.integers(0, 30)), part[:0]))]
    text = b"".join(np.array([0 if len(x) else 2, n], np.uint64).tobytes() + x.tobytes() for n, x in steps)
    return text, steps


def assert_program_equals_definition(command: list[str], config: FrontEndConfig, seed: int) -> None:
    text, steps = operations(config, seed)
    done = subprocess.run(command, input=text, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    python, expected = Definition(config), b""
    for n, x in steps:
        seen = python.push(x) if len(x) else python.gap(n)
        facts = np.empty(len(seen["values"]), FACTS)
        for name in FACTS.names:
            facts[name] = seen[name]
        expected += seen["values"].tobytes() + seen["bad"].astype(np.uint32).tobytes() + facts.tobytes()
    assert done.stdout == expected


@pytest.mark.parametrize(
    "name", ["24 kHz, first and last out", "bands, 2 kHz", *variants("1 kHz", "24 kHz", "a bin's memory")]
)
def test_hostile_frames_pass_the_sanitizers_with_the_same_bits(name):
    program = compiled(CONFIGS[name], SANITIZED)
    for seed in range(3):
        assert_program_equals_definition([str(program)], CONFIGS[name], seed)


@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="no qemu-aarch64 (apt install qemu-user)")
@pytest.mark.parametrize("name", ["24 kHz, first and last out", "bands", *variants("1 kHz", "24 kHz", "bands, 30 kHz")])
def test_arm_under_emulation_gives_the_same_bits(name):
    program = compiled(CONFIGS[name], ARM64)
    assert_program_equals_definition(["qemu-aarch64", str(program)], CONFIGS[name], 0)
