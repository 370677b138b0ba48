"""Changes of a bundle, for its fuzzing: in manifest values, in file contents and in the layout of the archive.

A whole bundle and a random generator go in, and the path of a changed bundle comes out, whose hashes are right again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST, BLANK = "manifest.json", "0" * 64
EVIL = "\x1b[31m\x9b\u202e=cmd|' /C calc'!A0\r\n"
TEXTS = (
    "",
    EVIL,
    "x" * 100_000,
    "../../evil",
    "/etc/passwd",
    "1e999999999",
    "1/0",
    "9" * 5000,
    "nan",
    "\x00",
    "\ud800",
    "host",
)
NUMBERS = (0, -1, 1, 2, 7, 1000, 2**31, 2**63, 2**64, 10**30, 10**400, 1e308, -1e308, 5e-324, 0.5)
SPECIAL = (float("nan"), float("inf"), -float("inf"), None, True, False)


@dataclass
class Case:
    """One case: where it is made, and what was changed."""

    original: Path
    place: Path
    rng: np.random.Generator
    kind: str = ""
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kind = self.pick(list(CHANGES))
        self.files = {
            path.relative_to(self.original).as_posix(): path.read_bytes()
            for path in sorted(self.original.rglob("*"))
            if path.is_file() and "build" not in path.relative_to(self.original).parts
        }
        self.manifest: dict[str, Any] = json.loads(self.files.pop(MANIFEST))

    def pick(self, choices: Any) -> Any:
        """Returns one of them."""
        return choices[int(self.rng.integers(len(choices)))]

    def odd_value(self) -> Any:
        """Returns a value that no build writes."""
        deep: Any = []
        for _ in range(int(self.rng.integers(1, 400))):
            deep = [deep]
        return self.pick(
            (self.pick(TEXTS), self.pick(NUMBERS), self.pick(NUMBERS), self.pick(SPECIAL), deep, {}, [], [1] * 3)
        )

    def write(self, name: str = "changed.edge") -> Path:
        """Writes the bundle as a folder, with the right hashes."""
        folder = self.place / name
        for file, data in self.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        (folder / MANIFEST).write_bytes(self.sign())
        return folder

    def sign(self) -> bytes:
        """Returns the manifest with the right hashes, as anybody can make it."""
        files = self.manifest.get("files")
        if isinstance(files, dict):
            files |= {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items() if name in files}
        if isinstance(self.manifest.get("sha256"), str):
            self.manifest["sha256"] = BLANK
        raw = json.dumps(self.manifest, indent=1).encode()
        return raw.replace(BLANK.encode(), hashlib.sha256(raw).hexdigest().encode(), 1)


# ---------------------------------------------------------------- values


def change_values(case: Case, tree: Any) -> None:
    """Changes one to three values anywhere in a tree of JSON."""
    for _ in range(int(case.rng.integers(1, 4))):
        parent, key = _find_place(case, tree)
        if parent is None:
            return
        how = case.pick(("odd", "odd", "odd", "gone", "many", "near"))
        case.told.append(f"{how} {key}")
        if how == "gone":
            del parent[key]
        elif how == "many" and isinstance(parent[key], list):
            parent[key] = parent[key] * 500
        elif how == "near" and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
            parent[key] = case.pick((-parent[key], parent[key] + 1, parent[key] * 1000, parent[key] // 3))
        else:
            parent[key] = case.odd_value()


def _find_place(case: Case, tree: Any) -> tuple[Any, Any]:
    parent, key = None, None
    while isinstance(tree, (dict, list)) and tree:
        parent, key = tree, case.pick(list(tree)) if isinstance(tree, dict) else int(case.rng.integers(len(tree)))
        tree = parent[key]
        if case.rng.random() < 0.15:
            break
    return parent, key


def manifest_values(case: Case) -> Path:
    """Changes values of the manifest, mostly those that fix the decoder."""
    part = case.pick(("frontend", "model", "normalization", "outputs", None, None))
    change_values(case, case.manifest if part is None else {part: case.manifest.get(part), "_": case.manifest}[part])
    return case.write()


def json_values(case: Case) -> Path:
    """Changes values of another JSON file, or makes it deep or large."""
    names = [name for name in case.files if name.endswith(".json")]
    if not names:
        return manifest_values(case)
    name = case.pick(names)
    case.told.append(name)
    if case.rng.random() < 0.3:
        case.files[name] = case.pick((b"[" * 100_000, b"{}" * 9, b"", b"9" * 6000, b"[" + b"[]," * (6 << 20) + b"0]"))
    else:
        tree = json.loads(case.files[name])
        change_values(case, tree)
        case.files[name] = json.dumps(tree).encode()
    return case.write()


# ---------------------------------------------------------------- contents


def bytes_of_a_file(case: Case) -> Path:
    """Flips, cuts or replaces bytes of any file."""
    name = case.pick(list(case.files))
    data = bytearray(case.files[name])
    how = case.pick(("flip", "flip", "head", "cut", "zero", "random", "empty", "double"))
    case.told.append(f"{how} {name}")
    if how in ("flip", "head") and data:
        for at in case.rng.integers(min(len(data), 512) if how == "head" else len(data), size=8):
            data[at] ^= 1 << int(case.rng.integers(8))
    elif how == "cut":
        del data[int(case.rng.integers(len(data) + 1)) :]
    elif how == "zero":
        data[:] = bytes(len(data))
    elif how == "random":
        data[:] = case.rng.bytes(len(data))
    elif how == "double":
        data += bytes(data)
    else:
        data.clear()
    case.files[name] = bytes(data)
    return case.write()


def tensors_of_a_file(case: Case) -> Path:
    """Changes what the header of a safetensors file declares, or the numbers in it."""
    name = case.pick([name for name in case.files if name.endswith(".safetensors")])
    data = case.files[name]
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    if case.rng.random() < 0.5:
        change_values(case, header)
    else:
        values = np.frombuffer(rest[: len(rest) // 4 * 4], "<u4").copy()
        odd = (0x7FC00000, 0x7F800000, 0xFF800000, 1, 0x7F7FFFFF, 0x80808080, 0)
        values[case.rng.integers(len(values), size=3)] = case.pick(odd)
        rest[: len(values) * 4] = values.tobytes()
    text = json.dumps(header).encode()
    declared = case.pick((len(text), len(text), len(text), 2**40, 2**63, 0))
    case.files[name] = declared.to_bytes(8, "little") + text + bytes(rest)
    case.told.append(name)
    return case.write()


def arrays_of_a_file(case: Case) -> Path:
    """Replaces arrays of an .npz by others, or by headers that claim more than there is."""
    names = [name for name in case.files if name.endswith(".npz")]
    if not names:
        return tensors_of_a_file(case)
    name = case.pick(names)
    with zipfile.ZipFile(io.BytesIO(case.files[name])) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    target = case.pick(list(members))
    shape = case.pick(("(1099511627776,)", "(2, 3)", "(0,)", "()", "(-1,)", "(4294967296, 4294967296)", "(3,)"))
    kind = case.pick(("<f4", "|O", "<f8", "<U9999999", "|b1", "<c16", "<M8[s]", "[('a', '<f4')]"))
    text = f"{{'descr': {kind if kind.startswith('[') else repr(kind)}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    declared = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)
    members[target] = case.pick((declared, declared, b"", members[target][:50], bytes(300 << 20)))
    packed = (
        case.pick((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        if len(members[target]) < 1 << 20
        else zipfile.ZIP_DEFLATED
    )
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packed, compresslevel=1) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    case.files[name] = made.getvalue()
    case.told.append(f"{name} {target} {kind} {shape}")
    return case.write()


# ---------------------------------------------------------------- layout


def things_in_a_folder(case: Case) -> Path:
    """Puts links, pipes, folders and odd names where files are."""
    folder = case.write()
    secret = case.place / "outside.bin"
    secret.write_bytes(b"outside")
    name = case.pick([*case.files, MANIFEST])
    path, how = folder / name, case.pick(("link", "loop", "pipe", "folder", "gone", "null", "zero", "top"))
    case.told.append(f"{how} {name}")
    if how == "top":
        path = folder.with_name("link.edge")
        path.symlink_to(folder)
        return path
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how != "gone":
        path.symlink_to({"link": secret, "loop": path, "null": "/dev/null", "zero": "/dev/zero"}[how])
    return folder


def names_in_the_manifest(case: Case) -> Path:
    """Lists files of odd names, or very many."""
    names = case.pick(
        (["../outside.bin"], ["/etc/passwd"], [EVIL], ["a" * 300], ["build/host/x.so"], ["."], ["a\x00b"])
    )
    names = case.pick((names, [f"f{i}" for i in range(20_000)]))
    case.manifest["files"] |= dict.fromkeys(names, BLANK[:-1] + "1")
    case.told.append(repr(names[0][:40]))
    return case.write()


def entries_of_a_zip(case: Case) -> Path:
    """Packs the bundle as a zip with odd entries, or one that claims odd sizes."""
    path, raw = case.place / "changed.edge.zip", case.sign()
    prefix = case.pick(("", "changed.edge/", "a/b/", "../", "/"))
    how = case.pick(("plain", "twice", "bomb", "many", "cut", "flip", "evil", "size"))
    case.told.append(f"{how} {prefix}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(prefix + MANIFEST, raw)
        for name, data in case.files.items():
            archive.writestr(prefix + name, bytes(200 << 20) if how == "bomb" and name == min(case.files) else data)
        if how == "twice":
            archive.writestr(prefix + MANIFEST + " ", raw)
        for i in range(30_000 if how == "many" else 0):
            archive.writestr(f"{i}/{MANIFEST if i % 2 else 'x'}", b"")
        if how == "evil":
            archive.writestr("../" + EVIL.replace("\x00", ""), b"evil")
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[int(case.rng.integers(len(data))) :]
    elif how == "flip":
        for at in len(data) - 1 - case.rng.integers(min(len(data), 4000), size=6):
            data[at] ^= 1 << int(case.rng.integers(8))
    elif how == "size":
        at = data.rindex(b"PK\x05\x06") + int(case.pick((8, 10, 12, 16)))
        data[at : at + 4] = case.rng.bytes(4)
    path.write_bytes(data)
    return path


CHANGES: dict[str, Callable[[Case], Path]] = {
    change.__name__: change
    for change in (
        manifest_values, json_values, bytes_of_a_file, tensors_of_a_file, arrays_of_a_file, things_in_a_folder,
        names_in_the_manifest, entries_of_a_zip,
    )
}  # fmt: skip
