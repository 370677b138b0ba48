"""Collects what every engine is compiled from: the files of `kernels/`, and what a bundle says of its model.

Folders of `kernels/` come in, and names with contents go out. A bundle comes in, and its INT8 student, its front end
and the facts of its manifest go out.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgedistill.assets import asset_folder
from edgedistill.bundle import Bundle
from edgedistill.compile.model_facts import ModelFacts
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model
from edgedistill.runtime.decoder import described, int8_model

WEIGHTS = "student.int8.safetensors"
CMAKE = "CMakeLists.txt"
ENDINGS = (".c", ".h", ".cpp", ".cu", ".cuh")


def kernel_files(*folders: str) -> dict[str, bytes]:
    """Returns the sources in those folders of `kernels/`, without their subfolders: "c/ed_api.c" -> contents."""
    kernels = asset_folder("kernels")
    files = ((folder, file) for folder in folders for file in (kernels / folder).iterdir())
    return {f"{folder}/{file.name}": file.read_bytes() for folder, file in files if file.name.endswith(ENDINGS)}


def cmake_file() -> dict[str, bytes]:
    """Returns the CMakeLists.txt of `kernels/`, which builds a GPU engine without Python."""
    return {CMAKE: (asset_folder("kernels") / CMAKE).read_bytes()}


def model_files(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Returns generated texts as files of the folder `model/`."""
    return {f"model/{file}": text.encode() for file, text in texts.items()}


def model_inputs(bundle: Bundle, engine: str) -> tuple[Int8Model, FrontEndConfig, ModelFacts]:
    """Returns the bundle's INT8 student, its front end, and what its manifest says beyond them.

    Raises BundleError for a bundle that lacks a part; `engine` is named in the message.
    """
    shape, front_end, info, mean, std = described(bundle, engine)
    facts = ModelFacts(
        name=info.name,
        channel_ids=info.channel_ids,
        output_names=info.output_names,
        output_units=info.output_units,
        mean=tuple(mean),
        std=tuple(std),
        warmup_bins=info.warmup_bins,
        group_delay_ms=info.group_delay_ms,
        manifest_sha256=bundle.sha256,
        weights_sha256=str(bundle.manifest["files"].get(WEIGHTS)),
    )
    return int8_model(bundle, shape), front_end, facts
