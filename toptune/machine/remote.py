"""A URL that can be used as a path: ``s3://bucket/study/a.h5``.

What reads a path asks the server, or is given a local copy; what writes one writes whole objects.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import stat
from collections.abc import Generator
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PosixPath, PurePath
from typing import IO, Any, NoReturn
from urllib.parse import unquote

from toptune.errors import InputError
from toptune.machine.objects import Found, Objects, objects_at, refuse_secrets

# Two letters and more, so that no drive of Windows is one. pathlib takes one of the slashes away.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):(//?)(.*)", re.DOTALL)


def as_path(given: str | os.PathLike[str]) -> Path:
    """Make a path of what a user gives: of a URL one that asks its server.

    Raises
    ------
    InputError
        A URL holds a password or a query, or names a file of another machine.
    """
    if isinstance(given, RemotePath):
        return given
    text = str(given) if isinstance(given, PurePath) else os.fspath(given)
    match = _URL.fullmatch(text) if isinstance(text, str) else None
    if match is None or not _is_url(match):
        return Path(given)
    scheme, rest = match[1].lower(), match[3]
    if scheme == "file":
        return _local(match[2], rest, text)
    refuse_secrets(text)
    if rest.startswith("/") or not rest:
        raise InputError(f"{text}: a URL names a bucket or a host, as {scheme}://bucket/key does")
    if os.name == "nt":
        raise InputError(f"{text}: URLs are read on Linux and macOS only")
    return RemotePath(f"{scheme}://{rest}")


def _is_url(match: re.Match[str]) -> bool:
    # `x:/y` is a local path where there is a folder called `x:`.
    return match[2] == "//" or not os.path.lexists(f"{match[1]}:")


def _local(slashes: str, rest: str, text: str) -> Path:
    """Make a path of ``file:///x``, which is ``file:/x`` when pathlib has had it."""
    if slashes == "/":
        return Path("/" + unquote(rest))
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise InputError(f"{text}: names a file of another machine: copy it here")
    return Path("/" + unquote(path))


class RemotePath(PosixPath):
    """A URL as a path: its parts are the scheme, the bucket and the parts of the key.

    As a string it is the URL. To a library that wants a file (`os.fspath`), it is a local copy.
    """

    def __str__(self) -> str:
        scheme, *rest = self.parts
        return f"{scheme}//{'/'.join(rest)}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemotePath):
            return False if isinstance(other, PurePath) else NotImplemented
        return self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (str(self),)

    def __bytes__(self) -> bytes:
        return os.fsencode(str(self))

    def as_posix(self) -> str:
        return str(self)

    def as_uri(self) -> str:
        return str(self)

    def is_absolute(self) -> bool:
        return True

    def __truediv__(self, key: Any) -> Any:
        return self.joinpath(key)

    def __rtruediv__(self, key: Any) -> Any:
        return self

    def joinpath(self, *others: Any) -> Any:
        """Add parts; one that is a URL or an absolute path replaces what is before it."""
        found: Path = self
        for other in others:
            one = as_path(other)
            if isinstance(one, RemotePath) or one.is_absolute():
                found = one
            elif isinstance(found, RemotePath):
                found = RemotePath(*found.parts, *one.parts)
            else:
                found = found / one
        return found

    @property
    def parent(self) -> Any:
        return self if len(self.parts) <= 2 else RemotePath(*self.parts[:-1])

    @property
    def parents(self) -> Any:
        return tuple(RemotePath(*self.parts[:n]) for n in range(len(self.parts) - 1, 1, -1))

    def relative_to(self, *other: Any, **_: Any) -> Any:
        """Give the rest of the URL below another, as a plain path."""
        above = as_path(other[0]).joinpath(*other[1:])
        n = len(above.parts)
        if not isinstance(above, RemotePath) or self.parts[:n] != above.parts:
            raise ValueError(f"{self} is not below {above}")
        return Path(*self.parts[n:])

    def resolve(self, strict: bool = False) -> Any:  # noqa: ARG002  # pathlib's
        """Give the same URL, without ``..``."""
        if ".." not in self.parts:
            return self
        key = posixpath.normpath("/" + "/".join(self.parts[2:]))
        return RemotePath(*self.parts[:2], key.lstrip("/"))

    def absolute(self) -> Any:
        return self

    def expanduser(self) -> Any:
        return self

    @property
    def objects(self) -> Objects:
        """The objects below this URL."""
        return objects_at(self.resolve())

    def _above(self) -> tuple[Objects, str]:
        """Give what holds this object, and its key there."""
        whole = self.resolve()
        return objects_at(RemotePath(*whole.parts[:2])), "/".join(whole.parts[2:])

    def found(self) -> Found | None:
        """Say what the server knows of the object with this URL; None where there is none."""
        objects, key = self._above()
        return objects.head(key) if key else None

    def exists(self, **_: Any) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        return self.found() is not None

    def is_dir(self, **_: Any) -> bool:
        return self.parts[0] not in ("http:", "https:") and bool(self.objects.list())

    def is_symlink(self) -> bool:
        return False

    def is_mount(self) -> bool:
        return False

    def is_fifo(self) -> bool:
        return False

    def is_socket(self) -> bool:
        return False

    def is_block_device(self) -> bool:
        return False

    def is_char_device(self) -> bool:
        return False

    def stat(self, **_: Any) -> os.stat_result:
        """Give size and time by the server.

        Raises
        ------
        FileNotFoundError
            There is no such object, nor any below it.
        """
        found = self.found()
        if found is None and not self.is_dir():
            raise FileNotFoundError(2, "no such object", str(self))
        mode, (size, ns) = (
            (stat.S_IFDIR | 0o555, (0, 0))
            if found is None
            else (stat.S_IFREG | 0o444, (found.size, found.modified_ns))
        )
        s = ns // 10**9
        return os.stat_result(
            (mode, 0, 0, 1, 0, 0, size, s, s, s),
            dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), ns),
        )

    lstat = stat

    def iterdir(self) -> Generator[Any, None, None]:
        names = {key.partition("/")[0] for key in self.objects.list()}
        return (self / name for name in sorted(names))

    def rglob(self, pattern: Any, **_: Any) -> Generator[Any, None, None]:
        """Find objects and "folders" below this URL whose names match a pattern."""
        return (self / one for one in self._all_below() if fnmatchcase(one.name, str(pattern)))

    def glob(self, pattern: Any, **more: Any) -> Generator[Any, None, None]:
        """Find objects and "folders" below this URL; ``**/`` before the last part is any depth."""
        head, _, last = str(pattern).rpartition("/")
        if head == "**":
            return self.rglob(last, **more)
        wanted = PurePath(str(pattern)).parts
        return (
            self / one
            for one in self._all_below()
            if len(one.parts) == len(wanted) and all(map(fnmatchcase, one.parts, wanted))
        )

    def _all_below(self) -> list[Path]:
        keys = [Path(key) for key in self.objects.list()]
        return sorted({*keys, *(up for key in keys for up in key.parents if up.parts)})

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, "no such object", str(self))
        objects, key = self._above()
        objects.delete([key])

    def read_bytes(self) -> bytes:
        objects, key = self._above()
        data = objects.get(key) if key else None
        if data is None:
            raise FileNotFoundError(2, "no such object", str(self))
        return data

    def read_text(self, encoding: str | None = None, errors: str | None = None, *_: Any) -> str:
        with io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding or "utf-8", errors) as text:
            return text.read()

    def write_bytes(self, data: Any) -> int:
        objects, key = self._above()
        objects.put(key, bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def open(self, mode: str = "r", *more: Any, **named: Any) -> IO[Any]:  # type: ignore[override]
        """Open a local copy of the object for reading."""
        if set(mode) & set("wax+"):
            self._refuse("open")
        return open(os.fspath(self), mode, *more, **named)  # noqa: PTH123  # of the copy

    def __fspath__(self) -> str:
        return self._copy

    @cached_property
    def _copy(self) -> str:
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="toptune-copy-"))
        (folder / self.name).write_bytes(self.read_bytes())
        return str(folder / self.name)

    def _refuse(self, what: str, *_: Any, **__: Any) -> NoReturn:
        raise OSError(f"{self}: a URL has no {what}; write to a local folder")

    def mkdir(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("mkdir")

    def rmdir(self) -> NoReturn:
        self._refuse("rmdir")

    def rename(self, target: Any) -> NoReturn:  # noqa: ARG002
        self._refuse("rename")

    def replace(self, target: Any) -> NoReturn:  # noqa: ARG002
        self._refuse("replace")

    def touch(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("touch")

    def chmod(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("chmod")

    def symlink_to(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("symlink_to")

    def hardlink_to(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("hardlink_to")

    def readlink(self) -> NoReturn:
        self._refuse("readlink")
