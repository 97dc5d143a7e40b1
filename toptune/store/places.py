"""Where a store lies, and how its groups are read and published there.

The code that reads and checks groups works on a local folder. Of a store in a local folder that is
the store itself, and a group is published by renaming it into place.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from toptune.machine.durable import move_into_place, writing
from toptune.machine.remote import RemotePath, as_path
from toptune.store.groups import replace_attributes, write_attributes

#: Begins the names of what is being written, in a store and beside it.
ASIDE = ".writing-"

T = TypeVar("T")
R = TypeVar("R")


class LocalPlace:
    """A store in a local folder.

    Groups are named by their paths inside the store, with ``/``; "" is the root.

    Parameters
    ----------
    path
        Of the store, as messages name it.
    """

    #: Whether all of a group is there where a part of it is used.
    has_all = True

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Where groups are read.
        self.folder = path
        #: Groups that are not published, of the recording that `whole` gave last.
        self.unfinished: list[str] = []
        #: Called before something is published: an error there keeps it from being published.
        self.guard: Callable[[], object] = lambda: None

    @property
    def root(self) -> Path:
        """The folder in which the root group is read; the store itself may be reached by a link."""
        return self.folder.resolve()

    # --- reading

    def exists(self) -> bool:
        """Tell whether anything is there."""
        return self.path.exists()

    def has_recordings(self) -> bool:
        """Tell whether groups of recordings are there, with or without a root group."""
        return self.path.is_dir() and any(self.path.glob("*/spikes/zarr.json"))

    def look(self, *groups: str) -> bool:
        """Tell whether the last of nested groups is there."""
        # The folder, not its zarr.json: a group whose zarr.json is gone is damaged, not absent.
        return (self.folder / groups[-1]).exists()

    def look_ahead(self, wanted: Iterable[tuple[str, ...]]) -> None:
        """Announce what `look` will be asked next, so that it may be looked for all at once."""

    @contextmanager
    def using(
        self,
        group: str,
        info: dict[str, Any],  # noqa: ARG002  # it is all here
        *parts: str,  # noqa: ARG002
    ) -> Iterator[Path]:
        """Give the folder of a published group, given its attributes, while it is read.

        `parts` are paths of files or arrays in it, where not all of it is needed.
        """
        yield self.folder / group

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Let errors inside name the store, wherever it is read."""
        yield

    def told(self, text: str) -> str:
        """Give a text about the folder where groups are read as one about the store."""
        return text

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterable[R]:
        """Apply a function that reads groups to each item; the results are in the same order."""
        return map(function, items)

    def sets_of(self, name: str) -> list[str]:
        """List the keys of a recording's features."""
        found = (self.folder / name / "features").glob("*/zarr.json")
        return sorted(file.parent.name for file in found)

    def holding(self, key: str, names: Iterable[str]) -> Iterable[str]:  # noqa: ARG002
        """Name the recordings that may have features of a set."""
        return names

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """Give the folder of a recording with all that is in it, while it is verified."""
        yield self.folder / name

    def names(self) -> list[str]:
        """List what lies in the root, sorted."""
        return sorted(path.name for path in self.path.iterdir())

    def holds_recording(self, name: str) -> bool:
        """Tell whether what lies in the root under a name is a recording."""
        return (self.path / name / "spikes").is_dir()

    # --- writing

    def start(self, attributes: dict[str, Any]) -> None:
        """Put a store that is empty in the place, and remove what is there."""
        path = self.path
        aside = path.with_name(f"{ASIDE}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
        with writing(path):
            try:
                aside.mkdir(parents=True)
                write_attributes(aside, attributes)
                move_into_place(aside, path, replace=True)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def replace_root(self, attributes: dict[str, Any]) -> None:
        """Replace the attributes of the root group."""
        with writing(self.path):
            replace_attributes(self.path, attributes)

    @contextmanager
    def aside(self, writer: str) -> Iterator[Path]:
        """Give the name of a folder in which groups are made before they are published."""
        folder = self.folder / f"{ASIDE}{writer}-{secrets.token_hex(4)}"
        with writing(self.path):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, aside: Path, name: str) -> None:
        """Publish a recording that was made aside, with its spikes; what is there is replaced."""
        self.guard()
        move_into_place(aside, self.folder / name, replace=True)

    def publish_features(self, aside: Path, name: str, key: str) -> None:
        """Publish features of a recording: group `key` in the plain group that was made aside."""
        self.guard()
        parent = self.folder / name / "features"
        if parent.exists():
            move_into_place(aside / key, parent / key, replace=True)
        else:
            move_into_place(aside, parent, replace=False)

    def remove(self, group: str) -> None:
        """Take a group out, with all that is in it."""
        aside = self.folder / f"{ASIDE}{os.getpid()}-{secrets.token_hex(4)}"
        with writing(self.path):
            if (self.folder / group).exists():
                (self.folder / group).rename(aside)
                shutil.rmtree(aside, ignore_errors=True)


def place_of(path: Path) -> LocalPlace:
    """Give the place that a path names."""
    if isinstance(path, RemotePath):
        from toptune.store.replica import Replica

        return Replica(path)
    return LocalPlace(path)


# --- the devices file, as a store notes it


def note_of(file: Path, store: Path) -> str:
    """Write a path relative to a store's, so that both may be moved together; both are resolved."""
    if isinstance(file, RemotePath) or isinstance(store, RemotePath):
        return _note_of_url(file, store)
    try:
        return Path(os.path.relpath(file, store)).as_posix()
    except ValueError:  # on another drive
        return file.as_posix()


def _note_of_url(file: Path, store: Path) -> str:
    if not (isinstance(file, RemotePath) and isinstance(store, RemotePath)):
        return file.as_posix()
    a, b = file.parts, store.parts
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    if same < 2:  # in another bucket
        return str(file)
    return "/".join([".."] * (len(b) - same) + list(a[same:]))


def noted(note: str, store: Path) -> Path:
    """Give the path that was noted, for the path of a store, which is resolved."""
    path = as_path(note)
    if isinstance(path, RemotePath) or path.is_absolute():
        return path
    joined = store / path
    return joined.resolve() if isinstance(joined, RemotePath) else Path(os.path.normpath(joined))
