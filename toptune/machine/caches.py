"""Folders for what libraries keep from one run to the next, where their usual ones cannot be used.

Containers, clusters and shared installations often have no home, or one that nobody may write to.
What is kept then lies in a folder of this user alone among the system's temporary ones.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def is_usable(folder: Path) -> bool:
    """Tell whether files can be created in a folder, or the folder where it is not there yet."""
    if folder.parts[:1] == ("~",):  # what is not a home would become a folder of that name
        return False
    # `Path.exists` is an error where a folder above may not be looked into.
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return True
    except OSError:
        return False


def home() -> Path | None:
    """Return the user's home; None where nothing says where it is."""
    try:
        found = Path.home()
    except RuntimeError:
        return None
    return found if found.is_absolute() else None


@cache
def private_folder() -> Path | None:
    """Return a folder that only this user can read and write; None where nothing can be written.

    The same one is returned every time, ``toptune-UID`` among the temporary files, unless someone
    else made that: what is kept there is machine code, too, which must be one's own. Then it is a
    new one, removed when the process ends.
    """
    user = os.getuid() if hasattr(os, "getuid") else "cache"
    try:
        folder = Path(tempfile.gettempdir()) / f"toptune-{user}"
        if _is_private(folder) and is_usable(folder):
            return folder
        made = Path(tempfile.mkdtemp(prefix="toptune-"))
    except OSError:
        return None
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _is_private(folder: Path) -> bool:
    """Make a folder; tell whether it, or the one that was there, is this user's alone."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError:
        return False
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return False
    # Windows has no such bits, and its temporary files are the user's own.
    return not hasattr(os, "getuid") or (
        found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
    )


def usable_or_private(folder: Path, name: str) -> Path:
    """Return a folder that can be written; else one called `name` in the private folder.

    Where that cannot be written either, the folder is returned as it is.
    """
    if is_usable(folder):
        return folder
    private = private_folder()
    return folder if private is None else private / name


def cache_in_private_folder() -> bool:
    """Let Numba keep the machine code of what is decorated from now on in the private folder."""
    import numba

    private = private_folder()
    if private is None:
        return False
    # Read whenever a function is decorated.
    vars(numba.config)["CACHE_DIR"] = str(private / "numba")
    return True


def give_matplotlib_a_folder() -> None:
    """Set ``MPLCONFIGDIR`` where Matplotlib could not write its settings and list of fonts.

    It would make a folder for each process, search all fonts in each, and warn of it each time.
    """
    given = os.environ.get("MPLCONFIGDIR")
    wanted = [Path(given)] if given else _matplotlib_folders()
    if wanted and all(is_usable(folder) for folder in wanted):
        return
    private = private_folder()
    if private is not None:
        os.environ["MPLCONFIGDIR"] = str(private / "matplotlib")


def _matplotlib_folders() -> list[Path]:
    """List the folders it would take, as `matplotlib.get_configdir` and `get_cachedir` say."""
    own = home()
    if not sys.platform.startswith(("linux", "freebsd")):
        return [] if own is None else [own / ".matplotlib"]
    bases = [
        os.environ.get(variable) or (own and own / usual)
        for variable, usual in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
    ]
    return [Path(base) / "matplotlib" for base in bases if base] if all(bases) else []


def give_cupy_a_folder() -> None:
    """Set ``CUPY_CACHE_DIR`` where CuPy, if it is installed, could not write compiled kernels."""
    if "cupy" in sys.modules or find_spec("cupy") is None:
        return
    given, own = os.environ.get("CUPY_CACHE_DIR"), home()
    wanted = Path(given) if given else own and own / ".cupy" / "kernel_cache"
    if wanted and is_usable(wanted):
        return
    private = private_folder()
    if private is not None:
        os.environ["CUPY_CACHE_DIR"] = str(private / "cupy")


def give_pynwb_a_folder() -> None:
    """Let pynwb be imported where it could not make its folder of caches.

    What it keeps there is a pickle, which is never read: to make it anew takes a third of a second.
    """
    os.environ["PYNWB_NO_CACHE_DIR"] = "1"
    given, own = os.environ.get("XDG_CACHE_HOME"), home()
    wanted = Path(given) if given else own and own / ".cache"
    if wanted and is_usable(wanted):
        return
    private = private_folder()
    if private is not None:
        os.environ["XDG_CACHE_HOME"] = str(private)
