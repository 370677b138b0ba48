"""The causal front end: raw frames in microvolts in, 10 ms LFP bins out, the same bits for any chunking.

The one definition that training, the deployed decoder and the C front end share. All about a bin is decided
when its last frame has arrived:

1. a sample that is not finite becomes 0 and marks its channel; the range of the others is kept (`rules`);
2. samples of channels that were bad at the end of the bin before become 0;
3. low-pass and integer-phase decimation to at most 1 kHz: frames whose index is a multiple of D stay;
4. bad channels: non-finite, flat, saturated, or not yet clean for long enough (`rules`), zero in this bin;
5. common average over good channels, notches, high-pass, low-pass; the bin's value is its last sample;
6. filter states below 1e-30 become 0, so that silence never ends in slow denormals.

`design` holds the configuration, the exact bin clock and the coefficients; `stream` runs it.
"""

from edgedistill.frontend.design import (
    FrontEndConfig,
    bin_edges,
    filter_sections,
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
    "group_delay_ms",
    "settling_bins",
    "zscore",
]
