"""A URL that can be used as a path: ``s3://bucket/study/a.h5``.

What reads it asks the server for what it needs, or is given a local copy. What writes it writes
whole objects. Nothing that speaks to servers is imported before a server is asked.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath, PurePath
from typing import IO, TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from toptune.errors import InputError

if TYPE_CHECKING:
    from toptune.machine.copies import Lease
    from toptune.machine.objects import Found, Objects

# Two letters and more, so that no drive of Windows is one. pathlib takes one of the slashes away.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):(//?)(.*)", re.DOTALL)

# For so many seconds what a server said of an object is believed.
_BELIEVED_S = 60.0
# Of a file that is read in ranges: what is asked for at once, and how many of these are kept.
_BLOCK, _BLOCKS = 2**16, 256
# The most objects below a URL that may be one recording.
_MOST_FILES = 20_000


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


def local_output(given: str | os.PathLike[str], what: str = "results are") -> Path:
    """Make a path of where something is to be written, which must be on this machine.

    Raises
    ------
    InputError
        It is a URL.
    """
    path = as_path(given)
    if isinstance(path, RemotePath):
        raise InputError(
            f"{path}: {what} written to a local path: give one instead of a URL, and copy what is"
            " written there"
        )
    return path


def fetch_whole(source: object) -> None:
    """Copy what a URL names, where all of it is going to be read; other things are let be."""
    if isinstance(source, RemotePath):
        os.fspath(source)


def release(source: object) -> None:
    """Let the copy of what a URL names go, when others need its room."""
    if isinstance(source, RemotePath):
        source.release()


def look_at(paths: Iterable[Path]) -> None:
    """Ask servers for many paths at a time; who asks for one of them soon is told what they said.

    Raises
    ------
    InputError
        A server cannot be asked.
    """
    for objects, some in _by_bucket(paths):
        those = [path for path in some if not path.is_known]
        for path, found in zip(those, objects.head_all(path.key for path in those), strict=True):
            path.remember(found)


def read_ahead(paths: Iterable[object]) -> None:
    """Read where files begin and end, of many URLs at a time: what opening them needs first.

    What cannot be read is left to who opens it.
    """
    for objects, those in _by_bucket(paths):
        with suppress(InputError):
            look_at(those)
            ends = [(one, at) for path in those if (one := path.to_be_read()) for at in one.ends()]
            parts = [(blocks.key, *part, blocks.etag) for blocks, part in ends]
            for (blocks, (at, _)), data in zip(ends, objects.read_ahead(parts), strict=True):
                if data is not None:
                    blocks.keep(at, data)


def _by_bucket(paths: Iterable[object]) -> Iterator[tuple[Objects, list[RemotePath]]]:
    """Sort out the URLs among paths by what serves them."""
    found: dict[str, list[RemotePath]] = {}
    for path in paths:
        if isinstance(path, RemotePath) and path.key:
            found.setdefault("/".join(path.parts[:2]), []).append(path)
    return ((those[0].above()[0], those) for those in found.values())


def refuse_secrets(url: str) -> None:
    """Refuse a URL with a password or a query (as signed ones have), without repeating it.

    Raises
    ------
    InputError
        It has one.
    """
    scheme, _, rest = url.partition(":")
    user, is_user, _ = rest.lstrip("/").partition("/")[0].rpartition("@")
    if is_user and ":" in user:
        raise InputError(
            f"the {scheme}:// URL holds a user and a password, which would be noted in results:"
            " give credentials by the environment or by the service's own configuration"
        )
    if "?" in rest:
        raise InputError(
            f"the {scheme}:// URL has a query (?...), as signed URLs have, which would be noted in"
            " results: give it without, and credentials by the environment or by the service's own"
            " configuration"
        )


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
                below = RemotePath(*found.parts, *one.parts)
                if found._lease is not None and ".." not in one.parts:
                    # The copy of the whole has this in it, too.
                    below._lease = found._lease
                    below._inside = posixpath.join(found._inside, *one.parts)
                found = below
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

    # --- what the server, or the copy, says

    _lease: Lease | None = None
    _inside: str = ""  # its place below the path that was copied
    _seen: tuple[float, Found] | None = None
    _blocks: Blocks | None = None

    @property
    def local(self) -> Path | None:
        """Its local copy, where there is one that this path keeps."""
        lease = self._lease
        return None if lease is None else lease.path / self._inside

    def release(self) -> None:
        """Keep the copy no longer; paths that were made of this one may do so still."""
        self._lease, self._inside, self._blocks = None, "", None

    @property
    def objects(self) -> Objects:
        """The objects below this URL."""
        from toptune.machine.objects import objects_at

        return objects_at(self.resolve())

    def above(self) -> tuple[Objects, str]:
        """Give the bucket's objects, and the key of this one among them."""
        from toptune.machine.objects import objects_at

        return objects_at(RemotePath(*self.parts[:2])), self.key

    @property
    def key(self) -> str:
        """The key of this object in its bucket."""
        return "/".join(self.resolve().parts[2:])

    @property
    def is_known(self) -> bool:
        """Whether the server has said lately that there is such an object."""
        return self._seen is not None and time.monotonic() - self._seen[0] < _BELIEVED_S

    def found(self) -> Found | None:
        """Say what the server knows of the object with this URL; None where there is none."""
        if self._blocks is not None:  # of which parts have been read: that content is meant
            return self._blocks.found
        if self._seen is not None and self.is_known:
            return self._seen[1]
        objects, key = self.above()
        return self.remember(objects.head(key) if key else None)

    def remember(self, found: Found | None) -> Found | None:
        """Believe for a while what the server has said of the object, if there is one."""
        self._seen = None if found is None else (time.monotonic(), found)
        return found

    def to_be_read(self) -> Blocks | None:
        """Give what reads the object in ranges; None where there is none, or a copy."""
        return self.blocks() if self.is_known and self.at_hand() is None else None

    def files(self) -> dict[str, Found]:
        """List what is copied of this URL: the object ("") or, by their keys, all below it."""
        found = self.found()
        if found is not None:
            return {"": found}
        return {} if self._is_web() else self.objects.entries()

    def _is_web(self) -> bool:
        return self.parts[0] in ("http:", "https:")

    def exists(self, **_: Any) -> bool:
        return self.local.exists() if self.local else self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        return self.local.is_file() if self.local else self.found() is not None

    def is_dir(self, **_: Any) -> bool:
        if self.local:
            return self.local.is_dir()
        if self._is_web() or self.found() is not None:
            return False
        return self.objects.is_any()

    def is_symlink(self) -> bool:
        return False

    def is_mount(self) -> bool:
        return False

    def is_junction(self) -> bool:
        return False

    def samefile(self, other_path: Any) -> bool:
        return bool(self.resolve() == as_path(other_path).resolve())

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
        if self.local:
            return self.local.stat()
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
        return (self / name for name in sorted({key.partition("/")[0] for key in self._keys()}))

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

    def _keys(self) -> list[str]:
        local = self.local
        if local is None:
            return self.objects.list()
        return [str(one.relative_to(local)) for one in local.rglob("*") if one.is_file()]

    def _all_below(self) -> list[Path]:
        keys = [Path(key) for key in self._keys()]
        return sorted({*keys, *(up for key in keys for up in key.parents if up.parts)})

    # --- what is in it

    def read_bytes(self) -> bytes:
        if self.local:
            return self.local.read_bytes()
        objects, key = self.above()
        data = objects.get(key) if key else None
        if data is None:
            raise FileNotFoundError(2, "no such object", str(self))
        return data

    def read_text(self, encoding: str | None = None, errors: str | None = None, *_: Any) -> str:
        with io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding or "utf-8", errors) as text:
            return text.read()

    def open(  # type: ignore[override]  # one signature instead of pathlib's many
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open the object for reading: the copy, where there is one, else in ranges.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        """
        if set(mode) & set("wax+"):
            self._refuse("open")
        local = self.at_hand()
        if local is not None:
            return local.open(mode, buffering, encoding, errors, newline)
        raw = Ranges(self)
        if "b" not in mode:
            return io.TextIOWrapper(io.BufferedReader(raw), encoding, errors, newline)
        return raw if buffering == 0 else io.BufferedReader(raw)  # type: ignore[return-value]  # as open's

    def blocks(self) -> Blocks:
        """Give the object's bytes in ranges, for all who read it by this path.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        """
        found = self.found()
        if found is None:
            raise FileNotFoundError(2, "no such object", str(self))
        if self._blocks is None:
            self._blocks = Blocks(self, found)
        return self._blocks

    def __fspath__(self) -> str:
        if self._lease is None:
            self._lease = self._fetched()
        return str(self.local)

    def at_hand(self) -> Path | None:
        """Give a local copy where there is one, by whichever path or process; fetch none."""
        if self._lease is None and self._blocks is None:
            found = self.found()
            if found is not None:
                from toptune.machine.copies import Original, copy_at_hand

                self._lease = copy_at_hand(Original(str(self.resolve()), self.name, {"": found}))
        return self.local

    def _fetched(self) -> Lease:
        from toptune.machine.copies import Original, copy_of

        files = self.files()
        if not files:
            raise InputError(f"{self}: no such file or folder")
        if len(files) > _MOST_FILES:
            raise InputError(
                f"{self}: more than {_MOST_FILES} objects are below it: name the folder of one"
                " recording"
            )
        objects, key = self.above()
        return copy_of(Original(str(self.resolve()), self.name, files), objects, key)

    # --- what is written

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, "no such object", str(self))
        objects, key = self.above()
        objects.delete([key])
        self._forget()

    def write_bytes(self, data: Any) -> int:
        objects, key = self.above()
        objects.put(key, bytes(data))
        self._forget()
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def _forget(self) -> None:
        self.release()
        self._seen = None

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


def is_in_ranges(path: Path) -> bool:
    """Tell whether a file is read in ranges: it is an object of which there is no local copy."""
    return isinstance(path, RemotePath) and path.at_hand() is None


class Blocks:
    """An object's bytes, read in ranges, all from the very content that was there at first.

    Several threads may read at once. What was read last is kept.
    """

    def __init__(self, path: RemotePath, found: Found) -> None:
        self.found, self.size, self.etag = found, found.size, found.etag
        self._objects, self.key = path.above()
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._guard = threading.Lock()

    def pread(self, n_bytes: int, at: int) -> bytes:
        """Read bytes from somewhere, as far as the object reaches."""
        n_bytes = max(0, min(n_bytes, self.size - at))
        if n_bytes >= _BLOCK:
            return self._objects.get_range(self.key, at, n_bytes, self.etag)
        if not n_bytes:
            return b""
        first, last = at // _BLOCK, (at + n_bytes - 1) // _BLOCK
        data = b"".join(self._block(number) for number in range(first, last + 1))
        skip = at - first * _BLOCK
        return data[skip : skip + n_bytes]

    def _block(self, number: int) -> bytes:
        with self._guard:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        start, n_bytes = self._part(number)
        block = self._objects.get_range(self.key, start, n_bytes, self.etag)
        self.keep(start, block)
        return block

    def _part(self, number: int) -> tuple[int, int]:
        start = number * _BLOCK
        return start, min(_BLOCK, self.size - start)

    def ends(self) -> list[tuple[int, int]]:
        """Say where the first and the last block start and how long they are."""
        return [self._part(number) for number in sorted({0, max(0, self.size - 1) // _BLOCK})]

    def keep(self, start: int, block: bytes) -> None:
        """Keep a block that was read; others go, those first that were asked for long ago."""
        with self._guard:
            self._kept[start // _BLOCK] = block
            while len(self._kept) > _BLOCKS:
                self._kept.popitem(last=False)


class Ranges(io.RawIOBase):
    """An object as a file that is read in ranges."""

    def __init__(self, path: RemotePath) -> None:
        self.name = str(path)
        self._blocks = path.blocks()
        self._at = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read in any order."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._blocks.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        """Say at which byte it is."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the object reaches."""
        view = memoryview(buffer).cast("B")
        data = self._blocks.pread(len(view), self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class OpenBytes:
    """A file whose bytes are read from anywhere, by several threads: a context manager."""

    def __init__(self, path: Path) -> None:
        self._blocks: Blocks | None = None
        self._descriptor = -1
        if isinstance(path, RemotePath) and is_in_ranges(path):
            self._blocks = path.blocks()
        else:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def pread(self, n_bytes: int, at: int) -> bytes:
        """Read bytes from somewhere, as far as the file reaches."""
        if self._blocks is not None:
            return self._blocks.pread(n_bytes, at)
        return os.pread(self._descriptor, n_bytes, at)

    def __enter__(self) -> OpenBytes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._blocks is None:
            os.close(self._descriptor)


def for_hdf5(path: Path) -> Any:
    """Give what h5py opens: the path itself or, where a URL has no copy, what reads in ranges."""
    if isinstance(path, RemotePath) and is_in_ranges(path):
        return Ranges(path)
    return os.fspath(path)


def stamp_of_url(path: RemotePath) -> list[list[Any]]:
    """Give names, sizes and times of what a URL names, as the server says them."""
    return [
        [PurePath(key).name or path.name, one.size, one.modified_ns]
        for key, one in sorted(path.files().items())
    ]


def quick_digest_of_url(path: RemotePath) -> str:
    """Hash the sizes of what is below a URL, which is not read for this."""
    sizes = sorted((key, one.size) for key, one in path.files().items())
    return hashlib.sha256(repr(sizes).encode()).hexdigest()
