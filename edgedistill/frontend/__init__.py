"""Defines the causal front end: raw frames in microvolts come in, LFP bins of 10 ms go out.

Training, the deployed decoder and the C front end share this one definition. However the frames are cut into calls, the
bins have the same bits. Everything about a bin is decided when its last frame has arrived:

1. A bin with lost frames changes nothing but the clock. All its channels count as lost.
2. A sample that is not finite becomes 0 and marks its channel. The range of the other samples is kept (`rules`).
3. A low-pass and a decimation of integer phase reduce the rate to at most 1 kHz. Notches, a high-pass and a low-pass
   follow. The value of the bin is its last sample. Beside it stands the log power of each band, if bands are wanted,
   of what the notches have left. Every channel is filtered by itself, and its filters begin at rest
   after the start, a long gap or a fault of the channel (`stream`).
4. Channels that are non-finite, flat, saturated, or have not settled since are bad (`rules`).
5. Values are standardized by mean and deviation, which may follow the signal (`statistics`).
6. Lost channels are filled in from the others, and the common average is subtracted (`spatial`).

`design` holds the configuration, the exact bin clock and the coefficients. docs/numerics.md is the same definition in
words.
"""

from edgedistill.frontend.design import (
    FrontEndConfig,
    band_sections,
    bin_edges,
    count_notches,
    filter_sections,
    find_bands,
    find_bin,
    group_delay_ms,
    require_follow,
    settling_bins,
)
from edgedistill.frontend.spatial import (
    SPATIAL_TENSORS,
    FeatureModel,
    SpatialModel,
    Standardization,
    standardize,
    zscore,
)
from edgedistill.frontend.statistics import ChannelStatistics
from edgedistill.frontend.stream import Bins, FrontEnd

__all__ = [
    "SPATIAL_TENSORS",
    "Bins",
    "ChannelStatistics",
    "FeatureModel",
    "FrontEnd",
    "FrontEndConfig",
    "SpatialModel",
    "Standardization",
    "band_sections",
    "bin_edges",
    "count_notches",
    "filter_sections",
    "find_bands",
    "find_bin",
    "group_delay_ms",
    "require_follow",
    "settling_bins",
    "standardize",
    "zscore",
]
