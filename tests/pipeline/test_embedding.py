"""Latents that are written to a file are those that trainings and streams see."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgedistill.config import load_preset
from edgedistill.data.candidates import NO_NAMES
from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.models.files import load_student, load_teacher
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.embedding import EmbedOptions, embed
from edgedistill.pipeline.inputs import read_sessions
from edgedistill.training.batches import compute_gap, training_session_from_bins
from edgedistill.training.evaluate import stream_latents
from edgedistill.training.pretrain import compute_teacher_features

from .tiny_builds import DAYS


def test_latents_of_teacher_and_student(pretrained: Path, tmp_path: Path) -> None:
    day = pretrained / "data" / "sim00_day01.nwb"
    bins = read_sessions(Cache(tmp_path / "work"), [day], NO_NAMES, 60, need=("lfp", "units"), also=("behavior",))
    session = training_session_from_bins(bins[0], compute_gap(bins, load_preset(pretrained / "tiny.toml").student))
    student, teacher = load_student(pretrained / "student")[0], load_teacher(pretrained / "teacher")[0]
    with torch.no_grad():
        expected = {
            "teacher": compute_teacher_features(teacher, session.id, session.inputs("spikes"), 128).numpy(),
            "student": stream_latents(student, session.id, session.inputs("lfp")),
        }
    for model, latents in expected.items():
        out = tmp_path / f"{model}.npz"
        told = embed(EmbedOptions(pretrained / model, (day,), out))
        assert (told.model, told.d, told.bins) == (model, 8, {session.id: len(latents)})
        with np.load(out) as found:
            np.testing.assert_allclose(found[f"{session.id}/latents"], latents, rtol=1e-4, atol=1e-5)
            times = found[f"{session.id}/time_s"]
            assert times[0] == pytest.approx(bins[0].start_s + 0.01)
            np.testing.assert_allclose(np.diff(times), 0.01, atol=1e-9)
            assert found[f"{session.id}/valid"].tolist() == session.valid.tolist()


def test_a_student_embeds_a_new_day_of_its_array_and_a_teacher_does_not(pretrained: Path, tmp_path: Path) -> None:
    new = (pretrained / "data" / "sim00_day03.nwb",)
    assert list(embed(EmbedOptions(pretrained / "student", new, tmp_path / "s.npz")).bins) == [DAYS[2]]
    with pytest.raises(EdgeDistillError, match="was not trained on every session"):
        embed(EmbedOptions(pretrained / "teacher", new, tmp_path / "t.npz"))
    with pytest.raises(EdgeDistillError, match="holds no teacher"):
        embed(EmbedOptions(tmp_path, new, tmp_path / "t.npz"))
    assert not (tmp_path / "t.npz").exists()


def test_latents_never_replace_an_input_or_a_folder(pretrained: Path, tmp_path: Path) -> None:
    day = tmp_path / "day.nwb"
    shutil.copy(pretrained / "data" / "sim00_day01.nwb", day)
    for out in (day, pretrained / "student" / "model.json"):
        before = out.read_bytes()
        with pytest.raises(OutputError, match="an input of the command"):
            embed(EmbedOptions(pretrained / "student", (tmp_path,), out))
        assert out.read_bytes() == before
    with pytest.raises(OutputError, match="there is a folder here"):
        embed(EmbedOptions(pretrained / "student", (day,), tmp_path))
