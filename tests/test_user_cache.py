"""Compiled engines are kept where nobody but this user can write, or else in a temporary folder of the process."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill import user_cache
from edgedistill.errors import OutputError
from edgedistill.user_cache import find_cache, make_private, use_cache, use_temporary_cache, write_private_copy


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a home directory without a cache, and makes all folders on the way to it safe."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    user_cache._temporary_folder.cache_clear()
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_usual_place_is_made_for_this_user_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.umask(0)
    try:
        assert find_cache() == home / ".cache/edgedistill"
    finally:
        os.umask(old)
    assert mode(home / ".cache/edgedistill") == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert find_cache() == home / "xdg/edgedistill"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert find_cache() == home / ".cache/edgedistill"


def open_to_all(cache: Path) -> None:
    cache.chmod(0o777)


def open_to_the_group(cache: Path) -> None:
    cache.chmod(0o770)


def a_link(cache: Path) -> None:
    cache.rename(cache.with_name("real"))
    cache.symlink_to("real")


def a_file(cache: Path) -> None:
    cache.rmdir()
    cache.write_text("")


def below_a_folder_of_all(cache: Path) -> None:
    cache.parent.chmod(0o777)


@pytest.mark.parametrize("harm", [open_to_all, open_to_the_group, a_link, a_file, below_a_folder_of_all])
def test_a_cache_that_others_can_change_is_not_used_and_a_line_says_so(
    home: Path, harm: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    cache = find_cache()
    harm(cache)
    instead = find_cache()
    assert cache not in (instead, *instead.parents)
    assert mode(instead) == 0o700
    (line,) = caplog.messages
    assert "temporary folder" in line
    assert str(home) in line
    assert find_cache() == instead
    assert len(caplog.messages) == 1
    with pytest.raises(OutputError, match="cannot be kept here"), use_cache(cache):
        pytest.fail("it was used")


@pytest.mark.parametrize(("mode_", "helps"), [(0o777, True), (0o770, True), (0o1777, False)])
def test_rights_are_taken_only_from_a_folder_that_is_not_shared_on_purpose(home: Path, mode_: int, helps: bool) -> None:
    (home / "mine").mkdir()
    (home / "mine").chmod(mode_)
    with pytest.raises(OutputError) as caught, use_cache(home / "mine"):
        pytest.fail("it was used")
    another = "name another folder with --cache"
    assert caught.value.next_step == (f"chmod go-w {home}/mine, or {another}" if helps else another)


def test_no_rights_are_taken_from_a_folder_of_another_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "theirs").mkdir()
    (home / "theirs").chmod(0o777)
    monkeypatch.setattr("edgedistill.user_cache.os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(OutputError) as caught, use_cache(home / "theirs"):
        pytest.fail("it was used")
    assert caught.value.next_step == "name another folder with --cache"


def test_a_sticky_folder_above_and_a_link_of_ones_own_are_fine(home: Path) -> None:
    (home / "shared").mkdir()
    (home / "shared").chmod(0o1777)
    (home / ".cache").symlink_to(home / "shared/mine")
    (home / "shared/mine").mkdir(0o700)
    assert find_cache() == home / ".cache/edgedistill"
    assert (home / "shared/mine/edgedistill").is_dir()
    (home / "shared").chmod(0o777)
    assert make_private(home / ".cache/edgedistill") == f"{home}/shared: other users can write to it"


def test_folders_above_the_home_directory_do_not_count(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "lab/me").mkdir(parents=True)
    (home / "lab").chmod(0o777)
    assert "other users can write" in str(make_private(home / "lab/me/cache"))
    mine = pwd.struct_passwd(("me", "x", os.geteuid(), os.getegid(), "", str(home / "lab/me"), "/bin/sh"))
    monkeypatch.setattr("edgedistill.user_cache.pwd.getpwuid", lambda number: mine)
    assert make_private(home / "lab/me/cache") is None
    (home / "lab/me").chmod(0o777)
    assert "other users can write" in str(make_private(home / "lab/me/cache"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["edgedistill", "", "link"])
def test_what_belongs_to_another_user_is_not_used(home: Path, which: str) -> None:
    find_cache()
    try:
        os.chown(home / ".cache", 12345, 12345)
        os.chown(home / ".cache", os.geteuid(), os.getegid())
    except OSError as error:
        pytest.skip(f"this container does not let root give files away: {error}")
    if which == "link":  # another user's link to this user's folder, which could lead elsewhere tomorrow
        (home / ".cache").rename(home / "elsewhere")
        (home / ".cache").symlink_to("elsewhere")
        os.lchown(home / ".cache", 12345, 12345)
    else:
        os.chown(home / ".cache" / which, 12345, 12345)
    assert "belongs to the user with number 12345" in str(make_private(home / ".cache/edgedistill"))


@pytest.mark.parametrize("named", ["/nonexistent", "", "relative", "/"])
def test_without_a_home_directory_a_private_folder_serves_and_is_removed_at_the_end(tmp_path: Path, named: str) -> None:
    program = (
        "import logging; logging.basicConfig(format='%(message)s');"
        "from edgedistill.user_cache import find_cache as find; import os; print(find(), oct(os.stat(find()).st_mode))"
    )
    env = {**os.environ, "HOME": named, "TMPDIR": str(tmp_path)}
    env.pop("XDG_CACHE_HOME", None)
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    folder, rights = done.stdout.split()
    assert tmp_path in Path(folder).parents
    assert rights == "0o40700"
    assert done.stderr.startswith(
        "compiled engines are kept in a temporary folder and lost at the end, because there is"
    )
    assert "--cache FOLDER" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_that_others_can_replace_is_no_place_either(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_cache().chmod(0o777)
    (home / "tmp").mkdir()
    (home / "tmp").chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(home / "tmp"))
    with pytest.raises(OutputError, match="no place for a compiled engine"):
        find_cache()


def test_a_folder_may_be_named_and_nested_uses_end_in_order(home: Path) -> None:
    usual = find_cache()
    with use_cache(home / "mine"), use_temporary_cache():
        assert home / "mine" in find_cache().parents
    assert not list((home / "mine").iterdir())
    with use_cache(None):
        assert find_cache() == usual


def test_a_copy_for_a_library_is_private_and_removed(home: Path) -> None:
    with write_private_copy({"student.plan": b"plan"}) as folder:
        assert (folder / "student.plan").read_bytes() == b"plan"
        assert mode(folder) == 0o700
    assert not folder.exists()


def test_files_are_checked_as_they_are_opened(home: Path) -> None:
    folder = find_cache() / "key"
    folder.mkdir(0o700)
    (folder / "file").write_bytes(b"content")
    assert user_cache.read_private(folder, "file") == b"content"
    (folder / "file").chmod(0o662)
    with pytest.raises(PermissionError, match="other users can write"):
        user_cache.read_private(folder, "file")
    user_cache.make_tree_private(folder)
    assert user_cache.read_private(folder, "file") == b"content"


def test_a_temporary_cache_of_a_process_that_was_killed_is_removed_by_the_next(home: Path) -> None:
    program = (
        "import sys; from edgedistill.user_cache import find_cache, use_temporary_cache\n"
        "with use_temporary_cache(): print(find_cache(), flush=True); sys.stdin.read()"
    )
    folders, processes = [], []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().strip()))
        processes.append(process)
    processes[0].kill()
    processes[0].communicate()
    assert folders[0].is_dir()
    with use_temporary_cache():
        assert not folders[0].exists()
        assert folders[1].is_dir()
    processes[1].communicate(input="")
    assert not list(find_cache().iterdir())
