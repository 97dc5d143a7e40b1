"""A store below a URL, worked on through a replica in a local folder.

Groups are made in the replica by the code that makes them in a local store, and uploaded: all their
objects, which are read back and compared, and last of all the group's own zarr.json. That one says
of which files the group consists and which sums they have, so it is the group's manifest: where it
is, all is there, and a group without it is not published. What is read is brought into the replica
and checked there as in a local store.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import filterfalse
from pathlib import Path
from typing import Any, TypeVar

from toptune.errors import StorageError, ToptuneError
from toptune.machine.caches import private_folder
from toptune.machine.durable import writing
from toptune.machine.locks import NoLocksError, held
from toptune.machine.remote import RemotePath
from toptune.store.groups import DamagedError, group_metadata
from toptune.store.places import ASIDE, LocalPlace

T = TypeVar("T")
R = TypeVar("R")

# Of the files of groups, a replica keeps those that were read last: so many bytes, and no more than
# this share of the room on the disk.
_MOST_BYTES = 20 * 2**30
_DISK_SHARE = 0.25
_THREADS = 16
# Chunks are of a megabyte.
_TOGETHER = 64
_FIRST = 2
# Lists of what a recording has, by whoever reads them all, are believed so long.
_LISTS_S = 30.0
_METADATA = "zarr.json"


@dataclass
class _Held:
    """Files of a published group that are in a replica."""

    info: dict[str, Any] | None = None  # attributes of the group that they are of
    files: set[str] = field(default_factory=set)
    n_bytes: int = 0
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Replica(LocalPlace):
    """A store below a URL; all methods but those that write may be called by several threads.

    Parameters
    ----------
    path
        The URL of the store.
    """

    has_all = False

    def __init__(self, path: RemotePath) -> None:
        super().__init__(path)
        self._objects = path.objects
        with writing(_temporary()):
            self.folder = Path(tempfile.mkdtemp(dir=_home(os.getpid())))
        weakref.finalize(self, _remove, self.folder, os.getpid())
        self._most_bytes = min(_MOST_BYTES, int(shutil.disk_usage(self.folder).free * _DISK_SHARE))
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._fresh: set[str] = set()  # zarr.json that were brought just now, to be looked at
        self._sets: dict[str, tuple[float, list[str]]] = {}
        self._none: dict[str, float] = {}  # when no recording had features of a set

    @property
    def root(self) -> Path:
        """The folder in which the root group is read."""
        return self.folder

    # --- reading

    def exists(self) -> bool:
        """Tell whether anything is there; the root group is brought."""
        return self._bring("") or self._objects.is_any()

    def has_recordings(self) -> bool:
        """Tell whether groups of recordings are there, with or without a root group."""
        return bool(self._objects.folders())

    def look(self, *groups: str) -> bool:
        """Bring the zarr.json of nested groups; False where the last has none."""
        *between, group = groups
        if not self._bring(group):
            return False
        for parent in between:
            if not self._is_seen(parent):
                self._bring(parent)
        return True

    def _is_seen(self, parent: str) -> bool:
        """Whether a group that others lie in was brought: without attributes, it never changes."""
        return (self.folder / parent / _METADATA).exists()

    def look_ahead(self, wanted: Iterable[tuple[str, ...]]) -> None:
        """Bring all zarr.json that `look` will be asked for, many at a time."""
        asked = {
            _inside(group, _METADATA)
            for *between, last in wanted
            for group in (last, *filterfalse(self._is_seen, between))
        }
        self._fresh.clear()
        for key in self._fetch(sorted(asked)):
            (self.folder / key).unlink(missing_ok=True)
        self._fresh.update(asked)

    def _bring(self, group: str) -> bool:
        """Bring a group's zarr.json up to date; False where there is none."""
        key = _inside(group, _METADATA)
        file = self.folder / key
        with suppress(KeyError):
            self._fresh.remove(key)
            return file.exists()
        data = self._objects.get(key)
        if data is None:
            file.unlink(missing_ok=True)
            return False
        self._see(group, data)
        return True

    def _see(self, group: str, data: bytes) -> None:
        """Have a group's zarr.json in the replica."""
        file = self.folder / group / _METADATA
        with writing(_temporary()):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{secrets.token_hex(4)}.partial")
            part.write_bytes(data)
            part.replace(file)

    def _fetch(self, keys: Iterable[str]) -> list[str]:
        """Bring objects; gives the keys of those that are not there."""
        try:
            return self._objects.fetch(keys, self.folder)
        except StorageError as error:
            if isinstance(error.__cause__, OSError):  # of this disk
                with writing(_temporary()):
                    raise error.__cause__ from None
            raise

    @contextmanager
    def using(self, group: str, info: dict[str, Any], *parts: str) -> Iterator[Path]:
        """Bring the files of a published group, given its attributes, and keep them inside."""
        with self._lock:
            one = self._held.setdefault(group, _Held())
            self._held.move_to_end(group)
            one.users += 1
        try:
            with one.lock:
                if one.info != info:
                    self._empty(group, one)
                    one.info = info
                self._complete(group, one, parts)
            yield self.folder / group
        except DamagedError:
            one.info = None  # brought anew the next time
            raise
        finally:
            with self._lock:
                one.users -= 1
                self._trim()

    def _complete(self, group: str, one: _Held, parts: Collection[str]) -> None:
        """Bring what is wanted of a group and is not here yet."""
        assert one.info is not None
        files = one.info.get("files")
        # Groups of an earlier toptune do not say which files they have.
        there = files if isinstance(files, dict) else self._below(group)
        wanted = [
            file
            for file in there
            if file not in one.files and (not parts or any(map(_Within(file), parts)))
        ]
        self._fetch(_inside(group, file) for file in wanted)
        one.files.update(wanted)
        one.n_bytes += sum(_size(self.folder / group / file) for file in wanted)

    def _below(self, group: str) -> list[str]:
        keys = self._objects.list(group)
        return [key[len(group) + 1 :] for key in keys if key != _inside(group, _METADATA)]

    def _empty(self, group: str, one: _Held) -> None:
        for file in one.files:
            (self.folder / group / file).unlink(missing_ok=True)
        one.files.clear()
        one.n_bytes = 0

    def _trim(self) -> None:
        """Let go of what was read longest ago, where there is too much."""
        total = sum(one.n_bytes for one in self._held.values())
        for group, one in list(self._held.items()):
            if total <= self._most_bytes:
                return
            if not one.users:
                total -= one.n_bytes
                self._empty(group, one)
                del self._held[group]

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Let errors inside name the URL, and not the replica."""
        try:
            yield
        except DamagedError as error:
            if isinstance(error.place, RemotePath):  # it names the URL already
                raise
            place = self.path / error.place.relative_to(self.folder)
            raise DamagedError(place, self.told(error.cause)) from None
        except ToptuneError as error:
            if str(self.folder) not in str(error):
                raise
            raise type(error)(self.told(str(error))) from error.__cause__

    def told(self, text: str) -> str:
        """Give a text about the replica as one about the URL."""
        return text.replace(str(self.folder), str(self.path))

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterable[R]:
        """Apply a function that reads groups to each item, to many at a time."""
        return _in_threads(function, list(items))

    def sets_of(self, name: str) -> list[str]:
        """List the keys of a recording's features."""
        since, keys = self._sets.get(name, (-_LISTS_S, []))
        if time.monotonic() - since < _LISTS_S:
            return keys
        keys = self._objects.folders(f"{name}/features")
        self._sets[name] = time.monotonic(), keys
        return keys

    def holding(self, key: str, names: Iterable[str]) -> Iterator[str]:
        """Name the recordings that have features of a set, as soon as some are found."""
        if time.monotonic() - self._none.get(key, -_LISTS_S) < _LISTS_S:
            return
        there = set(self._objects.folders())
        is_any = False
        left = [name for name in names if name in there]
        # Mostly the first has them.
        for some in (left[:_FIRST], *_batched(left[_FIRST:])):
            manifests = {name: f"{name}/features/{key}/{_METADATA}" for name in some}
            without = {*self._fetch(manifests.values())}
            for name in (name for name, manifest in manifests.items() if manifest not in without):
                is_any = True
                yield name
        if not is_any:
            self._none[key] = time.monotonic()

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """Bring all objects of a recording but those of groups that are not published."""
        keys = self._objects.list(name)
        sets = {group for group in map(_set_of, keys) if group}
        self.unfinished = sorted(group for group in sets if _inside(group, _METADATA) not in keys)
        if keys and f"{name}/spikes/{_METADATA}" not in keys:
            self.unfinished, keys = [name], []
        self._forget(name)
        self._fetch(key for key in keys if _set_of(key) not in self.unfinished)
        try:
            yield self.folder / name
        finally:
            self._forget(name)

    def _forget(self, group: str) -> None:
        """Let go of all that is here of a group, and of those in it."""
        with self._lock:
            for other in [g for g in self._held if f"{g}/".startswith(f"{group}/")]:
                del self._held[other]
            self._sets.pop(group.partition("/")[0], None)
            # In place: other threads may be adding.
            self._fresh -= {key for key in [*self._fresh] if key.startswith(f"{group}/")}
        shutil.rmtree(self.folder / group, ignore_errors=True)

    def names(self) -> list[str]:
        """List what lies in the root, sorted; single objects there are not looked for."""
        return sorted([*self._objects.folders(), _METADATA])

    def holds_recording(self, name: str) -> bool:
        """Tell whether what lies in the root under a name is a recording."""
        return "spikes" in self._objects.folders(name)

    # --- writing

    def start(self, attributes: dict[str, Any]) -> None:
        """Make a store that is empty of what is there.

        Whenever it is interrupted, there is the old store, of which recordings are absent, or the
        new one.
        """
        keys = [key for key in self._objects.list() if key != _METADATA]
        self._retract(keys)
        self.replace_root(attributes)
        self._objects.delete(keys)

    def replace_root(self, attributes: dict[str, Any]) -> None:
        """Replace the attributes of the root group."""
        self._put({_METADATA: group_metadata(attributes).encode()})

    @contextmanager
    def aside(self, writer: str) -> Iterator[Path]:
        """Give the name of a folder in which groups are made before they are uploaded."""
        folder = self.folder / f"{ASIDE}{writer}-{secrets.token_hex(4)}"
        with writing(_temporary()):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, aside: Path, name: str) -> None:
        """Upload a recording that was made aside, with its spikes; what is there is replaced."""
        self._upload(aside, name, f"spikes/{_METADATA}")
        self._see(name, (aside / _METADATA).read_bytes())

    def publish_features(self, aside: Path, name: str, key: str) -> None:
        """Upload features of a recording: group `key` in the plain group that was made aside."""
        parent = f"{name}/features/{_METADATA}"
        plain = (aside / _METADATA).read_bytes()
        if self._objects.get(parent) != plain:
            self._put({parent: plain})
        self._see(f"{name}/features", plain)
        self._upload(aside / key, f"{name}/features/{key}", _METADATA)

    def remove(self, group: str) -> None:
        """Take a group out, with all that is in it."""
        keys = self._objects.list(group)
        self._retract(keys)
        self._objects.delete(keys)
        self._forget(group)

    def _upload(self, folder: Path, group: str, manifest: str) -> None:
        """Put all files of a folder below a group, the manifest last, in the place of others."""
        self.guard()
        files = [
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        ]
        new = {_inside(group, file): folder / file for file in files}
        there = self._objects.list(group)
        self._retract(there)
        self._objects.delete(key for key in there if key not in new)
        self._forget(group)
        last = new.pop(_inside(group, manifest))
        for some in _batched(sorted(new)):
            self._put({key: new[key].read_bytes() for key in some})
        self._put({_inside(group, manifest): last.read_bytes()})

    def _retract(self, keys: Iterable[str]) -> None:
        """Delete the manifests among keys: of features first, which depend on the spikes."""
        manifests = [key for key in keys if key.endswith(f"/{_METADATA}")]
        self.guard()
        self._objects.delete(key for key in manifests if key == _inside(_set_of(key), _METADATA))
        self._objects.delete(
            key for key in manifests if key.split("/")[1:] == ["spikes", _METADATA]
        )

    def _put(self, contents: dict[str, bytes]) -> None:
        """Put objects, and see that they are there."""
        self.guard()
        for key in self._objects.put_all(contents):
            raise StorageError(
                f"{self.path / key} reads otherwise than it was written: see who else writes there,"
                " and run the same command again"
            )


class _Within:
    """Tells whether a file is a part of a group, or lies in it."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __call__(self, part: str) -> bool:
        return self._file == part or self._file.startswith(f"{part}/")


def _inside(group: str, file: str) -> str:
    return f"{group}/{file}" if group else file


def _set_of(key: str) -> str:
    """Name the group of features that an object belongs to; "" where it belongs to none."""
    name, *rest = key.split("/")
    return "/".join([name, *rest[:2]]) if rest[:1] == ["features"] and len(rest) > 2 else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _in_threads(function: Callable[[T], R], items: list[T]) -> Iterator[R]:
    """Apply a function to each item, to many at a time; after an error, to none that is left."""
    futures: list[Future[R]] = [Future() for _ in items]
    left = deque(zip(items, futures, strict=True))

    def work() -> None:
        while True:
            try:
                item, future = left.popleft()
            except IndexError:
                return
            try:
                future.set_result(function(item))
            except BaseException as error:  # noqa: BLE001  # raised where it is waited for
                future.set_exception(error)

    # Daemons, so that Ctrl-C need not wait for what a server does not answer.
    for _ in range(min(_THREADS, len(items))):
        threading.Thread(target=work, name="toptune-store", daemon=True).start()
    try:
        for future in futures:
            yield future.result()
    finally:
        left.clear()


def _batched(keys: list[str]) -> Iterator[list[str]]:
    """Give so many keys at a time as are put together."""
    yield from (keys[at : at + _TOGETHER] for at in range(0, len(keys), _TOGETHER))


# --- where replicas lie


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


@cache
def _home(pid: int) -> Path:
    """Make the folder of this process's replicas; those of processes that are gone are removed."""
    folder = (private_folder() or _temporary()) / "replicas"
    own = folder / f"{pid}-{secrets.token_hex(4)}"
    kept = ExitStack()
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(NoLocksError):
        kept.enter_context(held(_lock_of(own)))
        _sweep(folder)
    own.mkdir()
    atexit.register(_leave, own, kept, pid)
    return own


def _lock_of(home: Path) -> Path:
    return home.with_name(f"{home.name}.lock")


def _sweep(folder: Path) -> None:
    for lock in folder.glob("*.lock"):
        with held(lock, wait=False) as is_left:
            if is_left:
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)


def _leave(home: Path, kept: ExitStack, pid: int) -> None:
    _remove(home, pid)
    if os.getpid() == pid:
        _lock_of(home).unlink(missing_ok=True)
        kept.close()


def _remove(folder: Path, pid: int) -> None:
    """Remove a folder in the process that made it, and in none that was forked from that."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
