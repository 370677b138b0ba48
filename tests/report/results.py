"""Makes a result of `bench` with every part there is, for the tests of the report."""

from __future__ import annotations

from typing import Any

import numpy as np


def subject(name: str, p50: float, r2: float | None = None, **more: Any) -> dict[str, Any]:
    """Returns one row whose times are log-normal around `p50`."""
    times = p50 * np.random.default_rng(len(name)).lognormal(0, 0.08, 2000)
    edges = np.geomspace(times.min() * 0.99, times.max() * 1.01, 41)
    at = dict(zip(("p50", "p95", "p99", "p999", "max"), np.percentile(times, (50, 95, 99, 99.9, 100)), strict=True))
    return {
        "name": name,
        "engine": "c",
        "precision": "int8" if "int8" in name else "float32",
        "params": 1_100_000,
        "artifact_bytes": 1_300_000,
        "state_bytes": 204_000,
        "latency_us": {key: float(value) for key, value in at.items()},
        "histogram": {"edges_us": edges.tolist(), "counts": np.histogram(times, edges)[0].tolist()},
        "deadline_us": 10_000.0,
        "deadline_misses": 0,
        "steps": 2000,
        "energy_mj_per_step": None,
        "energy_source": "not measured: only root may read the counter",
        "r2": r2,
        "r2_source": "holdout of the bundle" if r2 is not None else "not measured: never trained in this shape",
    } | more


def paced(p50: float, misses: int = 0) -> dict[str, Any]:
    figures = {
        "p50": p50,
        "p95": p50 * 1.2,
        "p99": p50 * 1.5,
        "p999": p50 * 2,
        "max": p50 * 4,
        "mean": p50,
        "steps": 60,
    }
    response = {key: value + 60 for key, value in figures.items()}
    return {"step_us": figures, "response_us": response, "jitter_us": 9.5, "deadline_misses": misses, "steps": 60}


def training() -> dict[str, Any]:
    """Returns how a student was chosen, after a search with a trial of each kind."""
    own = {"learning_rate": 0.003, "alignment": "whitened", "alignment_weight": 0.5}
    trials = [
        {"trial": 0, "state": "finished", "validation_r2": 0.612, "last_step": 300, "settings": own},
        {"trial": 1, "state": "finished", "validation_r2": 0.634, "last_step": 300,
         "settings": {"learning_rate": 0.0015, "alignment": "none"}},
        {"trial": 2, "state": "stopped", "validation_r2": None, "last_step": 150, "settings": own},
        {"trial": 3, "state": "diverged", "validation_r2": None, "last_step": None, "settings": own},
    ]  # fmt: skip
    return {
        "shipped": "deployed",
        "candidates": {"deployed": 0.634, "distilled": 0.551, "supervised_lfp": None},
        "search": {"deployed": [{**trial, "chosen": trial["trial"] == 1} for trial in trials]},
    }


def full_result() -> dict[str, Any]:
    seconds = np.arange(0, 8, 0.02)
    truth = np.stack([10 * np.sin(seconds), 5 * np.cos(2 * seconds)], 1)
    noise = np.random.default_rng(0).normal(0, 1, truth.shape)
    curve = [{"mean": 0.6 - 0.1 * i, "min": 0.55 - 0.1 * i, "max": 0.65 - 0.1 * i} for i in range(4)]
    spikes = [{"mean": 0.8 - 0.2 * i, "min": 0.7 - 0.2 * i, "max": 0.9 - 0.2 * i} for i in range(4)]
    ridge = [{"mean": 0.5 - 0.1 * i, "min": 0.45 - 0.1 * i, "max": 0.55 - 0.1 * i} for i in range(4)]
    kinds = (
        ("lost channels", "share of the channels"),
        ("lost bank", "share of the channels, side by side"),
        ("added noise", "standard deviations"),
        ("drift, simulated", "days"),
    )
    return {
        "device": {"cpu": "a <processor> & more", "cores": 2, "board": None, "versions": {"numpy": "2.0"}},
        "bundle": {"name": "decoder", "sha256": "0" * 64, "session": {"id": "s1"}, "preset": "nano",
                   "training": training()},
        "subjects": [
            subject("lfp-student-int8", 12.0, 0.61, paced=paced(60), paced_cold=paced(95)),
            subject("lfp-student-fp32", 286.0, 0.612),
            subject("onnxruntime-int8", 276.0, 0.61),
            subject("spike-student-int8", 12.5, 0.79, paced=paced(61)),
            subject("spike-teacher", 2400.0, 0.7, precision="float32"),
            subject("spike-teacher-published", 1_080_000.0, None, precision="float32"),
        ],
        "empty_paced": paced(0.1),
        "frames_paced": paced(80) | {"group_delay_ms": 5.2, "signal_to_output_ms": 5.34},
        "ratios": {},
        "gates": [{"name": "step_p99_us", "value": 14.0, "limit": 10.0, "ok": False}],
        "trace": {
            "seconds": seconds.tolist(),
            "names": ["cursor_vel_x", "cursor_vel_y"],
            "units": ["cm/s", "cm/s"],
            "truth": truth.tolist(),
            "decoded": {"lfp-student-int8": (truth + noise).tolist(), "spike-student": (truth + noise / 2).tolist()},
            "deviation": {"lfp-student-int8": np.ones_like(truth).tolist()},
            "source": "holdout of the bundle",
        },
        "intervals": {
            "subject": "lfp-student-int8",
            "confidence": {"labelled_bins": 8000, "standard_error": 0.01, "note": None},
            "rows": [
                {"lost": lost, "channels": channels, "draws": 3, "deviation": [8.1, 7.5],
                 "coverage": [{"level": level, "share": level + 0.011, "standard_error": error,
                               "share_per_output": [level, level]} for level in (0.5, 0.9)]}
                for lost, channels, error in (("none", 0, 0.008), ("random", 8, 0.007), ("bank", 8, None))
            ],
            "source": "holdout of the bundle",
        },
        "robustness": [
            {"kind": k, "unit": u, "levels": [0, 0.1, 0.25, 0.5], "draws": 3,
             "r2": {"lfp-student-int8": curve, "lfp-ridge": ridge, "spike-student-int8": spikes},
             "limits": [{"subject": "lfp-student-int8", "level": 0.25, "kept_share": 0.667, "limit": 0.9, "ok": False},
                        {"subject": "lfp-student-int8", "level": 0.5, "kept_share": None, "limit": 0.7, "ok": None}]}
            for k, u in kinds
        ],
        "system": {
            "rows": [
                {"signal": "LFP", "decoded": "implant", "mbit_per_s": 0.0032, "acquisition_mw": 0.27,
                 "processing_mw": 0.0, "radio_mw": 1e-5, "compute_mw": 1.4, "compute_source": "estimated",
                 "total_mw": 1.67}
            ],
            "assumptions": {"radio_pj_per_bit": {"value": 5.8, "unit": "pJ a bit", "source": "PMC7614137"}},
        },
        "layers": [{"name": "layers.0.qkv", "multiply_adds": 49_152, "bytes": 50_000}],
        "calibration": [{"name": "bin", "range": 5.1, "clipped": 0.0004, "noise_db": 38.2}],
        "command": "edgedistill bench decoder.edge --json",
        "created": "2026-11-21",
    }  # fmt: skip
