"""Objects in a bucket, or below another URL: read, listed, written and made if absent.

What serves a URL is one of Zarr's stores: obstore for the clouds and the web, and fsspec for
whatever else it knows. This module adds what neither has: calls that several threads may make and
Ctrl-C ends at once, one rule of trying again, and errors of one line without anything secret.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Protocol, TypeVar, TypeVarTuple
from urllib.parse import unquote, urlsplit

from toptune.errors import (
    InputError,
    MissingPackagesError,
    StorageError,
    ToptuneError,
    chain_of,
)
from toptune.machine.remote import refuse_secrets

S = TypeVar("S")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Keys = list[str]

#: A request that has not been answered after so many seconds is given up and made again.
REQUEST_S = 30.0
#: A call fails when its requests have failed for so many seconds.
TOTAL_S = 120.0
#: Objects of more bytes are read in pieces of so many, several at a time.
PIECE_BYTES = 8 * 2**20
_AT_ONCE = 16
# So many objects S3 deletes by one request.
_DELETED_TOGETHER = 1000
# The slowest line that a request of many bytes allows for.
_BYTES_PER_S = 2**20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
# A server that has never answered is not there; one that has may be starting again.
_FIRST_TRIES = 3
# For so many seconds it is not asked again.
_ABSENT_S = 5.0
# How long a thread that has given a result needs to leave the interpreter.
_WAY_OUT_S = 0.02

#: What obstore serves; its other names of the same servers are read, too.
_OBSTORE = frozenset(
    "s3 s3a gs az azure adl abfs abfss http https".split()  # noqa: SIM905  # reads better
)
_S3, _WEB = frozenset({"s3", "s3a"}), frozenset({"http", "https"})
# Where "put it if there is none" is one step of the server. In memory, a lock makes it one.
_CREATING = _OBSTORE - _WEB | {"memory"}
_SECRETS_FROM = ("AWS_", "GOOGLE_", "AZURE_")
_CREDENTIALS = {
    **dict.fromkeys(
        _S3,
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, with boto3 installed), or"
        " AWS_SKIP_SIGNATURE=true for a public bucket, and AWS_REGION",
    ),
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS",
    **dict.fromkeys(
        ("az", "azure", "adl", "abfs", "abfss"),
        "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    ),
}


@dataclass(frozen=True)
class Found:
    """What a server says of an object: its size, its time, and a name of its content."""

    size: int
    modified_ns: int
    etag: str = ""


# A method of this class is called `list`.
Heads = list[Found | None]
Parts = list[bytes | None]


class Objects:
    """The objects below a URL, each known by its key: the rest of its URL.

    All methods may be called by several threads at once. Each tries again, for two minutes in all,
    while the server is busy or the connection breaks.

    Parameters
    ----------
    root : _Root
        What serves the bucket.
    prefix : str
        What the URL has after the bucket, without slashes at its ends.

    Raises
    ------
    InputError
        By methods that read: the server refuses, cannot be reached, or has failed for two minutes.
    StorageError
        By methods that write: the same.
    """

    def __init__(self, root: _Root, prefix: str) -> None:
        self._root, self._prefix = root, prefix

    @property
    def url(self) -> str:
        """The URL these are below."""
        return f"{self._root.url}/{self._prefix}".rstrip("/")

    def url_of(self, key: str) -> str:
        """Give the URL of one of them."""
        return f"{self.url}/{key}" if key else self.url

    def head(self, key: str) -> Found | None:
        """Say what the server knows of an object; None where there is none."""
        place = self._place(key)
        return self._read(key, lambda: self._root.there(lambda t: t.head(place)))

    def head_all(self, keys: Iterable[str]) -> Heads:
        """Say what the server knows of objects, many at a time; None where there is none."""
        return self._read("", lambda: self._root.head_all([self._place(key) for key in keys]))

    def read_ahead(self, parts: Iterable[tuple[str, int, int, str]]) -> Parts:
        """Read parts of objects, each a key, a start, bytes and what it is, many at a time.

        What cannot be read is None.
        """
        wanted = [(self._place(key), start, n, etag) for key, start, n, etag in parts]
        return _run(self._root.read_ahead(wanted))

    def modified(self, key: str) -> float | None:
        """Give when the server wrote an object, in seconds since 1970 by its clock."""
        found = self.head(key)
        return None if found is None else found.modified_ns / 1e9

    def get(self, key: str) -> bytes | None:
        """Read an object; None where there is none."""
        return self._read(key, lambda: self._root.whole(self._place(key)))

    def get_range(self, key: str, start: int, n_bytes: int, etag: str = "") -> bytes:
        """Read bytes of an object; with `etag`, of that content of it only.

        Raises
        ------
        InputError
            There is none, it ends before, or it has changed since.
        """
        if n_bytes <= 0:
            return b""
        place = self._place(key)
        got = self._read(key, lambda: self._root.part(place, start, n_bytes, etag))
        if got is None:
            raise InputError(f"{self.url_of(key)}: no such object")
        return got

    def fetch(self, keys: Iterable[str], folder: Path) -> Keys:
        """Copy objects below a local folder, many at a time.

        Returns
        -------
        list of str
            The keys for which there is no object, in the order given.

        Raises
        ------
        StorageError
            The local folder cannot be written.
        """
        wanted = list(keys)
        for key in wanted:
            _require_inside(key, self.url)
        there = self._read("", lambda: self._root.fetched(wanted, self._place, folder))
        return [key for key, is_there in zip(wanted, there, strict=True) if not is_there]

    def copy(self, key: str, target: Path, found: Found) -> None:
        """Copy an object, which must be the one that was found, to a local file.

        Raises
        ------
        InputError
            It is another by now, or there is none.
        OSError
            The file cannot be written.
        """
        place = self._place(key)
        self._read(key, lambda: self._root.copied(place, found, target))
        os.utime(target, ns=(found.modified_ns, found.modified_ns))

    def is_any(self, prefix: str = "") -> bool:
        """Tell whether there is an object below a prefix (a "folder")."""
        place = self._place(prefix)
        return self._read(prefix, lambda: self._root.retried(lambda t: t.is_any(place)))

    def put(self, key: str, data: bytes) -> None:
        """Write an object or replace it; a reader sees the old content or the new, whole."""
        place = self._place(key)
        self._write(key, lambda: self._root.put(place, data))

    def put_all(self, contents: Mapping[str, bytes]) -> Keys:
        """Write objects, many at a time, and read each back.

        Returns
        -------
        list of str
            The keys whose objects do not hold what was written.
        """
        wanted = {self._place(key): data for key, data in contents.items()}
        same = self._write("", lambda: self._root.put_all(wanted))
        return [key for key, is_same in zip(contents, same, strict=True) if not is_same]

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none, in one step of the server; False where there is one.

        An answer may be lost and the object there: if its content is `data`, it is this call's own.
        So `data` must be nobody else's, as a random token in it makes it.

        Raises
        ------
        InputError
            What serves this URL has no such step.
        """
        if not self._root.creates:
            raise InputError(
                f"{self.url}: several programs cannot write here at once, since {self._root.scheme}"
                " has no way to make an object only where there is none: use s3, gs or az"
            )
        place = self._place(key)
        return self._write(key, lambda: self._root.create(place, data))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, many at a time; those that are not there are no matter."""
        places = [self._place(key) for key in keys]
        if places:
            self._write("", lambda: self._root.delete(places))

    def list(self, prefix: str = "") -> Keys:
        """List the keys of all objects below a prefix (a "folder"), sorted."""
        return sorted(self.entries(prefix))

    def entries(self, prefix: str = "") -> dict[str, Found]:
        """List all objects below a prefix (a "folder"), with what the server knows of each."""
        place = self._place(prefix)
        found = self._read(prefix, lambda: self._root.retried(lambda t: t.entries(place)))
        skip = len(self._prefix) + 1 if self._prefix else 0
        keys = [key[skip:] for key in found]
        folders = {str(above) for key in keys for above in PurePosixPath(key).parents}
        # Some programs mark a "folder" by an empty object.
        return {
            key: one
            for key, one in zip(keys, found.values(), strict=True)
            if key and (one.size or key not in folders)
        }

    def folders(self, prefix: str = "") -> Keys:
        """List the names of the "folders" directly below a prefix, sorted."""
        place = self._place(prefix)
        return sorted(self._read(prefix, lambda: self._root.retried(lambda t: t.folders(place))))

    def _place(self, key: str) -> str:
        place = f"{self._prefix}/{key}".strip("/")
        return unquote(place) if self._root.scheme in _WEB else place

    def _read(self, key: str, action: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return _run(action())
        except _Trouble as trouble:
            trouble.refuse_reading(self.url_of(key), self._root.scheme)

    def _write(self, key: str, action: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return _run(action())
        except _Trouble as trouble:
            trouble.refuse_writing(self.url_of(key), self._root.scheme)


def objects_at(url: object) -> Objects:
    """Give the objects below a URL (a string, or a `RemotePath`).

    Connections and credentials are kept for a bucket as long as the process runs and its
    environment stays as it is.

    Raises
    ------
    InputError
        The URL holds a password or a query, or nothing serves its kind.
    MissingPackagesError
        obstore or fsspec is not installed.
    """
    text = str(url)
    refuse_secrets(text)
    parts = urlsplit(text.replace("?", "%3F").replace("#", "%23"))
    scheme = parts.scheme.lower()
    key = text.split("://", 1)[-1].partition("/")[2].strip("/")
    return Objects(_root_at(scheme, parts.netloc), key)


def _require_inside(key: str, url: str) -> None:
    if not key or PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
        raise InputError(f"{url}: {key[:200]!r} is no key of an object below it")


class _Trouble(Exception):  # noqa: N818  # never leaves this module
    """Why a request failed, in words of toptune's own: what libraries say may hold secrets."""

    def __init__(
        self, cause: str, way_out: str = "", *, passing: bool = False, connected: bool = True
    ) -> None:
        super().__init__(cause)
        self.cause, self.way_out = cause, way_out
        self.passing, self.connected = passing, connected

    def refuse_reading(self, url: str, scheme: str) -> NoReturn:
        raise InputError(f"{url} cannot be read ({self.cause}): {self._advice(scheme)}") from None

    def refuse_writing(self, url: str, scheme: str) -> NoReturn:
        raise StorageError(
            f"{url} cannot be written ({self.cause}): {self._advice(scheme)}; what was published is"
            " kept"
        ) from None

    def _advice(self, scheme: str) -> str:
        usual = "give credentials as the service's own programs take them"
        if self.way_out == "credentials":
            return _CREDENTIALS.get(scheme, usual)
        return self.way_out or "try again later with the same command"


_AGAIN = "run the same command again"
_WHOLE = "see that it was uploaded whole"
_NETWORK = "check the network, and the endpoint if one is set (AWS_ENDPOINT_URL)"


# What S3 names of refusals mean, and what to do.
_NAMED = {
    "NoSuchBucket": ("there is no such bucket", "check its name, and AWS_ENDPOINT_URL if set"),
    "RequestTimeTooSkewed": ("the clock of this machine is off", "set it by the network"),
    **dict.fromkeys(
        ("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"),
        ("the bucket is elsewhere", "set AWS_REGION to the bucket's own"),
    ),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
        ("access is refused", "credentials"),
    ),
}
_BY_STATUS = {
    **dict.fromkeys((401, 403), ("access is refused", "credentials")),
    **dict.fromkeys((301, 307), _NAMED["PermanentRedirect"]),
    **dict.fromkeys((405, 501), ("the server does not do this", "use a bucket of s3, gs or az")),
}


def _status_trouble(status: int, code: str) -> _Trouble:
    """Say what a server's refusal means; `code` is S3's name of it."""
    named = f"{status} {code}".strip()
    known = _NAMED.get(code) or _BY_STATUS.get(status)
    if known is not None:
        return _Trouble(f"{known[0]}, {named}", known[1])
    passing = status >= 500 or status in (408, 409, 425, 429) or code == "RequestTimeout"
    return _Trouble(f"the server answers {named}", "" if passing else _NETWORK, passing=passing)


_STATUS = re.compile(r"\b(?:status(?: code)?:? ?|HTTP status \w+ error \()(\d{3})\b")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_UNCONNECTED = re.compile(
    r"tcp connect|dns error|connection refused|unreachable|error trying to connect"
    r"|client error \(Connect\)",
    re.IGNORECASE,
)


def _understood(error: Exception) -> _Trouble:
    """Say why a request failed without a word of what the library says."""
    if isinstance(error, _Trouble):
        return error
    if isinstance(error, TimeoutError):
        return _Trouble("no answer in time", passing=True)
    if isinstance(error, PermissionError):
        return _Trouble("access is refused", "credentials")
    text = "\n".join(f"{one}\n{one!r}" for one in chain_of(error))
    status, code = _STATUS.search(text), _CODE.search(text)
    if status:
        return _status_trouble(int(status[1]), code[1] if code else "")
    return _without_status(error, text)


def _without_status(error: Exception, text: str) -> _Trouble:
    named = type(error).__name__
    if named in ("UnauthenticatedError", "PermissionDeniedError"):
        return _Trouble("access is refused", "credentials")
    # Not what a URL or a key says.
    plain = re.sub(r'https?://\S+|path: "[^"]*"|location \S+', "", text)
    if "//169.254.169.254/" in text or re.search("credential", plain, re.IGNORECASE):
        return _Trouble("there are no credentials", "credentials")
    if _UNCONNECTED.search(text) or isinstance(error, ConnectionRefusedError):
        return _Trouble("the server cannot be reached", _NETWORK, passing=True, connected=False)
    passing = (
        isinstance(error, OSError)
        or named in ("GenericError", "JoinError")
        or (type(error).__module__.split(".")[0] in ("aiohttp", "botocore", "aiobotocore"))
    )
    if passing:
        return _Trouble("the connection broke", passing=True)
    return _Trouble(f"the library fails, {named}", "report this")


class _Changed(Exception):  # noqa: N818
    """An object is not the one it was."""


class _Transport(Protocol):
    """What serves a bucket. Keys are whole; what is not there is a FileNotFoundError."""

    async def head(self, key: str) -> Found: ...
    async def first(self, key: str, n_bytes: int) -> tuple[bytes, Found]: ...
    async def part(self, key: str, start: int, n_bytes: int, etag: str) -> bytes: ...
    async def put(self, key: str, data: bytes) -> None: ...
    async def create(self, key: str, data: bytes) -> bool: ...
    async def delete(self, keys: list[str]) -> None: ...
    async def entries(self, prefix: str) -> dict[str, Found]: ...
    async def folders(self, prefix: str) -> list[str]: ...
    async def is_any(self, prefix: str) -> bool: ...
    async def probe(self) -> None: ...


class _Root:
    """A bucket, or what a URL has instead: its transport, and the rule of trying again."""

    def __init__(self, scheme: str, netloc: str, transport: _Transport) -> None:
        self.scheme, self.url = scheme, f"{scheme}://{netloc}"
        self.transport = transport
        self._answered = self._seen = False
        self._absent: tuple[float, _Trouble] | None = None

    @property
    def creates(self) -> bool:
        """Whether an object can be made only where there is none, in one step."""
        return self.scheme in _CREATING

    async def retried(
        self, action: Callable[[_Transport], Awaitable[T]], n_bytes: int = PIECE_BYTES
    ) -> T:
        """Make a request until it succeeds, cannot, or has failed for too long."""
        began, failures = time.monotonic(), 0
        if self._absent is not None and began - self._absent[0] < _ABSENT_S:
            raise self._absent[1]
        while True:
            try:
                async with asyncio.timeout(REQUEST_S + n_bytes / _BYTES_PER_S):
                    got = await action(self.transport)
            except (FileNotFoundError, _Changed):
                self._answered = True
                raise
            except Exception as error:  # noqa: BLE001  # whatever a library raises
                failures += 1
                trouble = _understood(error)
                pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**failures)
                pause *= random.uniform(0.5, 1.0)
                is_late = time.monotonic() + pause - began > TOTAL_S
                is_absent = not (trouble.connected or self._answered) and failures >= _FIRST_TRIES
                if is_absent:
                    self._absent = (time.monotonic(), trouble)
                if not trouble.passing or is_late or is_absent:
                    raise trouble from None
                await asyncio.sleep(pause)
            else:
                self._answered = True
                return got

    async def there(
        self, action: Callable[[_Transport], Awaitable[T]], n_bytes: int = PIECE_BYTES
    ) -> T | None:
        """Ask for an object; None where there is none, though there is the bucket."""
        try:
            got = await self.retried(action, n_bytes)
        except FileNotFoundError:
            if not self._seen:
                # A server may say the same of a bucket. Who may not list one is not told more.
                with suppress(PermissionError):
                    await self._probe()
                self._seen = True
            return None
        self._seen = True
        return got

    async def _probe(self) -> None:
        try:
            await self.retried(lambda transport: transport.probe())
        except FileNotFoundError:
            raise _status_trouble(404, "NoSuchBucket") from None
        except _Trouble as trouble:
            if trouble.way_out != "credentials":
                raise

    async def part(self, place: str, start: int, n_bytes: int, etag: str) -> bytes | None:
        """Read bytes of an object, in pieces."""
        starts = range(start, start + n_bytes, PIECE_BYTES)

        async def piece(at: int) -> bytes | None:
            n = min(PIECE_BYTES, start + n_bytes - at)
            return await self.there(lambda t: _exactly(t, place, at, n, etag), n)

        try:
            got = await _all_of(piece, starts)
        except _Changed:
            raise _Trouble(
                "it was changed while it was read", "run the same command again"
            ) from None
        return None if None in got else b"".join(one for one in got if one is not None)

    async def head_all(self, places: list[str]) -> list[Found | None]:
        """Ask for objects, many at a time."""

        async def one(place: str) -> Found | None:
            return await self.there(lambda t: t.head(place))

        return await _all_of(one, places)

    async def read_ahead(self, parts: list[tuple[str, int, int, str]]) -> list[bytes | None]:
        """Read parts of objects, many at a time; those that cannot be read are None."""

        async def one(part: tuple[str, int, int, str]) -> bytes | None:
            try:
                return await self.part(*part)
            except _Trouble:
                return None

        return await _all_of(one, parts)

    async def whole(self, place: str) -> bytes | None:
        """Read an object, what is large in pieces."""
        first = await self.there(lambda t: t.first(place, PIECE_BYTES))
        if first is None:
            return None
        begin, found = first
        if len(begin) >= found.size:
            return begin
        rest = await self.part(place, len(begin), found.size - len(begin), found.etag)
        return None if rest is None else begin + rest

    async def fetched(
        self, keys: list[str], place_of: Callable[[str], str], folder: Path
    ) -> list[bool]:
        """Copy objects below a folder; tell of each whether it is there."""

        async def one(key: str) -> bool:
            data = await self.whole(place_of(key))
            if data is not None:
                await asyncio.to_thread(_write_below, folder, key, data)
            return data is not None

        return await _all_of(one, keys)

    async def copied(self, place: str, found: Found, target: Path) -> None:
        """Copy an object to a file, several pieces at a time."""
        # Closed by this task, which an interrupted caller does not wait for.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

        async def piece(at: int) -> None:
            n = min(PIECE_BYTES, found.size - at)
            data = await self.part(place, at, n, found.etag)
            if data is None:
                raise _Trouble("there is none any more", _AGAIN)
            os.pwrite(descriptor, data, at)

        try:
            await _all_of(piece, range(0, found.size, PIECE_BYTES))
            os.ftruncate(descriptor, found.size)
        finally:
            os.close(descriptor)

    async def put(self, place: str, data: bytes) -> None:
        """Write an object."""
        try:
            await self.retried(lambda transport: transport.put(place, data), len(data))
        except FileNotFoundError:
            raise _status_trouble(404, "NoSuchBucket") from None

    async def put_all(self, contents: Mapping[str, bytes]) -> list[bool]:
        """Write objects; tell of each whether it reads as it was written."""

        async def one(place: str) -> bool:
            await self.put(place, contents[place])
            return await self.whole(place) == contents[place]

        return await _all_of(one, contents)

    async def create(self, place: str, data: bytes) -> bool:
        """Write an object if there is none."""
        try:
            made = await self.retried(lambda transport: transport.create(place, data), len(data))
        except FileNotFoundError:
            raise _status_trouble(404, "NoSuchBucket") from None
        # Where the answer to a first try was lost, the second finds what the first made.
        return made or await self.whole(place) == data

    async def delete(self, places: list[str]) -> None:
        """Remove objects."""
        n = _DELETED_TOGETHER if self.scheme in _S3 else 1

        async def some(at: int) -> None:
            with suppress(FileNotFoundError):
                await self.retried(lambda transport: transport.delete(places[at : at + n]))

        await _all_of(some, range(0, len(places), n))


async def _all_of(action: Callable[[S], Awaitable[T]], items: Iterable[S]) -> list[T]:
    """Do something with each item, some at a time; the first that fails ends the others."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(item: S) -> T:
        async with gate:
            return await action(item)

    try:
        async with asyncio.TaskGroup() as group:
            started = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in started]


async def _exactly(t: _Transport, place: str, at: int, n_bytes: int, etag: str) -> bytes:
    got = await t.part(place, at, n_bytes, etag)
    if len(got) != n_bytes:
        size = (await t.head(place)).size
        if size < at + n_bytes:
            raise _Trouble(f"it has {size} bytes, and byte {at + n_bytes} was asked for", _AGAIN)
        raise _Trouble(f"{len(got)} bytes came instead of {n_bytes}", passing=True)
    return got


def _write_below(folder: Path, key: str, data: bytes) -> None:
    from toptune.machine.durable import writing

    path = folder / key
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _nanoseconds(when: object) -> int:
    if isinstance(when, datetime):
        return int(when.timestamp() * 1e6) * 1000
    return int(float(when) * 1e9) if isinstance(when, int | float) else 0


class _Obstore:
    """A bucket served by obstore, below Zarr's store of it."""

    def __init__(self, scheme: str, netloc: str) -> None:
        from zarr.storage import ObjectStore

        if _is_orphan:
            raise _Trouble(
                "this process was forked from one that read URLs, and has lost its connections",
                "start it by `spawn` instead of by `fork`",
            )
        self._raw: Any = _obstore_of(scheme, netloc)
        self._store = ObjectStore(self._raw)

    async def head(self, key: str) -> Found:
        import obstore

        return _found(await obstore.head_async(self._raw, key))

    async def first(self, key: str, n_bytes: int) -> tuple[bytes, Found]:
        import obstore

        try:
            got = await obstore.get_async(self._raw, key, options={"range": (0, n_bytes)})
        except FileNotFoundError:
            raise
        except Exception as error:
            # An empty object has no first byte, and some servers do not know of ranges.
            if not re.search(r"\b416\b|InvalidRange|[Rr]ange", f"{error} {error!r}"):
                raise
            got = await obstore.get_async(self._raw, key)
        return bytes(await got.bytes_async()), _found(got.meta)

    async def part(self, key: str, start: int, n_bytes: int, etag: str) -> bytes:
        import obstore
        from obstore.exceptions import NotSupportedError, PreconditionError

        options: Any = {"range": (start, start + n_bytes)}
        if etag:
            options["if_match"] = etag
        try:
            got = await obstore.get_async(self._raw, key, options=options)
        except PreconditionError:
            raise _Changed from None
        except NotSupportedError:
            got = await obstore.get_async(self._raw, key)
            return bytes(await got.bytes_async())[start : start + n_bytes]
        return bytes(await got.bytes_async())

    async def put(self, key: str, data: bytes) -> None:
        from zarr.core.buffer import default_buffer_prototype

        await self._store.set(key, default_buffer_prototype().buffer.from_bytes(data))

    async def create(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            await obstore.put_async(self._raw, key, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    async def delete(self, keys: list[str]) -> None:
        import obstore

        await obstore.delete_async(self._raw, keys)

    async def entries(self, prefix: str) -> dict[str, Found]:
        import obstore

        found: dict[str, Found] = {}
        async for batch in obstore.list(self._raw, prefix or None):
            found.update((one["path"], _found(one)) for one in batch)
        return found

    async def folders(self, prefix: str) -> list[str]:
        import obstore

        got = await obstore.list_with_delimiter_async(self._raw, prefix or None)
        return [one.rstrip("/").rpartition("/")[2] for one in got["common_prefixes"]]

    async def is_any(self, prefix: str) -> bool:
        import obstore

        async for batch in obstore.list(self._raw, prefix or None, chunk_size=1):
            if batch:
                return True
        return False

    async def probe(self) -> None:
        await self.is_any("")


def _found(meta: Any) -> Found:
    # In whole seconds, which is all that the answer to some requests has.
    ns = _nanoseconds(meta["last_modified"]) // 10**9 * 10**9
    return Found(meta["size"], ns, meta.get("e_tag") or "")


def _obstore_of(scheme: str, netloc: str) -> Any:
    import obstore.store as stores

    client: Any = {
        "timeout": timedelta(seconds=4 * REQUEST_S),  # the shorter one is asyncio's
        "connect_timeout": timedelta(seconds=5),
    }
    retry: Any = {"max_retries": 0}
    if scheme in _WEB:
        client["allow_http"] = True
        return stores.HTTPStore.from_url(
            f"{scheme}://{netloc}", client_options=client, retry_config=retry
        )
    given: dict[str, Any] = {"client_options": client, "retry_config": retry}
    if scheme in _S3:
        scheme = "s3"
        given |= _s3_settings()
        client["allow_http"] = given.get("config", {}).get("endpoint", "").startswith("http://")
    return stores.from_url(f"{scheme}://{netloc}", **given)


def _s3_settings() -> dict[str, Any]:
    """Take what obstore does not read by itself: profiles, and another name of the endpoint."""
    env = os.environ
    config: dict[str, Any] = {}
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    if endpoint:
        config["endpoint"] = endpoint
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    given: dict[str, Any] = {"config": config}
    its_own = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
    containers = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    wants_profile = "AWS_PROFILE" in env or not any(env.get(name) for name in its_own + containers)
    if wants_profile and find_spec("boto3"):
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider

        try:
            session = boto3.Session()
            if session.get_credentials() is not None:
                given["credential_provider"] = Boto3CredentialProvider(session)
                region = region or session.region_name
                profile = session._session.get_scoped_config()  # boto3 has no public way
                config.setdefault("endpoint", profile.get("endpoint_url") or "")
        except Exception as error:  # noqa: BLE001  # botocore's, of many classes
            raise _Trouble(
                f"the AWS configuration cannot be used, {type(error).__name__}", "credentials"
            ) from None
    if region:
        config["region"] = region
    given["config"] = {name: value for name, value in config.items() if value}
    return given


class _Fsspec:
    """What fsspec serves, below Zarr's store of it."""

    def __init__(self, scheme: str, netloc: str) -> None:
        from zarr.storage import FsspecStore

        self._store = FsspecStore.from_url(f"{scheme}://{netloc}/")
        self._fs: Any = self._store.fs
        self._lock = asyncio.Lock()

    def _path(self, key: str) -> str:
        return f"{self._store.path.rstrip('/')}/{key}"

    async def head(self, key: str) -> Found:
        info = await self._fs._info(self._path(key))
        if info["type"] == "directory":
            raise FileNotFoundError(key)
        return _fsspec_found(info)

    async def first(self, key: str, n_bytes: int) -> tuple[bytes, Found]:
        found = await self.head(key)
        n = min(n_bytes, found.size)
        return await self.part(key, 0, n, "") if n else b"", found

    async def part(self, key: str, start: int, n_bytes: int, etag: str) -> bytes:
        if etag and (await self.head(key)).etag != etag:
            raise _Changed
        return bytes(await self._fs._cat_file(self._path(key), start=start, end=start + n_bytes))

    async def put(self, key: str, data: bytes) -> None:
        from zarr.core.buffer import default_buffer_prototype

        with suppress(FileExistsError, NotImplementedError):
            await self._fs._makedirs(self._path(key).rpartition("/")[0], exist_ok=True)
        await self._store.set(key, default_buffer_prototype().buffer.from_bytes(data))

    async def create(self, key: str, data: bytes) -> bool:
        async with self._lock:
            with suppress(FileNotFoundError):
                await self.head(key)
                return False
            await self.put(key, data)
            return True

    async def delete(self, keys: list[str]) -> None:
        for key in keys:
            await self._store.delete(key)

    async def entries(self, prefix: str) -> dict[str, Found]:
        root = self._path("")
        try:
            found = await self._fs._find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return {}
        return {
            name.removeprefix(root): _fsspec_found(info)
            for name, info in found.items()
            if name.removeprefix(root) != prefix
        }

    async def folders(self, prefix: str) -> list[str]:
        try:
            found = await self._fs._ls(self._path(prefix), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [
            one["name"].rstrip("/").rpartition("/")[2]
            for one in found
            if one["type"] == "directory"
        ]

    async def is_any(self, prefix: str) -> bool:
        return bool(await self.entries(prefix))

    async def probe(self) -> None:
        """Do nothing: what has no bucket cannot lack one."""


def _fsspec_found(info: Any) -> Found:
    times = ("LastModified", "mtime", "modified", "last_modified", "created")
    when = next((info[name] for name in times if info.get(name)), 0)
    return Found(int(info["size"] or 0), _nanoseconds(when), str(info.get("ETag") or ""))


_roots: dict[tuple[object, ...], _Root] = {}
_guard = threading.RLock()


def _root_at(scheme: str, netloc: str) -> _Root:
    """Give what serves a bucket, made once for an environment."""
    settings = tuple(sorted(i for i in os.environ.items() if i[0].startswith(_SECRETS_FROM)))
    with _guard:
        known = _roots.get((scheme, netloc, settings))
        if known is None:
            _require_packages(scheme)
            known = _roots[scheme, netloc, settings] = _made_root(scheme, netloc)
        return known


def _made_root(scheme: str, netloc: str) -> _Root:
    url = f"{scheme}://{netloc}"
    if not netloc and scheme in _OBSTORE:
        raise InputError(f"{url}: a URL names a bucket first, as {scheme}://bucket/key")
    kind = _Obstore if scheme in _OBSTORE else _Fsspec
    try:
        return _Root(scheme, netloc, _run(_opened(kind, scheme, netloc)))
    except ToptuneError:
        raise
    except _Trouble as trouble:
        trouble.refuse_reading(url, scheme)
    except ImportError as error:
        raise MissingPackagesError(
            f"{url}: reading {scheme} needs {error.name or 'a package'}, not installed here"
        ) from None
    except Exception as error:  # noqa: BLE001  # whatever a library raises
        raise InputError(
            f"{url}: no connection can be made from the environment ({type(error).__name__}):"
            f" {_CREDENTIALS.get(scheme, 'toptune takes the schemes that fsspec knows')}"
        ) from None


async def _opened(kind: Callable[[str, str], _Transport], scheme: str, netloc: str) -> _Transport:
    """Make it where the event loop is, to which some belong."""
    return kind(scheme, netloc)


def _require_packages(scheme: str) -> None:
    name = "obstore" if scheme in _OBSTORE else "fsspec"
    if find_spec(name) is None:
        raise MissingPackagesError(
            f"reading {scheme}:// needs {name}, not installed here: pip install 'toptune[cloud]'"
            " (from a checkout: pip install '.[cloud]'); local files are read without"
        )
    if name == "fsspec":
        from fsspec import get_filesystem_class

        try:
            get_filesystem_class(scheme)
        except ValueError:
            raise InputError(
                f"{scheme}:// is no kind of URL that can be read: obstore serves"
                f" {', '.join(sorted(_OBSTORE))}, and fsspec none of that name"
            ) from None


class _EventLoop(asyncio.SelectorEventLoop):
    """An event loop that knows which threads are giving it results."""

    def __init__(self) -> None:
        super().__init__()
        self.giving: set[int] = set()

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Have something called in the loop's thread, from another."""
        # To add and to discard are one step each, whoever else does.
        self.giving.add(threading.get_ident())
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        finally:
            self.giving.discard(threading.get_ident())


class _Loop:
    """A thread with an event loop, in which all requests are made."""

    def __init__(self) -> None:
        self.loop = _EventLoop()
        self.loop.set_default_executor(
            ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="toptune-copy")
        )
        self._thread = threading.Thread(target=self._work, name="toptune-objects", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def cancel_all(self) -> None:
        """End all requests; called in its thread."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

    def stop(self) -> None:
        """End it before the interpreter ends; what is under way is left.

        A thread of obstore that gives a result may still be on its way out when that result has
        been used. If it wanted the interpreter when that has ended, the process would be aborted.
        """
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(1.0)
        deadline = time.monotonic() + 1.0
        while self.loop.giving and time.monotonic() < deadline:
            time.sleep(_WAY_OUT_S)
        time.sleep(_WAY_OUT_S)  # from the last line of Python to the last of Rust
        if not self._thread.is_alive() and not self.loop.giving:
            self.loop.close()


_working: _Loop | None = None
# obstore's own threads were left behind in the process that this one was forked from.
_is_orphan = False


def _run(task: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine in the loop's thread; an interrupt ends the wait, and the work, too."""
    global _working  # noqa: PLW0603  # one thread for all
    with _guard:
        if _working is None:
            _working = _Loop()
            atexit.register(_working.stop)
        future = asyncio.run_coroutine_threadsafe(task, _working.loop)
    try:
        return future.result()
    except CancelledError:
        # By `give_up`. Whoever reads a file takes an Exception for a fault of that file.
        raise KeyboardInterrupt from None
    except BaseException:
        future.cancel()
        raise


def give_up() -> None:
    """End what all threads are asking servers for, after an interrupt, but not what they ask next.

    They are given a KeyboardInterrupt, too.
    """
    with _guard:
        if _working is not None:
            _working.loop.call_soon_threadsafe(_working.cancel_all)


def _forget() -> None:
    """Start anew in a forked process, which has none of the threads."""
    global _working, _guard, _is_orphan  # noqa: PLW0603  # what the threads were
    _is_orphan |= any(isinstance(root.transport, _Obstore) for root in _roots.values())
    _working, _guard = None, threading.RLock()
    _roots.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
