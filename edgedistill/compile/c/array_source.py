"""Writes the models of the array and of the outputs as the tables that the engine reads.

A SpatialModel, a DeviationModel or a SmoothingModel goes in, and C text with hexadecimal floats comes out, which is
exact. The order in which kernels/c/ed_spatial.h reads the coupling is made here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgedistill.compile.c.literals import c_array_body, c_float
from edgedistill.compile.c.packing import pad
from edgedistill.frontend.spatial import ROWS, SpatialModel
from edgedistill.numerics.arithmetic import LANES
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.numerics.smoothing import SmoothingModel

Floats = npt.NDArray[np.float32]

STRIPE = 32  # ED_STRIPE: columns of the coupling whose sums stay in registers


def spatial_tables(model: SpatialModel) -> str:
    """Returns the coupling, its scales and the gains of each feature, padded with zeros to whole lanes of channels."""
    vectors = {"coupling_scale": model.scale, "coupling_inverse": model.inverse_scale, "channel_gain": model.gain}
    lines = [f"#define ED_KNOWN_CHANNELS {np.count_nonzero(model.known)}u"]
    lines += [_table("coupling", np.stack([coupling_stripes(part) for part in model.coupling]))]
    rows = {name: values.reshape(model.features, model.channels) for name, values in vectors.items()}
    lines += [_table(name, pad(values, columns=LANES)) for name, values in rows.items()]
    return "\n".join(lines)


def deviation_tables(model: DeviationModel) -> str:
    """Returns the variances by number of lost channels, and the mean and the weight of the outputs."""
    tables = {
        "variance_at_rest": model.at_rest,
        "variance_by_speed": model.by_speed,
        "output_center": model.center,
        "output_weight": model.weight,
    }
    return "\n".join(_table(name, values) for name, values in tables.items())


def smoothing_tables(model: SmoothingModel) -> str:
    """Returns the filter of the outputs and the means about which it works."""
    return "\n".join(_table(f"smoothing_{name}", getattr(model, name)) for name in ("keep", "gain", "raw_mean", "mean"))


def coupling_stripes(coupling: Floats) -> Floats:
    """Returns the coupling (C, C) as one array, stripe after stripe of STRIPE columns, each row after row.

    It is padded with zeros to whole lanes of columns and to the rows that are added at a time.
    """
    padded = pad(coupling, rows=ROWS, columns=LANES)
    return np.concatenate([padded[:, at : at + STRIPE].ravel() for at in range(0, padded.shape[1], STRIPE)])


def _table(name: str, values: Floats) -> str:
    sizes = "".join(f"[{size}]" for size in values.shape)
    body = c_array_body(map(c_float, values.ravel()))
    if values.ndim > 1:
        body = "".join(f"    {{{c_array_body(map(c_float, row)).strip()}}},\n" for row in values)
    return f"static const ED_ALIGNED float ed_{name}{sizes} = {{\n{body}}};"
