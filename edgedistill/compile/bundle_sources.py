"""Collects what every engine is compiled from: the files of `kernels/`, and the model of a bundle.

Folders of `kernels/` go in, and names with contents come out. A bundle goes in, and its INT8 student, its front end and
the facts of its manifest come out.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgedistill.assets import asset_folder
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import (
    INT8_WEIGHTS,
    read_decoder_spec,
    read_deviation_model,
    read_int8_model,
    read_smoothing_model,
    read_spatial_model,
    require_current_format,
)
from edgedistill.compile.model_facts import ModelFacts
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model

CMAKE = "CMakeLists.txt"
ENDINGS = (".c", ".h", ".cpp", ".cu", ".cuh")


def kernel_files(*folders: str) -> dict[str, bytes]:
    """Returns the sources in folders of `kernels/`, without subfolders, such as "c/ed_api.c" -> contents."""
    kernels = asset_folder("kernels")
    files = ((folder, file) for folder in folders for file in (kernels / folder).iterdir())
    return {f"{folder}/{file.name}": file.read_bytes() for folder, file in files if file.name.endswith(ENDINGS)}


def cmake_file() -> dict[str, bytes]:
    """Returns the CMakeLists.txt of `kernels/`, with which a GPU engine is built without Python."""
    return {CMAKE: (asset_folder("kernels") / CMAKE).read_bytes()}


def model_files(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Returns generated texts as files of the folder `model/`."""
    return {f"model/{file}": text.encode() for file, text in texts.items()}


def model_inputs(bundle: Bundle) -> tuple[Int8Model, FrontEndConfig, ModelFacts]:
    """Returns the bundle's INT8 student, its front end, and the other facts of its manifest.

    Raises BundleError for a bundle that lacks a part or is of an older format.
    """
    require_current_format(bundle)
    spec = read_decoder_spec(bundle)
    model = read_int8_model(bundle, spec.shape)
    facts = ModelFacts(
        name=spec.name,
        channel_ids=spec.channel_ids,
        output_names=spec.output_names,
        output_units=spec.output_units,
        mean=spec.normalization.mean,
        std=spec.normalization.std,
        warmup_bins=spec.warmup_bins,
        group_delay_ms=spec.group_delay_ms,
        manifest_sha256=spec.sha256,
        weights_sha256=bundle.manifest.files[INT8_WEIGHTS],
        spatial=read_spatial_model(bundle, spec.front_end),
        deviation=read_deviation_model(bundle, spec.front_end.channels, spec.shape.outputs),
        smoothing=read_smoothing_model(bundle, spec.shape),
    )
    return model, spec.front_end, facts
