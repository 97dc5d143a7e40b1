"""Verification of a whole store: every attribute, every array and every file against its checksum.

Nothing is changed, but by `remove_damaged`, which takes out what extraction can make again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from toptune.errors import ToptuneError
from toptune.params import SpikeSettings
from toptune.store.feature_store import FeatureSet, FeatureStore, features_key, spikes_key
from toptune.store.groups import DamagedError, check_plain, file_sums, published, read_array
from toptune.store.places import ASIDE, place_of
from toptune.store.session import alone

#: ``damaged``: refused when read. ``missing``: listed, but not there. ``note``: harmless.
Kind = Literal["damaged", "missing", "note"]

_UNFINISHED = "being written, or left by a process that was killed"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about a store that is not as it should be."""

    kind: Kind
    place: str  # path inside the store, with /
    cause: str
    # To extract again, as the devices file wrote it where that is known, otherwise its name in the
    # store; None where none must be.
    recording: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoreReport:
    """What verifying a store found."""

    path: Path
    n_recordings: int  # listed
    n_groups: int  # published groups that were verified
    n_bytes: int  # of their files
    n_unsummed: int  # of an earlier toptune: their arrays have sums, but not their attributes
    findings: tuple[Finding, ...]  # in the order of the recordings

    @property
    def is_sound(self) -> bool:
        """Whether all that is listed is there and whole."""
        return all(f.kind == "note" for f in self.findings)

    @property
    def extract_again(self) -> tuple[str, ...]:
        """Recordings that must be extracted again, each once."""
        named = (f.recording for f in self.findings if f.kind != "note")
        return tuple(dict.fromkeys(r for r in named if r is not None))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "store": str(self.path),
            "sound": self.is_sound,
            "n_recordings": self.n_recordings,
            "n_groups": self.n_groups,
            "n_bytes": self.n_bytes,
            "n_groups_without_sums": self.n_unsummed,
            "extract_again": list(self.extract_again),
            "findings": [asdict(f) for f in self.findings],
        }


def check_store(
    path: Path | str, progress: Callable[[int, int], object] | None = None
) -> StoreReport:
    """Verify a whole store; `progress` is told how many recordings are done, and of how many.

    It is an InputError if there is no store, or if what tells its settings and recordings is
    damaged itself.
    """
    check = _Check(FeatureStore(path))
    names = [r.name for r in check.store.recordings]
    for done, name in enumerate(names, 1):
        check.recording(name)
        if progress is not None:
            progress(done, len(names))
    check.completeness(names)
    check.strangers(set(names))
    return StoreReport(
        path=check.store.path,
        n_recordings=len(names),
        n_groups=check.n_groups,
        n_bytes=check.n_bytes,
        n_unsummed=check.n_unsummed,
        findings=tuple(check.findings),
    )


def remove_damaged(report: StoreReport) -> tuple[str, ...]:
    """Take damaged groups out of a store, so that extraction makes them again; gives their places.

    It is an InputError if another process is writing into the store.
    """
    if all(f.kind != "damaged" for f in report.findings):
        return ()
    with alone(report.path):
        # Looked at again, since others may have written since then.
        again = check_store(report.path)
        places = dict.fromkeys(
            _made_together(f.place) for f in again.findings if f.kind == "damaged" and f.recording
        )
        there = place_of(report.path)
        for place in places:
            there.remove(place)
    return tuple(places)


def _made_together(place: str) -> str:
    """Name the smallest part that extraction makes again: a feature set or a recording."""
    name, *rest = place.split("/")
    return "/".join([name, *rest[:2]]) if rest[:1] == ["features"] and rest[1:] else name


class _Check:
    """What has been found so far."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.findings: list[Finding] = []
        self.n_groups = self.n_bytes = self.n_unsummed = 0
        self.sets: dict[str, set[str]] = {}

    def recording(self, name: str) -> None:
        """Verify one recording; twice, where it seems damaged, for it may just be replaced."""
        before = len(self.findings), self.n_groups, self.n_bytes, self.n_unsummed
        self._recording(name)
        if any(f.kind == "damaged" for f in self.findings[before[0] :]):
            n_findings, self.n_groups, self.n_bytes, self.n_unsummed = before
            del self.findings[n_findings:]
            self._recording(name)

    def _recording(self, name: str) -> None:
        place = self.store.place
        with place.naming(), place.whole(name) as folder:
            self._in_folder(name, folder)
        for group in place.unfinished:
            self._add("note", group, _UNFINISHED)

    def _in_folder(self, name: str, folder: Path) -> None:
        if not folder.exists():
            self._add("missing", name, "it is listed, but not in the store", name)
            return
        spikes = None
        with self._noting(name, name):
            check_plain(folder)
        with self._noting(f"{name}/spikes", name):
            spikes = self._group(folder / "spikes", self._spikes_problem)
        written = name if spikes is None else str(spikes["input"]["recording"])
        if not (folder / "features").exists():
            return
        with self._noting(f"{name}/features", written):
            check_plain(folder / "features")
        for group in sorted(p for p in (folder / "features").iterdir() if p.is_dir()):
            place = f"{name}/features/{group.name}"
            with self._noting(place, written):
                self._group(group, partial(_features_problem, spikes, group.name))
                self.sets.setdefault(group.name, set()).add(name)

    def completeness(self, names: list[str]) -> None:
        """Name recordings that lack features which others have."""
        for key, having in self.sets.items():
            for name in names:
                place = f"{name}/features/{key}"
                if name not in having and not self._mentioned(name, place):
                    self._add("missing", place, "other recordings have these features", name)

    def strangers(self, listed: set[str]) -> None:
        """Name what does not belong to the data set."""
        for name in self.store.place.names():
            if name.startswith(ASIDE):
                self._add("note", name, _UNFINISHED)
            elif name not in listed and self.store.place.holds_recording(name):
                self._add("note", name, "the devices file no longer lists it")
            elif name not in {"zarr.json", *listed}:
                self._add("note", name, "not written by toptune")

    def _group(
        self, folder: Path, problem: Callable[[dict[str, Any]], str | None]
    ) -> dict[str, Any]:
        """Verify a published group and give its attributes."""
        info = published(folder)
        for array in info["sha256"]:
            read_array(folder, array, info)
        self.n_groups += 1
        here = file_sums(folder)
        self.n_bytes += sum((folder / p).stat().st_size for p in (*here, "zarr.json"))
        if "files" not in info:
            self.n_unsummed += 1
        elif here != info["files"]:
            extra = sorted({*here} - {*info["files"]})
            raise DamagedError(folder, f"{extra[0]} does not belong to it")
        cause = problem(info)
        if cause is not None:
            raise DamagedError(folder, cause)
        return info

    def _spikes_problem(self, info: dict[str, Any]) -> str | None:
        settings = SpikeSettings.from_json(self.store.settings)
        # What the recording's line of the devices file says of it alone.
        own = replace(settings, **info["input"].get("opening", {}))
        expected = spikes_key(info["input"]["sha256"], own.to_json())
        return None if info["key"] == expected else "its spikes were not found with these settings"

    @contextmanager
    def _noting(self, place: str, recording: str) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            inside = error.place.relative_to(self.store.place.folder).as_posix()
            self._add("damaged", inside, self.store.place.told(error.cause), recording)
        except ToptuneError as error:
            self._add("damaged", place, self.store.place.told(str(error)), recording)

    def _mentioned(self, name: str, place: str) -> bool:
        bad = [f.place for f in self.findings if f.kind != "note"]
        return any(p in (name, f"{name}/spikes") or p.startswith(place) for p in bad)

    def _add(self, kind: Kind, place: str, cause: str, recording: str | None = None) -> None:
        self.findings.append(Finding(kind=kind, place=place, cause=cause, recording=recording))


def _features_problem(spikes: dict[str, Any] | None, key: str, info: dict[str, Any]) -> str | None:
    if FeatureSet.of(info["params"]).key != key:
        return "its parameters are not those that its name stands for"
    if spikes is None:
        return None
    if info["key"] != features_key(spikes["key"], key):
        return "it was not made from the spikes beside it"
    return None
