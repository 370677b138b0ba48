"""Simulates a hand that follows a wandering target by submovements, and rests between trials.

The inputs are a number of 10 ms steps and a random generator. The outputs are position and velocity of the cursor.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, sosfilt, sosfiltfilt

from edgedistill.data.simulation.config import LATENT_HZ, Array

SPREAD_CM = 5.0  # deviation of the target's path in each direction
TARGET_HZ = 0.45  # the target's path has nothing faster
REST_S, TRIAL_S = (0.8, 2.0), (2.5, 6.0)  # least and most
REACTION_S = 0.2  # from the start of a trial to the first submovement
SEEN_S = 0.1  # what is aimed at was seen so long ago
AIM_CM = 0.5  # deviation of where a submovement ends


def simulate_pursuit(steps: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Simulates trials of pursuit with rests between them.

    Every 0.2 to 0.4 s a submovement of minimum jerk starts toward where the target is going to be. It is added to those
    under way. Returns position in cm and velocity in cm/s, each (steps, 2).
    """
    target = draw_target_path(steps, rng)
    heading = np.gradient(target, 1 / LATENT_HZ, axis=0)
    velocity = np.zeros((steps + 2 * LATENT_HZ, 2))
    aimed = np.zeros(2)  # where the hand rests once all submovements under way are done
    seen = round(SEEN_S * LATENT_HZ)
    for at in draw_submovement_starts(steps, rng):
        moving = int(LATENT_HZ * np.clip(0.45 * rng.lognormal(0, 0.2), 0.25, 1.0))
        ahead_s = SEEN_S + moving / LATENT_HZ
        aim = target[at - seen] + 0.9 * ahead_s * heading[at - seen] + rng.normal(0, AIM_CM, 2)
        s = (np.arange(moving) + 0.5) / moving
        pulse = 30 * s**2 * (1 - s) ** 2 / moving * LATENT_HZ  # minimum jerk; its integral is 1
        velocity[at : at + moving] += pulse[:, None] * (aim - aimed)
        aimed = aim
    tremor = sosfilt(butter(2, 8, fs=LATENT_HZ, output="sos"), rng.normal(0, 0.05, (steps, 2)), axis=0)
    position = np.cumsum(velocity[:steps], axis=0) / LATENT_HZ + tremor
    return position, np.gradient(position, 1 / LATENT_HZ, axis=0)


def draw_target_path(steps: int, rng: np.random.Generator) -> Array:
    """Draws the path (steps, 2) of the target in cm: smooth noise that stays within the workspace."""
    margin = 10 * LATENT_HZ
    noise = rng.normal(size=(steps + 2 * margin, 2))
    path = sosfiltfilt(butter(2, TARGET_HZ, fs=LATENT_HZ, output="sos"), noise, axis=0)
    path *= SPREAD_CM / path.std()
    return np.asarray(2 * SPREAD_CM * np.tanh(path / (2 * SPREAD_CM)))[margin : margin + steps]


def draw_submovement_starts(steps: int, rng: np.random.Generator) -> list[int]:
    """Draws the steps at which submovements start: trial after trial, none while the animal rests."""
    starts: list[int] = []
    at = 0.0
    while True:
        at += rng.uniform(*REST_S) + REACTION_S
        end = at + rng.uniform(*TRIAL_S)
        while at < end:
            if at * LATENT_HZ >= steps:
                return starts
            starts.append(int(at * LATENT_HZ))
            at += rng.uniform(0.2, 0.4)
        at += 0.5  # the last submovement ends
