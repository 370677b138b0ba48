"""What goes into a bundle: the folded student, its graph, the spike student, holdout and reference.

Comes in: trained students with their read-outs, the session they decode. Goes out: the bundle on disk, and the
gates of its target judged on it.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save

from edgedistill import __version__
from edgedistill.bundle import open_bundle, write_bundle
from edgedistill.config import StudentShape
from edgedistill.data.recording import open_recording
from edgedistill.data.windows import SessionBins
from edgedistill.errors import EdgeDistillError
from edgedistill.frontend import FrontEnd, group_delay_ms
from edgedistill.models.student import Student
from edgedistill.quantization.onnx_graph import graph_from_student
from edgedistill.runtime.onnx_engine import OnnxEngine
from edgedistill.subjects import bench
from edgedistill.target import Gate, Target
from edgedistill.training.batches import TrainingSession
from edgedistill.training.evaluate import Readout, behaviour_of

HOLDOUT_BYTES = 64 << 20  # of raw frames; a 30 kHz recording would fill a bundle in minutes
REFERENCE_BINS = 1024
TOLERANCE = 1e-3  # of an output's standard deviation, graph against PyTorch: sums in another order, no more

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Ingredients:
    """Everything a bundle is made of."""

    out: Path
    target: Target
    preset: str
    bins: SessionBins
    session: TrainingSession
    student: Student
    readout: Readout
    spike_student: Student
    spike_readout: Readout
    metrics: dict[str, float | None]
    provenance: dict[str, Any]


def write_decoder_bundle(made: Ingredients) -> tuple[Gate, ...]:
    """Writes the bundle, checks its graph against PyTorch and measures it; returns the gates."""
    lfp_inputs = made.session.inputs("lfp")
    files, shape = student_files(made.student, made.session.id, made.readout, lfp_inputs.shape[1])
    spike_inputs = made.session.inputs("spikes")
    spikes, spike_shape = student_files(made.spike_student, made.session.id, made.spike_readout, spike_inputs.shape[1])
    mean, std = made.session.spike_normalization
    facts = {"model": spike_shape.to_json(), "normalization": {"mean": mean.tolist(), "std": std.tolist()}}
    spikes["model.json"] = json.dumps(facts).encode()
    files |= {f"subjects/spike-student/{name}": data for name, data in spikes.items()}
    files["reference.npz"] = reference(made, shape, files["student.onnx"])
    files["holdout.npz"] = holdout(made, shape)
    contents = manifest(made, shape)
    write_bundle(made.out, contents, files)
    measured = bench(open_bundle(made.out))
    write_bundle(made.out, {**contents, "gates": [asdict(gate) for gate in measured.gates]}, files)
    return measured.gates


def student_files(
    student: Student, session: str, readout: Readout, channels: int
) -> tuple[dict[str, bytes], StudentShape]:
    """`student.safetensors` and `student.onnx` of one session, read-out folded in."""
    shape = student.size.shape(channels, len(readout.bias))
    weights = {name: tensor.numpy() for name, tensor in student.fold(session).items()}
    weights["readout.latent"] = readout.weight[:, : shape.d].astype(np.float32)
    weights["readout.lags"] = readout.weight[:, shape.d :].astype(np.float32)
    weights["readout.bias"] = readout.bias.astype(np.float32)
    weights = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    graph = graph_from_student(shape, weights).SerializeToString()
    return {"student.safetensors": save(weights), "student.onnx": graph}, shape


@torch.no_grad()
def reference(made: Ingredients, shape: StudentShape, graph: bytes) -> bytes:
    """Bins, states and kinematics of PyTorch streaming from a fresh state; the graph must agree with them."""
    bins = made.session.inputs("lfp")[made.session.split.test][:REFERENCE_BINS]
    state = made.student.fresh_state(made.session.id)
    engine, kinematics = OnnxEngine(graph, shape), []
    lagged = torch.zeros(shape.lags + 1, shape.channels)
    for bin_ in bins:
        lagged = torch.cat([bin_[None], lagged[:-1]])
        latent = made.student.step(made.session.id, bin_, state)
        features = torch.cat([latent, lagged.flatten()]).double().numpy()
        kinematics.append(made.readout(features[None])[0])
    expected = np.array(kinematics, np.float32)
    found = np.stack([engine.step(bin_.numpy()) for bin_ in bins])
    worst = float(np.max(np.abs(found - expected) / made.session.scale[1]))
    if not worst <= TOLERANCE:  # NaN included
        raise EdgeDistillError(
            "the ONNX graph does not compute what the student computes",
            got=f"{worst:.2g} of an output's standard deviation",
            expected=f"at most {TOLERANCE:g}",
            causes=["onnxruntime or onnxsim of an untested version"],
            next_step="pip install -c constraints.txt 'edgedistill[train]'",
        )
    arrays = {"bins": bins.numpy(), "kinematics": expected}
    for i, (k, v) in enumerate(zip(state.ring_k, state.ring_v, strict=True)):
        arrays |= {f"state_ring_k_{i}": k.numpy(), f"state_ring_v_{i}": v.numpy()}
    arrays |= {"state_pos": np.array([state.pos], np.int32), "state_live": np.array([state.live], np.int32)}
    arrays["state_lags"] = state.lags.numpy()
    return npz(arrays)


def holdout(made: Ingredients, shape: StudentShape) -> bytes:
    """The test block as bins, counts and kinematics, after a run-up of one receptive field; and raw frames."""
    block = made.session.split.test
    first = max(0, block.start - shape.receptive_field - shape.lag_rows)
    stretch = slice(first, block.stop)
    assert made.session.counts is not None
    arrays = {
        "bins": made.session.inputs("lfp")[stretch].numpy(),
        "counts": made.session.counts[stretch].numpy().astype(np.uint8),
        "kinematics": behaviour_of(made.session)[stretch].astype(np.float32),
        "score_from": np.array(block.start - first),
        "first_bin": np.array(first),
    }
    return npz(arrays | raw_stretch(made, first, block.stop))


def raw_stretch(made: Ingredients, first: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Raw frames from the start of bin `first`, as many as fit, and the state of the front end before them."""
    config = made.bins.frontend
    assert config is not None
    with open_recording(Path(made.bins.path)) as recording:
        lfp = recording.lfp
        assert lfp is not None
        start = config.edge(first)
        frames = min(config.edge(stop) - start, HOLDOUT_BYTES // (4 * lfp.channels))
        front_end = FrontEnd(config)
        block = max(1, (8 << 20) // (4 * lfp.channels))
        for at in range(0, start, block):
            front_end.push(lfp.read(at, min(at + block, start)))
        state = {f"fe_{name}": value for name, value in front_end.export_state().items()}
        return {"frames": lfp.read(start, start + frames), "frame_start": np.array(start), **state}


def manifest(made: Ingredients, shape: StudentShape) -> dict[str, object]:
    """`manifest.json` but for what `write_bundle` and the gates add."""
    config = made.bins.frontend
    assert config is not None
    mean, std = made.session.normalization
    outputs = zip(made.bins.output_names, made.bins.output_units, strict=True)
    return {
        "name": made.out.stem,
        "created_by": f"edgedistill {__version__}",
        "model": shape.to_json(),
        "frontend": config.to_json(),
        "normalization": {"mean": mean.tolist(), "std": std.tolist()},
        "channel_ids": list(made.bins.channel_ids),
        "outputs": [{"name": name, "unit": unit} for name, unit in outputs],
        "session": {"id": made.session.id, "subject": made.bins.subject_id},
        "preset": made.preset,
        "target": made.target.name,
        "recipe": None,
        "metrics": {name: none_if_nan(value) for name, value in made.metrics.items()},
        "gates": [],
        "provenance": made.provenance,
        "group_delay_ms": group_delay_ms(config),
    }


def none_if_nan(value: float | None) -> float | None:
    """JSON has no NaN: an output that never moves has no R²."""
    return value if value is not None and np.isfinite(value) else None


def npz(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    """Arrays as the bytes of an .npz, without pickle."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
