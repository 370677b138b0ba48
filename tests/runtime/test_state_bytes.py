"""An engine reports the size of its state, which equals the size of the state that it exports."""

from __future__ import annotations

from pathlib import Path

from edgedistill.bundle.contents import read_decoder_spec
from edgedistill.compile.c.library import compile_c_library
from edgedistill.runtime.c_engine import open_c_engine

from ..compile.engines import quick_host, write_engine_bundle


def test_bytes_of_a_state(tmp_path: Path) -> None:
    bundle = write_engine_bundle(tmp_path / "s.edge", "slow")
    compile_c_library(bundle, quick_host())
    spec = read_decoder_spec(bundle)
    engine = open_c_engine(bundle, spec.shape, spec.front_end)
    assert engine.state_bytes == sum(array.nbytes for array in engine.export_state().values())
