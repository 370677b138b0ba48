"""Simulates a cursor that reaches for targets, and the latents that drive the population.

The inputs are a number of 10 ms steps and a random generator. The outputs are position, velocity and target, and
latents of about unit variance.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, sosfilt

from edgedistill.data.simulation.config import LATENT_HZ, LEAD_S, Array


def simulate_reaches(steps: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Simulates self-paced reaches to random targets in a 20 cm square.

    Returns position in cm, velocity in cm/s and the vector to the target in cm, each (steps, 2).
    """
    position, goal = np.zeros((steps, 2)), np.zeros((steps, 2))
    here, t = np.zeros(2), 0
    while t < steps:
        target = rng.uniform(-10, 10, 2)
        reach = target - here
        distance = float(np.linalg.norm(reach))
        moving = max(25, int(LATENT_HZ * (0.3 + 0.035 * distance) * rng.lognormal(0, 0.15)))
        holding = int(LATENT_HZ * (0.1 + rng.exponential(0.25)))
        s = np.arange(1, moving + 1) / moving
        along = 10 * s**3 - 15 * s**4 + 6 * s**5  # minimum jerk
        bow = rng.normal(0, 0.08) * np.sin(np.pi * along)
        path = here + along[:, None] * reach + bow[:, None] * np.array([-reach[1], reach[0]])
        path = np.concatenate([path, np.repeat(target[None], holding, 0)])[: steps - t]
        position[t : t + len(path)] = path
        goal[t : t + len(path)] = target - path
        here, t = target, t + len(path)
    smooth = butter(2, 8, fs=LATENT_HZ, output="sos")
    position = position + sosfilt(smooth, rng.normal(0, 0.05, position.shape), axis=0)  # tremor
    return position, np.gradient(position, 1 / LATENT_HZ, axis=0), goal


def latents_from_behavior(position: Array, velocity: Array, goal: Array, rng: np.random.Generator) -> Array:
    """Returns latents (steps, LATENTS) of about unit variance.

    They are velocity, speed, position, the vector to the target, and three rotations that do not depend on the hand.
    """
    lead = round(LEAD_S * LATENT_HZ)
    ahead = np.roll(velocity, -lead, axis=0)
    speed = np.linalg.norm(ahead, axis=1)
    behavior = np.column_stack(
        [ahead / 12.0, (speed - speed.mean()) / 12.0, np.roll(position, -lead, axis=0) / 6.0, goal / 6.0]
    )
    return np.concatenate([behavior, draw_rotations(len(position), rng)], axis=1)


def draw_rotations(steps: int, rng: np.random.Generator) -> Array:
    """Draws three noisy planar rotations (steps, 6) at 0.5, 1.2 and 2.5 Hz that do not depend on the hand."""
    columns = []
    for hz, tau_s in ((0.5, 0.6), (1.2, 0.4), (2.5, 0.25)):
        decay = np.exp(-1 / (tau_s * LATENT_HZ) + 2j * np.pi * hz / LATENT_HZ)
        noise = rng.normal(size=steps) + 1j * rng.normal(size=steps)
        path = np.empty(steps, np.complex128)
        state = 0j
        for i in range(steps):
            state = decay * state + noise[i]
            path[i] = state
        path *= np.sqrt(1 - abs(decay) ** 2)
        columns += [path.real, path.imag]
    return np.column_stack(columns)
