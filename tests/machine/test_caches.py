"""Where libraries keep things on a machine that has no home, or one that cannot be written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from toptune.machine import caches

# A file system in which nobody, not even root, can make folders.
NOWHERE = Path("/proc/self/fdinfo")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows: it has no such folder")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of one's own, and nothing that the environment says."""
    for name in ("MPLCONFIGDIR", "CUPY_CACHE_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        # Set first, so that it is put back after the test whatever the test sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    caches.private_folder.cache_clear()
    yield folder
    caches.private_folder.cache_clear()


def private(temporary: Path) -> Path:
    return temporary / f"toptune-{os.getuid()}"


def test_the_private_folder_is_the_users_alone_and_the_same_next_time(temporary: Path) -> None:
    folder = caches.private_folder()
    assert folder == private(temporary)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    caches.private_folder.cache_clear()
    assert caches.private_folder() == folder


def test_what_others_could_have_written_is_not_used(temporary: Path, tmp_path: Path) -> None:
    private(temporary).mkdir()
    private(temporary).chmod(0o777)
    open_to_all = caches.private_folder()
    caches.private_folder.cache_clear()
    private(temporary).rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    private(temporary).symlink_to(tmp_path / "elsewhere")
    behind_a_link = caches.private_folder()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    for folder in (open_to_all, behind_a_link):
        assert folder is not None
        assert folder != private(temporary)
        assert folder.parent == temporary
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_where_nothing_can_be_written_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(NOWHERE))
    caches.private_folder.cache_clear()
    assert caches.private_folder() is None
    caches.private_folder.cache_clear()


def test_a_folder_that_can_be_written_is_left_as_it_is(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert caches.usable_or_private(tmp_path / "a" / "b", "torch") == tmp_path / "a" / "b"
    assert caches.usable_or_private(NOWHERE / "x", "torch") == private(temporary) / "torch"
    # What torch and the hub make of "~/.cache" where there is no home.
    monkeypatch.chdir(tmp_path)
    unknown = Path("~/.cache/torch")
    assert caches.usable_or_private(unknown, "torch") == private(temporary) / "torch"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tmp"]


@pytest.mark.parametrize(
    ("given", "home", "kept"),
    [
        (None, "home", True),
        (None, NOWHERE, False),
        ("mine", NOWHERE, True),
        (NOWHERE, "home", False),
    ],
)
def test_matplotlib_and_cupy_get_a_folder_only_where_they_have_none(
    given: str | Path | None,
    home: str | Path,
    kept: bool,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(caches, "find_spec", lambda name: name)  # installed
    for variable, give, name in (
        ("MPLCONFIGDIR", caches.give_matplotlib_a_folder, "matplotlib"),
        ("CUPY_CACHE_DIR", caches.give_cupy_a_folder, "cupy"),
    ):
        before = None if given is None else str(tmp_path / given)
        if before is not None:
            monkeypatch.setenv(variable, before)
        give()
        after = os.environ.get(variable)
        assert after == (before if kept else str(private(temporary) / name))


def test_without_a_home_no_folder_called_tilde_appears(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "def lost(cls): raise RuntimeError('Could not determine home directory.')\n"
        "Path.home = classmethod(lost)\n"
        "from toptune.machine import caches, threads\n"
        "caches.is_usable = lambda folder: not str(folder).endswith('__pycache__')\n"
        "@threads.compiled()\n"
        "def plus(a, b): return a + b\n"
        "print(plus(1, 2), plus._cache.cache_path)\n"
    )
    script = tmp_path / "read-only" / "script.py"
    script.parent.mkdir()
    script.write_text(program)
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=work,
        env={**os.environ, "HOME": "~", "TMPDIR": str(tmp_path), "NUMBA_CACHE_DIR": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"3 {tmp_path / f'toptune-{os.getuid()}' / 'numba'}")
    assert list(work.iterdir()) == []
