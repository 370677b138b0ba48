"""Computes the attention core: integers come in, one context for each head goes out.

Exponentials are quantized and not probabilities. With uniform attention over 200 bins, each probability of 1/200 would
round to 1/127, and they would sum to 1.57. Over 254 bins all would round to zero. Here the largest score always has the
weight 127 (docs/numerics.md, "Attention core").
"""

from __future__ import annotations

import numpy as np

from edgedistill.numerics.arithmetic import LEVELS, Floats, Int8, exp32

DEAD = np.float32(-1e30)  # the score of a bin that is not seen; its exponential rounds to 0


def attend(
    q: Int8, keys: Int8, values: Int8, age_bias: Floats, live: int, score_scale: Floats, v_scale: Floats
) -> Floats:
    """Returns the context (T, H, Dh) of T bins, each over itself and the W - 1 bins before it.

    q is (H, T, Dh). keys and values are (H, W - 1 + T, Dh) in the order of time, and only the last `live` of their
    first W - 1 entries exist. age_bias is (H, W), age 0 first. score_scale = s_q s_k / sqrt(Dh) and v_scale are (1,).
    """
    window, steps = age_bias.shape[1], q.shape[1]
    at = np.arange(keys.shape[1])
    age = np.arange(steps)[:, None] + window - 1 - at  # (T, W - 1 + T)
    seen = (age >= 0) & (age < window) & (at >= window - 1 - live)
    sums = np.matmul(q.astype(np.float64), keys.astype(np.float64).swapaxes(1, 2)).astype(np.int32)
    scores = sums.astype(np.float32) * score_scale + age_bias[:, np.where(seen, age, 0)]
    scores = np.where(seen, scores, DEAD)
    p = np.rint(np.float32(LEVELS) * exp32(scores - scores.max(-1, keepdims=True)))  # integers 0 … 127
    weighted = np.matmul(p.astype(np.float64), values.astype(np.float64)).astype(np.int32)
    total = p.astype(np.int32).sum(-1, dtype=np.int32)[..., None]
    context = (weighted.astype(np.float32) * v_scale) / total.astype(np.float32)
    return np.asarray(context.swapaxes(0, 1), np.float32)
