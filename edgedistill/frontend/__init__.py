"""Defines the causal front end: raw frames in microvolts come in, LFP bins of 10 ms go out.

Training, the deployed decoder and the C front end share this one definition. However the frames are cut into calls, the
bins have the same bits. Everything about a bin is decided when its last frame has arrived:

1. A sample that is not finite becomes 0 and marks its channel. The range of the other samples is kept (`rules`).
2. Samples of channels that were bad at the end of the previous bin become 0.
3. A low-pass and a decimation of integer phase reduce the rate to at most 1 kHz. Frames whose index is a multiple of D
   stay.
4. Channels that are non-finite, flat, saturated, or not yet clean for long enough are bad (`rules`), and are zero in
   this bin.
5. The common average over the good channels is subtracted. Notches, a high-pass and a low-pass follow. The value of the
   bin is its last sample.
6. Filter states below 1e-30 become 0, so that silence does not end in slow denormals.

`design` holds the configuration, the exact bin clock and the coefficients. `stream` runs them. docs/numerics.md, "Front
end", is the same definition in words.
"""

from edgedistill.frontend.design import (
    FrontEndConfig,
    bin_edges,
    filter_sections,
    find_bin,
    group_delay_ms,
    settling_bins,
)
from edgedistill.frontend.stream import Bins, FrontEnd, zscore

__all__ = [
    "Bins",
    "FrontEnd",
    "FrontEndConfig",
    "bin_edges",
    "filter_sections",
    "find_bin",
    "group_delay_ms",
    "settling_bins",
    "zscore",
]
