"""The simulator gives equal files for equal seeds, and the files are NWB that any reader opens."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.data.simulation import nwb as simulated_nwb
from edgedistill.data.simulation.animal import place_array
from edgedistill.data.simulation.config import VARIANTS
from edgedistill.data.simulation.nwb import UV_PER_BIT, simulate_to_nwb
from edgedistill.data.simulation.sessions import LATENT_HZ, SimulatedSession, SimulationConfig, simulate_sessions
from edgedistill.errors import ConfigError, OutputError

SMALL = SimulationConfig(sessions=2, minutes=0.2, seed=3, channels=6, units=5, population=120)
STEPS = round(SMALL.minutes * 60 * LATENT_HZ)
FRAMES = STEPS * SMALL.rate_hz // LATENT_HZ


@pytest.fixture(scope="module", params=VARIANTS)
def small(request: pytest.FixtureRequest) -> SimulationConfig:
    return replace(SMALL, variant=request.param)


@pytest.fixture(scope="module")
def days(small: SimulationConfig) -> list[SimulatedSession]:
    return list(simulate_sessions(small))


@pytest.fixture(scope="module")
def files(small: SimulationConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return list(simulate_to_nwb(small, tmp_path_factory.mktemp("sessions")))


def with_seed(config: SimulationConfig, seed: int) -> SimulationConfig:
    return replace(config, seed=seed, sessions=1)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_files_byte_for_byte(
    small: SimulationConfig, files: list[Path], tmp_path: Path
) -> None:
    again = list(simulate_to_nwb(small, tmp_path / "again"))
    assert [path.name for path in again] == [path.name for path in files]
    assert [digest(path) for path in again] == [digest(path) for path in files]


def test_another_seed_gives_another_lfp(small: SimulationConfig, tmp_path: Path) -> None:
    paths = [next(simulate_to_nwb(with_seed(small, seed), tmp_path / str(seed))) for seed in (0, 1)]
    first, second = (session_lfp(path) for path in paths)
    assert not np.array_equal(first, second)


def test_the_first_session_does_not_depend_on_how_many_follow(
    small: SimulationConfig, days: list[SimulatedSession]
) -> None:
    only = next(simulate_sessions(with_seed(small, small.seed)))
    np.testing.assert_array_equal(only.lfp_uv, days[0].lfp_uv)
    np.testing.assert_array_equal(only.unit_ids, days[0].unit_ids)


def test_a_later_session_does_not_depend_on_how_many_follow(
    small: SimulationConfig, days: list[SimulatedSession]
) -> None:
    *_, second, _ = simulate_sessions(replace(small, sessions=3))
    np.testing.assert_array_equal(second.lfp_uv, days[1].lfp_uv)
    assert (second.dead, second.noisy) == (days[1].dead, days[1].noisy)


def test_variants_are_other_animals_and_their_files_fit_into_one_folder(tmp_path: Path) -> None:
    configs = [replace(SMALL, sessions=1, variant=variant) for variant in VARIANTS]
    first, second = (next(simulate_sessions(config)) for config in configs)
    assert not np.array_equal(first.velocity_cm_s, second.velocity_cm_s)
    assert not np.array_equal(first.lfp_uv, second.lfp_uv)
    names = [next(simulate_to_nwb(config, tmp_path)).name for config in configs]
    assert names == ["sim03_day01.nwb", "pursuit03_day01.nwb"]


def test_the_folder_holds_the_sessions_and_nothing_else(files: list[Path]) -> None:
    assert sorted(files[0].parent.iterdir()) == sorted(files)


def test_simulated_sessions_have_the_promised_shapes_and_units(days: list[SimulatedSession]) -> None:
    for day in days:
        assert day.lfp_uv.shape == (FRAMES, SMALL.channels)
        assert day.lfp_uv.dtype == np.float32
        assert day.position_cm.shape == day.velocity_cm_s.shape == (STEPS, 2)
        assert len(day.spike_times_s) == len(day.unit_ids) == SMALL.units
        assert np.isfinite(day.lfp_uv).all()
        assert 10 < np.median(day.lfp_uv.std(axis=0)) < 1000  # microvolts, not volts
        assert np.abs(day.position_cm).max() < 20


def test_velocity_is_the_derivative_of_position(days: list[SimulatedSession]) -> None:
    for day in days:
        walked = day.position_cm[0] + np.cumsum(day.velocity_cm_s, axis=0) / LATENT_HZ
        np.testing.assert_allclose(walked, day.position_cm, atol=1.0)


def test_spike_times_are_sorted_and_within_the_session(days: list[SimulatedSession]) -> None:
    for times in (times for day in days for times in day.spike_times_s):
        assert (np.diff(times) >= 0).all()
        assert times[0] >= 0
        assert times[-1] < STEPS / LATENT_HZ


def test_only_the_channels_listed_as_dead_are_flat(days: list[SimulatedSession]) -> None:
    for day in days:
        assert np.flatnonzero(np.ptp(day.lfp_uv, axis=0) == 0).tolist() == sorted(day.dead)
        assert day.dead
        assert not set(day.dead) & set(day.noisy)


def test_days_share_the_array_and_record_different_units(days: list[SimulatedSession]) -> None:
    first, second = days
    np.testing.assert_array_equal(first.electrodes_mm, second.electrodes_mm)
    assert first.unit_ids.tolist() != second.unit_ids.tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(4, 100))
def test_electrodes_stand_on_a_utah_grid(seed: int, channels: int) -> None:
    config = SimulationConfig(seed=seed, channels=channels, units=1, population=4)
    place, _ = place_array(config, np.random.default_rng(seed))
    assert place.shape == (channels, 2)
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1) + np.eye(channels)
    assert apart.min() == pytest.approx(0.4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_hz": 400},
        {"rate_hz": 1050},
        {"sessions": 0},
        {"minutes": 0},
        {"minutes": -1},
        {"channels": 3},
        {"units": 0},
        {"units": 501},
        {"days_apart": 0},
        {"days_apart": 366},
        {"aging": -0.1},
        {"aging": 10.1},
        {"aging": float("nan")},
        {"variant": "reach"},
    ],
)
def test_a_config_that_cannot_be_simulated_is_refused(wrong: dict[str, float | str]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)found:.*expected:"):
        SimulationConfig(**wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the file


def session_lfp(path: Path) -> np.ndarray:
    from pynwb import NWBHDF5IO

    with NWBHDF5IO(str(path), "r") as io:
        return np.asarray(io.read().processing["ecephys"]["LFP"]["lfp"].data[:])


def test_pynwb_reads_the_simulated_values_from_the_file(files: list[Path], days: list[SimulatedSession]) -> None:
    from pynwb import NWBHDF5IO

    for path, day in zip(files, days, strict=True):
        with NWBHDF5IO(str(path), "r") as io:
            nwb = io.read()
            series = nwb.processing["ecephys"]["LFP"]["lfp"]
            assert series.unit == "volts"
            assert series.rate == SMALL.rate_hz
            np.testing.assert_allclose(series.data[:] * series.conversion * 1e6, day.lfp_uv, atol=UV_PER_BIT / 2 + 1e-3)
            electrodes = nwb.electrodes.to_dataframe()
            np.testing.assert_allclose(electrodes[["x", "y"]], day.electrodes_mm * 1000)
            assert nwb.units["population_id"][:].tolist() == day.unit_ids.tolist()
            for unit, times in enumerate(day.spike_times_s):
                np.testing.assert_array_equal(nwb.units["spike_times"][unit], times)
            behavior = nwb.processing["behavior"]
            velocity, position = behavior["Velocity"]["cursor_vel"], behavior["Position"]["cursor_pos"]
            assert (velocity.unit, position.unit) == ("cm/s", "meters")
            np.testing.assert_array_equal(velocity.data[:], day.velocity_cm_s)
            np.testing.assert_allclose(position.data[:] * 100, day.position_cm)


@pytest.mark.parametrize("days_apart", [1, 30])
def test_files_start_as_many_days_apart_as_the_array_ages(days_apart: int, tmp_path: Path) -> None:
    from pynwb import NWBHDF5IO

    starts = []
    for path in simulate_to_nwb(replace(SMALL, sessions=3, minutes=0.05, days_apart=days_apart), tmp_path):
        with NWBHDF5IO(str(path), "r") as io:
            starts.append(io.read().session_start_time)
    assert [(start - starts[0]).days for start in starts] == [0, days_apart, 2 * days_apart]


def test_the_files_are_valid_nwb(files: list[Path]) -> None:
    from pynwb import NWBHDF5IO, validate

    with NWBHDF5IO(str(files[0]), "r") as io:
        assert not validate(io=io)


# ---------------------------------------------------------------- output that cannot be written


def test_a_file_in_place_of_the_output_folder_is_reported_and_kept(tmp_path: Path) -> None:
    taken = tmp_path / "out"
    taken.write_text("mine")
    with pytest.raises(OutputError, match="out"):
        next(simulate_to_nwb(SMALL, taken))
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_write_that_fails_leaves_nothing_behind(
    code: int, tmp_path: Path, days: list[SimulatedSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(io: object, nwb: object) -> None:
        raise OSError(code, "the disk said no")

    monkeypatch.setattr("pynwb.NWBHDF5IO.write", fail)
    with pytest.raises(OutputError, match="the disk said no") as caught:
        simulated_nwb.write_session(days[0], SMALL, tmp_path / "day.nwb")
    assert "day.nwb" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_raises_an_error_and_does_not_crash_the_interpreter(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk, on which HDF5 used to crash the interpreter."""
    code = (
        "import resource; from pathlib import Path; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "from edgedistill.cli import main\n"
        f"main(['simulate', '--out', {str(tmp_path)!r}, '--sessions', '1', '--minutes', '0.1', '--channels', '4'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_in_place_of_the_output_file_is_reported_and_kept(
    tmp_path: Path, days: list[SimulatedSession]
) -> None:
    target = tmp_path / "day.nwb"
    (target / "kept").mkdir(parents=True)
    with pytest.raises(OutputError):
        simulated_nwb.write_session(days[0], SMALL, target)
    assert list(tmp_path.iterdir()) == [target]
    assert (target / "kept").is_dir()
