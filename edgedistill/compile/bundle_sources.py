"""What every engine is compiled from: the kernels' own files, and what a bundle says of its model.

Folders of `kernels/` go in, names and bytes come out; a bundle goes in, its integers, front end and facts come out.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgedistill.assets import asset_folder
from edgedistill.bundle import Bundle
from edgedistill.bundle.contents import INT8_WEIGHTS, read_decoder_spec, read_int8_model
from edgedistill.compile.model_facts import ModelFacts
from edgedistill.frontend import FrontEndConfig
from edgedistill.numerics import Int8Model

ENDINGS = (".c", ".h", ".cpp", ".cu", ".cuh")


def kernel_files(*folders: str) -> dict[str, bytes]:
    """The sources that lie in those folders of `kernels/`, not in folders of theirs: "c/ed_api.c" -> contents."""
    kernels = asset_folder("kernels")
    files = ((folder, file) for folder in folders for file in (kernels / folder).iterdir())
    return {f"{folder}/{file.name}": file.read_bytes() for folder, file in files if file.name.endswith(ENDINGS)}


def model_inputs(bundle: Bundle) -> tuple[Int8Model, FrontEndConfig, ModelFacts]:
    """The bundle's INT8 student, its front end, and what its manifest says beyond them."""
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
    )
    return model, spec.front_end, facts


def encoded(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Generated texts as files of `model/`."""
    return {f"model/{file}": text.encode() for file, text in texts.items()}
