"""Draws the figure of `simulator.py`: four measures above, and five seconds of one session below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from edgedistill.files import atomic_write

Panel = Mapping[str, npt.NDArray[np.float64]]
INK, LFP, SPIKES, GREY = "#222222", "#1f6fb4", "#c8442e", "#9a9a9a"
BAND_COLOURS = {"below 4 Hz": "#1f6fb4", "beta 15-30 Hz": "#c8442e", "60-200 Hz": "#2f8f5b"}


def draw(panels: Mapping[str, Panel], path: Path) -> None:
    """Draws the figure and writes it as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(15, 9.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.3], hspace=0.04)
    spectrum, movement, distance, decoding = upper.subplots(1, 4)
    draw_spectrum(spectrum, panels["spectrum"])
    draw_movement(movement, panels["movement"])
    draw_distance(distance, panels["distance"])
    draw_decoding(decoding, panels["decoding"])
    draw_excerpt(lower.subplots(3, 1, sharex=True, height_ratios=[1.2, 1.7, 0.8]), panels["excerpt"])
    with atomic_write(path, "the figure") as partial:
        figure.savefig(partial, dpi=100)
    plt.close(figure)


def draw_spectrum(axes: Axes, panel: Panel) -> None:
    """Draws the power of the channels, and the fitted power law beside it."""
    hz = panel["hz"]
    shown = (hz >= 0.5) & (hz <= 250)
    axes.fill_between(
        hz[shown],
        panel["low"][shown],
        panel["high"][shown],
        color=LFP,
        alpha=0.2,
        lw=0,
        label="all good channels",
    )
    axes.loglog(hz[shown], panel["median"][shown], color=LFP, lw=1.2, label="median")
    fitted = (hz >= 2) & (hz <= 45)
    chi = float(panel["chi"])
    axes.loglog(hz[fitted], panel["fit"][fitted], color=INK, lw=1, ls="--", label=rf"$f^{{-{chi:.2f}}}$, 2–45 Hz")
    axes.set(title="LFP spectrum", xlabel="Hz", ylabel="µV² / Hz")
    axes.legend(frameon=False, fontsize=8)


def draw_movement(axes: Axes, panel: Panel) -> None:
    """Draws the band power around the start of movement, relative to the rest before it."""
    for name, colour in BAND_COLOURS.items():
        smooth = np.convolve(panel[name], np.ones(5) / 5, "valid")  # over 50 ms
        axes.plot(panel["s"][2:-2], smooth, color=colour, lw=1.4, label=name)
    axes.axvline(0, color=GREY, lw=0.8)
    axes.axhline(0, color=GREY, lw=0.8, ls=":")
    axes.set(title="power at movement onset", xlabel="s from onset", ylabel="dB from rest (−0.3 to −0.1 s)")
    axes.legend(frameon=False, fontsize=8)


def draw_distance(axes: Axes, panel: Panel) -> None:
    """Draws every pair of good channels, and the mean at each distance."""
    mm, r = panel["mm"], panel["r"]
    axes.plot(mm, r, ".", color=LFP, ms=3, alpha=0.35, mew=0)
    step = np.round(mm / 0.4)
    middle = [(0.4 * k, r[step == k].mean()) for k in np.unique(step)]
    axes.plot(*np.transpose(middle), "o-", color=INK, ms=4, lw=1, label="mean")
    axes.set(
        title="correlation below 50 Hz",
        xlabel="mm between channels",
        ylabel="r",
        xlim=(0, None),
        ylim=(0, 1.02),
    )
    axes.legend(frameon=False, fontsize=8)


def draw_decoding(axes: Axes, panel: Panel) -> None:
    """Draws how well subsets of the channels decode velocity by lagged ridge, with spikes for comparison."""
    axes.axvspan(15, 20, color=GREY, alpha=0.2, lw=0, label="saturation expected")
    axes.fill_between(panel["n"], *panel["range"], color=LFP, alpha=0.2, lw=0)
    axes.plot(panel["n"], panel["r2"], "o-", color=LFP, ms=3, lw=1.2, label="LFP, random subsets")
    axes.axhline(float(panel["spikes"]), color=SPIKES, lw=1.2, label="spikes, all units")
    axes.set(title="lagged ridge to velocity", xlabel="channels", ylabel="R²", ylim=(0, 1), xlim=(0, None))
    axes.legend(frameon=False, fontsize=8)


def draw_excerpt(axes: Sequence[Axes], panel: Panel) -> None:
    """Draws spikes, every fourth good channel and hand velocity over the same five seconds."""
    raster, field, hand = axes
    raster.plot(panel["at"], panel["unit"], "|", color=INK, ms=2.5, mew=0.6)
    raster.set(ylabel="unit", title="five seconds: spikes, raw LFP, hand velocity")
    lfp = panel["lfp"] - panel["lfp"].mean(0)
    gap = 4 * float(np.median(lfp.std(0)))
    t = np.arange(len(lfp)) / len(lfp) * 5
    for row, trace in enumerate(lfp.T):
        field.plot(t, trace - row * gap, color=LFP, lw=0.6)
    field.plot([5.03, 5.03], [-gap, -gap + 200], color=INK, lw=2, clip_on=False)
    field.text(5.05, -gap + 100, "200 µV", va="center", fontsize=8)
    field.set(ylabel="channel", yticks=[])
    t = np.arange(len(panel["velocity"])) / 100
    for column, name, colour in ((0, "x", "#2f8f5b"), (1, "y", "#8a4fb0")):
        hand.plot(t, panel["velocity"][:, column], color=colour, lw=1.3, label=name)
    hand.axhline(0, color=GREY, lw=0.6)
    hand.set(ylabel="cm/s", xlabel="s", xlim=(0, 5))
    hand.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
