"""A model comes back from its folder as it was; what is not one is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgedistill.config import StudentSize, TeacherSize
from edgedistill.errors import EdgeDistillError, OutputError
from edgedistill.models.files import (
    hash_checkpoint,
    load_student,
    load_teacher,
    replace_model,
    save_student,
    save_teacher,
)
from edgedistill.models.student import Student
from edgedistill.models.teacher import PatchAutoencoder

STUDENT = StudentSize(8, 1, 2, 5, 8, 2, 1, 1)
TEACHER = TeacherSize(8, 1, 2, 8, 4, 2, 1, 8, 0.5)


def student() -> Student:
    torch.manual_seed(0)
    return Student(STUDENT, {"a/1": 3, "b.2": 3, "c": 4}, {"a/1": "x", "b.2": "x", "c": "y"}, 6, 2)


def test_a_student_comes_back_with_all_its_sessions(tmp_path: Path) -> None:
    saved = student()
    save_student(saved, tmp_path / "s", {"row": "distilled"})
    loaded, facts = load_student(tmp_path / "s")
    assert facts["row"] == "distilled"
    assert not loaded.training
    assert loaded.tokenizer.arrays == saved.tokenizer.arrays
    assert list(loaded.tokenizer.channels) == list(saved.tokenizer.channels)
    bins = torch.randn(1, 20, 3)
    assert torch.equal(loaded("b.2", bins), saved("b.2", bins))


@pytest.mark.parametrize(("counts", "teacher_d"), [(True, 0), (False, 5)])
def test_a_saved_teacher_is_loaded_unchanged(tmp_path: Path, counts: bool, teacher_d: int) -> None:
    torch.manual_seed(0)
    saved = PatchAutoencoder(TEACHER, {"s": 7}, counts, teacher_d)
    save_teacher(saved, tmp_path, {})
    loaded, _ = load_teacher(tmp_path)
    bins = torch.randn(1, 9, 7)
    assert torch.equal(loaded.latents("s", bins), saved.latents("s", bins))
    assert (loaded.to_teacher is None) == (teacher_d == 0)


def test_saving_again_replaces_the_model_and_leaves_no_other_file(tmp_path: Path) -> None:
    save_student(student(), tmp_path, {"n": 1})
    save_student(student(), tmp_path, {"n": 2})
    assert load_student(tmp_path)[1]["n"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_model_is_replaced_as_a_whole_and_nothing_else_ever_is(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for n in (1, 2):
        with replace_model(folder) as hidden:
            save_student(student(), hidden, {"n": n})
            assert folder.exists() == (n == 2)
    assert load_student(folder)[1]["n"] == 2

    def half() -> None:
        with replace_model(folder) as hidden:
            save_student(student(), hidden, {"n": 3})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert load_student(folder)[1]["n"] == 2
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"'notes\.txt'"), replace_model(folder):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert (folder / "notes.txt").read_text() == "mine"


def test_loading_a_teacher_as_a_student_is_refused(tmp_path: Path) -> None:
    save_student(student(), tmp_path, {})
    with pytest.raises(EdgeDistillError, match="holds no teacher"):
        load_teacher(tmp_path)


def test_an_empty_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(EdgeDistillError, match="edgedistill distill"):
        load_student(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "foreign", "flipped header", "missing"])
def test_damaged_weights_are_named(tmp_path: Path, damage: str) -> None:
    save_student(student(), tmp_path, {})
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    if damage == "foreign":
        save_teacher(PatchAutoencoder(TEACHER, {"s": 7}), tmp_path / "t", {})
        data = (tmp_path / "t" / "model.safetensors").read_bytes()
    path.write_bytes({"cut": data[:-40], "flipped header": b"\xff" * 8 + data[8:]}.get(damage, data))
    if damage == "missing":
        path.unlink()
    with pytest.raises(EdgeDistillError, match=r"model\.safetensors"):
        load_student(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"size": None}, {"size": {"d": 8}}, {"channels": None}, {"arrays": {}}, {"outputs": "two"}],
    ids=str,
)
def test_damaged_facts_are_named(tmp_path: Path, change: dict[str, object]) -> None:
    save_student(student(), tmp_path, {})
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EdgeDistillError, match=r"model\.(json|safetensors)"):
        load_student(tmp_path)


def test_a_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="the model could not be written"):
        save_student(student(), tmp_path / "out", {})
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_of_the_version_before_has_todays_names(tmp_path: Path) -> None:
    """Before the release of 0.1, facts and tensors were named after `behaviour`."""
    saved = student()
    save_student(saved, tmp_path, {"behaviour": [["behaviour_x", "hand_behaviour"], ["mm", "mm"]]})
    weights = load_file(tmp_path / "model.safetensors")
    old = {name.replace("behavior", "behaviour"): tensor for name, tensor in weights.items()}
    assert {"to_behaviour.weight", "to_behaviour.bias"} <= old.keys()
    save_file(old, tmp_path / "model.safetensors")
    loaded, facts = load_student(tmp_path)
    assert facts["behavior"] == [["behavior_x", "hand_behaviour"], ["mm", "mm"]]
    assert torch.equal(loaded.to_behavior.weight, saved.to_behavior.weight)


def test_the_one_map_to_the_teacher_of_older_files_is_that_of_each_session(tmp_path: Path) -> None:
    save_student(student(), tmp_path, {})
    weights = {n: t for n, t in load_file(tmp_path / "model.safetensors").items() if "to_teacher" not in n}
    single = {"to_teacher.weight": torch.randn(6, 8), "to_teacher.bias": torch.randn(6)}
    save_file(weights | single, tmp_path / "model.safetensors")
    loaded, _ = load_student(tmp_path)
    latents = torch.randn(1, 5, 8)
    expected = latents @ single["to_teacher.weight"].T + single["to_teacher.bias"]
    for session in ("a/1", "b.2", "c"):
        torch.testing.assert_close(loaded.to_teacher(session, latents), expected)


def test_a_session_id_may_be_spelled_like_a_retired_name(tmp_path: Path) -> None:
    """Names of tensors hold the ids of sessions, which must not be taken for a name of ours."""
    saved = Student(STUDENT, {"behaviour-1": 3, "to_behaviour.": 3}, {"behaviour-1": "x", "to_behaviour.": "x"}, 6, 2)
    save_student(saved, tmp_path, {})
    loaded, _ = load_student(tmp_path)
    bins = torch.randn(1, 20, 3)
    assert torch.equal(loaded("behaviour-1", bins), saved("behaviour-1", bins))


def test_the_hash_of_a_checkpoint_stays() -> None:
    """Ranges name their student by this hash. If it changed, all ranges would have to be made again."""
    model = student()
    with torch.no_grad():
        for number, parameter in enumerate(model.state_dict().values()):
            parameter.fill_(number / 8)
    assert hash_checkpoint(model) == "7a26f6a2774d59fd377e3b8d37ecce9bdae93ef982bfcaec4d5a9e5acf55361c"


# ---------------------------------------------------------------- a folder from a stranger


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"layers": 10**9}}, {"size": {"taps": 10**12}}, {"size": {"d": 10**5, "ff": 10**6}},
        {"size": {"lags": 10**15}}, {"channels": {"a/1": 10**12}}, {"teacher_d": 10**7}, {"outputs": 10**11},
        {"channels": {"a/1": -3}}, {"channels": {"a/1": 0.5}}, {"channels": {"a/1": 0}}, {"teacher_d": -1},
    ],
    ids=str,
)  # fmt: skip
def test_facts_that_ask_for_more_than_the_stored_weights_take_no_memory(
    tmp_path: Path, change: dict[str, object]
) -> None:
    save_student(student(), tmp_path, {})
    path = tmp_path / "model.json"
    facts = json.loads(path.read_text())
    for name, value in change.items():
        facts[name] = {**facts[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(facts))
    with pytest.raises(EdgeDistillError, match=r"model\.json does not describe a model"):
        load_student(tmp_path)


def test_making_a_model_without_memory_draws_no_numbers(tmp_path: Path) -> None:
    """What is trained after a model was loaded has the bits of a training in which it was made once."""
    save_student(student(), tmp_path, {})
    torch.manual_seed(3)
    load_student(tmp_path)
    after = torch.rand(4)
    torch.manual_seed(3)
    Student(STUDENT, {"a/1": 3, "b.2": 3, "c": 4}, {"a/1": "x", "b.2": "x", "c": "y"}, 6, 2)
    assert torch.equal(after, torch.rand(4))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    save_student(student(), tmp_path, {})
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(EdgeDistillError, match="not a plain file"):
        load_student(tmp_path)


def test_facts_that_lie_too_deep_in_each_other_are_refused(tmp_path: Path) -> None:
    save_student(student(), tmp_path, {})
    (tmp_path / "model.json").write_text("[" * 99_999)
    with pytest.raises(EdgeDistillError, match="too deep"):
        load_student(tmp_path)
