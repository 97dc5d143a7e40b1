"""The store: spikes and features of many recordings in one Zarr v3 folder.

The layout is specified in store/LAYOUT.md and store/schema.json, and a test reads a small store
that an earlier version made.

Nothing half-written is ever seen: a group is written aside, read back and compared, marked as
published, forced out to the disk and then renamed into place. Readers refuse what is not marked,
and all attributes and arrays whose sha256 is not the one recorded beside them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from toptune.errors import InputError, ToptuneError
from toptune.features.extractor import FeatureRows
from toptune.features.table import FeatureTable, RecordingInfo, View
from toptune.heads.streaming import Block, Features, below_each_other, in_one_block
from toptune.machine.display import count, summary_html, summary_line
from toptune.machine.remote import as_path
from toptune.params import content_key
from toptune.recordings.trains import (
    RecordingFacts,
    Segment,
    Spikes,
    SpikeTrains,
    TrainingFacts,
    WeightsSource,
    check_trains,
)
from toptune.store.groups import (
    SUM,
    UNREADABLE,
    DamagedError,
    check_group,
    check_names,
    check_plain,
    published,
    read_array,
    read_attributes,
    read_length,
    read_shape,
    write_attributes,
    write_group,
)
from toptune.store.places import LocalPlace, note_of, noted, place_of

FORMAT = "toptune"
VERSION = 1
# The root's attribute that says where the devices file is.
_DEVICES = "devices_file"
# File that says of what shape features are.
_SHAPE = "features/zarr.json"
# Features of stores that do not say what computed them are of this precision.
_UNSAID_PRECISION = "float32"


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Features of one kind: what drew the windows and what described them."""

    key: str  # 16 hex digits of `params`
    params: dict[str, Any]  # JSON-able: windows, picture, backbone, weights' sha256, input size

    @classmethod
    def of(cls, params: dict[str, Any]) -> FeatureSet:
        """Name a set by its parameters."""
        return cls(key=content_key({"features": params, "version": VERSION}), params=params)

    @property
    def description(self) -> str:
        """One line for people; words of it choose a set on the command line."""
        p = self.params
        picture, windows, backbone = p["picture"], p["windows"], p["backbone"]
        axis = f" axis {picture['count_axis']}" if picture["kind"] == "histogram" else ""
        return (
            f"{picture['kind']}{axis}, {windows['width_s']:g} s every {windows['stride_s']:g} s,"
            f" {backbone['name']}, {backbone['weights']} weights {backbone['sha256'][:8]}"
        )


def recording_name(written: str) -> str:
    """Name of a recording's group: the path as the devices file writes it, made safe and unique."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", written).strip("._") or "recording"
    return f"{slug[-80:]}-{hashlib.sha256(written.encode()).hexdigest()[:8]}"


def spikes_key(sha256: str, settings: dict[str, Any]) -> str:
    """Name a recording's spikes by the sha256 of its bytes and the settings of detection."""
    return content_key({"input": sha256, "settings": settings, "version": VERSION})


def features_key(spikes: str, feature_set: str) -> str:
    """Name a recording's features by the keys of its spikes and of the set."""
    return content_key({"spikes": spikes, "features": feature_set})


class FeatureStore:
    """An open store.

    Parameters
    ----------
    path
        The folder or its URL, by custom ``*.zarr``.

    Raises
    ------
    InputError
        The folder is missing, no toptune store, or of a later format version.
    """

    def __init__(self, path: Path | str) -> None:
        self.place = place_of(as_path(path))
        self.path = self.place.path
        self._attributes = _read_root(self.place)
        self.settings: dict[str, Any] = self._attributes["settings"]
        #: Who writes, in the names of what is not published yet.
        self.writer = str(os.getpid())
        self._computed: dict[str, str] = {}  # by feature set, a recording that had it

    @classmethod
    def create(
        cls, path: Path | str, settings: dict[str, Any], *, replace: bool = False
    ) -> FeatureStore:
        """Make an empty store whose spikes will all be detected with `settings` (JSON-able).

        With `replace` a store may stand there; it is removed when the new one is in its place.
        """
        place = place_of(as_path(path))
        if place.exists():
            if not replace:
                raise InputError(f"{place.path} exists already: choose another store or remove it")
            _read_root(place)  # refuses what is no store
        place.start({"format": FORMAT, "version": VERSION, "settings": settings, "recordings": []})
        return cls(path)

    @classmethod
    def at(cls, path: str | None) -> FeatureStore | None:
        """Open a store that a result names; None where it names none, or nothing is there.

        It is an InputError if what is there is no store, or a server cannot be asked.
        """
        if path is None or not place_of(as_path(path)).exists():
            return None
        return cls(path)

    def __repr__(self) -> str:
        return summary_line(f"FeatureStore {self.path}", self._told())

    def _repr_html_(self) -> str:
        title, told = f"FeatureStore {self.path}", self._told()
        try:
            told += [f"features: {one.description}" for one in self.feature_sets()]
            rows = [(info.device, info.label, info.name) for info in self.recordings]
        except ToptuneError as error:
            return summary_html(title, [*told, f"damaged: {error}"])
        header = ("device", "label", "recording")
        return summary_html(title, told, header, rows, n_rows=len(rows))

    def _told(self) -> list[str]:
        try:
            infos = self.recordings
        except ToptuneError:
            return ["its list of recordings is damaged"]
        devices = count(len({info.device for info in infos}), "device")
        labels = count(len({info.label for info in infos}), "label")
        return [f"{count(len(infos), 'recording')} of {devices} with {labels}"]

    @property
    def recordings(self) -> tuple[RecordingInfo, ...]:
        """What the last devices file listed, in its order."""
        listed: Any = self._attributes["recordings"]
        try:
            infos = tuple(RecordingInfo(**entry) for entry in listed)
            check_names(self.path, [info.name for info in infos])
        except TypeError as error:
            raise InputError(
                f"{self.path}: its list of recordings is damaged ({error}): run extract again"
            ) from None
        return infos

    @property
    def devices_file(self) -> Path | None:
        """The devices file of the last extraction; None in stores of an earlier toptune."""
        note = self._attributes.get(_DEVICES)
        return noted(note, self.path.resolve()) if note else None

    def list_recordings(
        self, recordings: tuple[RecordingInfo, ...], devices_file: Path | None = None
    ) -> None:
        """Write down what the devices file lists, and where it is; later reads follow it."""
        entries = [
            {"name": r.name, "device": r.device, "label": r.label, "columns": r.columns}
            for r in recordings
        ]
        changed = {**self._attributes, "recordings": entries}
        if devices_file is not None:
            changed[_DEVICES] = note_of(devices_file.resolve(), self.path.resolve())
        if changed != self._attributes:
            self.place.replace_root(changed)
            self._attributes = changed

    # --- spikes

    def spikes_info(self, name: str) -> dict[str, Any] | None:
        """Attributes of a recording's published spikes; None where there are none."""
        return self._published(name, f"{name}/spikes")

    def spikes_infos(self, names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        """`spikes_info` of several recordings, by their names."""
        wanted = list(names)
        self.place.look_ahead((name, f"{name}/spikes") for name in wanted)
        return {name: self.spikes_info(name) for name in wanted}

    def write_spikes(self, name: str, trains: SpikeTrains, info: dict[str, Any]) -> None:
        """Publish a recording's spikes; what stood there before, features too, is replaced.

        `name` is from `recording_name`; `info`, JSON-able, has at least ``key`` and ``input``.
        """
        attributes = {
            **info,
            "channel_labels": list(trains.channel_labels),
            "sampling_rate_hz": trains.sampling_rate_hz,
        }
        segments = np.array([tuple(s) for s in trains.segments], np.float64).reshape(-1, 3)
        arrays: dict[str, NDArray[Any]] = {
            **dict(zip(Spikes._fields, trains.spikes, strict=True)),
            "threshold_uv": trains.threshold_uv,
            "segments": segments,
        }
        with self.place.naming(), self.place.aside(self.writer) as aside:
            _make_plain(aside)
            write_group(aside / "spikes", arrays, attributes)
            self.place.publish(aside, name)

    def read_spikes(self, name: str) -> SpikeTrains:
        """Read a recording's published spikes back."""
        info = self._spikes_there(name)
        group = f"{name}/spikes"
        with self._steady(group, info) as read:
            segments = read("segments")
            arrays = [read(field) for field in Spikes._fields]
            threshold_uv = read("threshold_uv")
        try:
            trains = SpikeTrains(
                spikes=Spikes(*arrays),
                channel_labels=tuple(info["channel_labels"]),
                sampling_rate_hz=float(info["sampling_rate_hz"]),
                segments=tuple(Segment(int(a), int(n), float(s)) for a, n, s in segments),
                threshold_uv=threshold_uv,
            )
            check_trains(self.path / group, trains)
        except (*UNREADABLE, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise DamagedError(self.path / group, error) from None
        return trains

    # --- features

    def features_info(self, name: str, key: str) -> dict[str, Any] | None:
        """Attributes of a recording's published features of one set; None where there are none."""
        return self._published(*_nested(name, key))

    def features_infos(self, names: Iterable[str], key: str) -> dict[str, dict[str, Any] | None]:
        """`features_info` of several recordings, by their names."""
        wanted = list(names)
        self.place.look_ahead(_nested(name, key) for name in wanted)
        return {name: self.features_info(name, key) for name in wanted}

    def write_features(
        self,
        name: str,
        features: NDArray[np.float32],
        start_s: NDArray[np.float64],
        feature_set: FeatureSet,
        info: dict[str, Any],
    ) -> None:
        """Publish one recording's features of one set.

        The recording's spikes must be published. Features, (windows, d), are refused if not finite;
        `start_s`, (windows,), is since the recording's start. `info`, JSON-able, has at least
        ``key``, which covers the input and all parameters.
        """
        if not np.isfinite(features).all():
            raise ToptuneError(f"{name}: features are not finite, nothing was written")
        self.refuse_mixture(feature_set, info)
        arrays: dict[str, NDArray[Any]] = {"features": features, "start_s": start_s}
        attributes = {**info, "params": feature_set.params}
        with self.place.naming(), self.place.aside(self.writer) as aside:
            _make_plain(aside)
            write_group(aside / feature_set.key, arrays, attributes)
            self.place.publish_features(aside, name, feature_set.key)
        self._computed[feature_set.key] = name

    def refuse_mixture(self, feature_set: FeatureSet, info: dict[str, Any]) -> None:
        """Refuse features that would be computed otherwise than those of the set that are there.

        `info` is with what they would be published. The InputError names the difference, in device,
        engine or precision.
        """
        for name in self._computed_first(feature_set.key):
            there = self.features_info(name, feature_set.key)
            if there is not None:
                self._computed[feature_set.key] = name
                infos = {name: there, "the next": info}
                refuse_mixed(infos, feature_set.description, self.path)
                return

    def _computed_first(self, key: str) -> Iterator[str]:
        """Name the listed recordings, one that had features of a set the last time before all."""
        if key in self._computed:
            yield self._computed[key]
        yield from self.place.holding(key, [recording.name for recording in self.recordings])

    def read_features(self, name: str, key: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Read a recording's features (windows, d) float32 and window starts in seconds."""
        info = self._features_there(name, key)
        with self._steady(_nested(name, key)[-1], info) as read:
            return read("features"), read("start_s")

    def _streamed(self, name: str, key: str) -> tuple[Features, NDArray[np.float64]]:
        """Do what `read_features` does, but leave the features where they are."""
        info, group = self._features_there(name, key), _nested(name, key)[-1]

        def features() -> NDArray[np.float32]:
            with self._steady(group, info, "features") as read:
                values: NDArray[np.float32] = read("features")
            return values

        with self._steady(group, info, "start_s", _SHAPE) as read:
            start_s = read("start_s")
            n_rows, n_columns = self._shape_of_features(group, info)
        return in_one_block(Block(n_rows, features), n_columns), start_s

    def size_of(self, feature_set: FeatureSet) -> int:
        """Bytes that the features of all recordings take in memory, without reading them."""

        def size(found: tuple[str, dict[str, Any] | None]) -> int:
            name, info = found
            if info is None:
                return 0
            group = _nested(name, feature_set.key)[-1]
            with self._steady(group, info, _SHAPE):
                n_rows, n_columns = self._shape_of_features(group, info)
            return 4 * n_rows * n_columns

        infos = self.features_infos((r.name for r in self.recordings), feature_set.key)
        return sum(self.place.each(size, infos.items()))

    def _shape_of_features(self, group: str, info: dict[str, Any]) -> tuple[int, int]:
        folder, chunks = self.place.folder / group, self.place.has_all
        shape = read_shape(folder, "features", info, chunks=chunks)
        if len(shape) != 2:
            raise DamagedError(folder / "features", f"its shape is {shape}, not windows x values")
        n_rows, n_columns = shape
        return n_rows, n_columns

    def feature_sets(self) -> tuple[FeatureSet, ...]:
        """All kinds of features that any listed recording has."""
        found: dict[str, FeatureSet] = {}
        names = [r.name for r in self.recordings]
        for name, keys in zip(names, self.place.each(self.place.sets_of, names), strict=True):
            for key in keys:
                info = None if key in found else self.features_info(name, key)
                if info is not None:
                    folder = self.path / _nested(name, key)[-1]
                    found[key] = self._feature_set(folder, info.get("params"))
        return tuple(found.values())

    def _feature_set(self, folder: Path, params: Any) -> FeatureSet:
        """See that a set's parameters are whole and are those that name it."""
        try:
            made = FeatureSet.of(params)
            _ = made.description
        except (*UNREADABLE, RecursionError) as error:
            raise DamagedError(folder, error) from None
        if made.key != folder.name:
            raise DamagedError(folder, f"its parameters are those of {made.key}")
        return made

    def choose(self, words: str | None = None) -> FeatureSet:
        """Find the one feature set that is meant.

        `words` are a key's beginning, or words of the set's description; None where there is only
        one.
        """
        sets = self.feature_sets()
        wanted = _words(words or "")
        by_key = [s for s in sets if words and s.key.startswith(words)]
        found = by_key or [s for s in sets if all(w in s.description.lower() for w in wanted)]
        # "raster" is a part of "sorted_raster", too.
        whole = [s for s in found if {*wanted} <= {*_words(s.description)}]
        found = whole if len(whole) == 1 and not by_key else found
        if len(found) == 1:
            return found[0]
        if not sets:
            raise InputError(f"{self.path} holds no features yet: run `extract` first")
        listed = "; ".join(f"{s.key[:8]} = {s.description}" for s in sets)
        which = "several feature sets" if words is None else f"{len(found)} sets like {words!r}"
        raise InputError(
            f"{self.path} holds {which}: choose one by `features` (several are fused) from {listed}"
        )

    def table(
        self, feature_set: FeatureSet, *, allow_incomplete: bool = False, stream: bool = False
    ) -> FeatureTable:
        """Put the windows of all listed recordings together.

        With `stream` their features stay in the store, and are read whenever they are looked at.

        Recordings without a whole window stay listed in `provenance["too_short"]`, those left out
        because they have no features, with `allow_incomplete`, in `provenance["missing"]`.

        Raises
        ------
        InputError
            A listed recording is not published: the extraction was not finished. Or features were
            not all computed alike.
        """
        found = self.features_infos((r.name for r in self.recordings), feature_set.key)
        infos = {name: info for name, info in found.items() if info is not None}
        missing = [r for r in self.recordings if r.name not in infos]
        if missing and not allow_incomplete:
            devices = ", ".join(sorted({r.device for r in missing}))
            raise InputError(
                f"{self.path}: {len(missing)} of {len(self.recordings)} recordings have no features"
                f" '{feature_set.description}' (devices {devices}), first {missing[0].name}: run"
                " extract again, it goes on where it stopped, or fit the rest with"
                " `allow_incomplete=True`"
            )
        refuse_mixed(infos, feature_set.description, self.path)
        key, inputs = feature_set.key, {name: info["input"] for name, info in infos.items()}
        read = self._streamed if stream else self.read_features
        all_read = self.place.each(lambda name: FeatureRows(*read(name, key)), infos)
        rows = dict(zip(infos, all_read, strict=True))
        made = {key: made_with(infos)}
        return self.assemble(
            feature_set.description, key, feature_set.params, rows, inputs, made_with=made
        )

    def assemble(
        self,
        description: str,
        key: str,
        params: dict[str, Any],
        rows: Mapping[str, FeatureRows],
        inputs: dict[str, Any],
        **provenance: Any,
    ) -> FeatureTable:
        """Put features of one kind together, given with what was read, by listed recordings' names.

        Recordings that lack them are noted as missing. If none has a window, it is an InputError.
        """
        there = [(r, *rows[r.name]) for r in self.recordings if r.name in rows]
        used = [(r, x, t) for r, x, t in there if len(x)]
        if not used:
            raise InputError(f"{self.path}: no recording is as long as a window")
        features = below_each_other([x for _, x, _ in used])
        view = View(description, key, features.shape[1], params)
        return FeatureTable(
            features=features,
            start_s=np.concatenate([t for _, _, t in used]),
            recording=np.repeat(np.arange(len(used)), [len(x) for _, x, _ in used]),
            recordings=tuple(r for r, _, _ in used),
            provenance={
                "format_version": VERSION,
                "settings": self.settings,
                "features": params,
                "features_key": key,
                "inputs": inputs,
                **provenance,
                "too_short": [r.name for r, x, _ in there if not len(x)],
                "missing": [r.name for r in self.recordings if r.name not in rows],
                "views": [view.to_json()],
            },
            views=(view,),
        )

    # --- facts

    def recording_facts(self, name: str) -> RecordingFacts:
        """Tell how a recording was made and how active it was, without reading its spikes."""
        info, group = self._spikes_there(name), f"{name}/spikes"
        with self._steady(group, info, "segments", "sample/zarr.json") as read:
            n_samples = float(read("segments")[:, 1].sum())
            folder, chunks = self.place.folder / group, self.place.has_all
            n_spikes = read_length(folder, "sample", info, chunks=chunks)
        try:
            rate = float(info["sampling_rate_hz"])
            return RecordingFacts(
                name=name,
                sampling_rate_hz=rate,
                n_electrodes=len(info["channel_labels"]),
                n_spikes=n_spikes,
                duration_s=n_samples / rate,
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DamagedError(self.path / group, error) from None

    def training_facts(self, table: FeatureTable) -> TrainingFacts:
        """Tell what a model trained on a table (of this store) should know about itself."""
        names = [r.name for r in table.recordings]
        self.place.look_ahead((name, f"{name}/spikes") for name in names)
        return TrainingFacts(
            recordings=tuple(self.place.each(self.recording_facts, names)),
            weights=tuple(self.weights_source(view.key) for view in table.views),
        )

    def weights_source(self, key: str) -> WeightsSource | None:
        """Where the weights of a feature set came from, by the first recording that knows."""
        for recording in self.recordings:
            info = self.features_info(recording.name, key)
            if info is not None and "weights" in info:
                return WeightsSource(**info["weights"])
        return None

    # --- reading beside a writer

    def _published(self, *groups: str) -> dict[str, Any] | None:
        """Attributes of the last of nested groups, the others without any; None if it is absent."""
        *between, group = groups
        with self.place.naming():
            if not self.place.look(*groups):
                return None
            try:
                for parent in between:
                    check_plain(self.place.folder / parent)
                return published(self.place.folder / group)
            except DamagedError:
                if self.place.look(*groups):
                    raise
                return None  # a writer replaced the recording just now

    def _spikes_there(self, name: str) -> dict[str, Any]:
        info = self.spikes_info(name)
        if info is None:
            raise ToptuneError(f"{self.path}: {name} has no published spikes: run extract again")
        return info

    def _features_there(self, name: str, key: str) -> dict[str, Any]:
        info = self.features_info(name, key)
        if info is None:
            raise ToptuneError(f"{self.path}: {name} has no features {key}: run extract again")
        return info

    @contextmanager
    def _steady(
        self, group: str, info: dict[str, Any], *parts: str
    ) -> Iterator[Callable[[str], Any]]:
        """Give what reads a group's arrays; what a writer replaced meanwhile is not damaged.

        `parts` are those of the group that are read, where it is not all of it.
        """
        with self.place.naming():
            try:
                with self.place.using(group, info, *parts) as folder:
                    yield lambda name: read_array(folder, name, info)
            except ToptuneError:
                folder = self.place.folder / group
                if self.place.look(group) and read_attributes(folder) == info:
                    raise
                raise ToptuneError(
                    f"{self.path / group} was replaced while it was read, by another process that"
                    " extracts: run this again when that has finished"
                ) from None


def _nested(name: str, key: str) -> tuple[str, str, str]:
    """Name the group of a recording's features of one set, after those it lies in."""
    return name, f"{name}/features", f"{name}/features/{key}"


def _words(text: str) -> list[str]:
    return re.findall("[^, ]+", text.lower())


def _make_plain(folder: Path) -> None:
    """Make a group without attributes."""
    folder.mkdir()
    write_attributes(folder, {})


def _read_root(place: LocalPlace) -> dict[str, Any]:
    path = place.path
    if not place.exists():
        raise InputError(f"{path}: no such store: make one with `extract`")
    with place.naming():
        check_group(place.root)
    try:
        root = zarr.open_group(place.root, mode="r", zarr_format=3, use_consolidated=False)
        attributes = dict(root.attrs)
    except (*UNREADABLE, RecursionError) as error:
        if place.has_recordings():
            raise InputError(
                f"{path}: its zarr.json is missing or cannot be read: if it was copied, the copy is"
                " not complete; copy it again"
            ) from None
        text = " ".join(str(error).split())
        raise InputError(
            f"{path}: not a Zarr v3 store that can be read ({text}): name a store made by extract"
        ) from None
    return _checked_root(place, attributes)


def _checked_root(place: LocalPlace, attributes: dict[str, Any]) -> dict[str, Any]:
    path = place.path
    # A flipped bit may turn a name or number into another valid one: only the sum shows that.
    if SUM in attributes:
        _refuse_damage(place)
    if attributes.get("format") != FORMAT:
        raise InputError(f"{path}: a Zarr group, but not a toptune store: name one made by extract")
    if attributes.get("version") != VERSION:
        raise InputError(
            f"{path}: store format version {attributes.get('version')}, this toptune reads"
            f" {VERSION}: use the toptune that wrote it, or extract into a new store"
        )
    attributes = _refuse_damage(place)
    for name, kind in (("settings", dict), ("recordings", list)):
        if not isinstance(attributes.get(name), kind):
            raise InputError(f"{path}: its {name} are damaged: extract into a new store")
    if not isinstance(attributes.get(_DEVICES, ""), str):
        raise InputError(f"{path}: its {_DEVICES} is damaged: extract into a new store")
    return attributes


def _refuse_damage(place: LocalPlace) -> dict[str, Any]:
    try:
        return read_attributes(place.root)
    except DamagedError as error:
        raise InputError(
            f"{place.path / 'zarr.json'} is damaged ({error.cause}): put back a copy of that file,"
            " or extract into another store"
        ) from None


# --- what computed the features of a set
#
# Keys tell bytes, parameters and weights apart, but not what computed: equal parameters give equal
# features except for rounding. Yet a rounding of 16 bits, or of another engine, that coincides with
# the devices of one class is a trace that a classifier can learn. So features of one set must come
# from one kind of device, engine and precision. Versions of programs, and GPUs of one kind, are
# reported but not refused.


def precision_of(info: Mapping[str, Any]) -> str:
    """Name the precision of published features, by their attributes."""
    computed: Mapping[str, str] = info.get("computed") or {}
    return computed.get("precision", _UNSAID_PRECISION)


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Name what may have changed the numbers between two published groups of one feature set.

    Their attributes' ``computed`` is absent in older stores. Gives such as ``precision float16, not
    float32``; None where nothing that counts differs.
    """
    a, b = one.get("computed"), other.get("computed")
    if a is None or b is None:
        p, q = precision_of(one), precision_of(other)
        return None if p == q else f"precision {p}, not {q}"
    for name in ("precision", "engine", "device"):
        # A GPU's name follows its kind: cuda:NVIDIA H100.
        p, q = (str(c.get(name)).partition(":")[0] for c in (a, b))
        if p != q:
            return f"{name} {p}, not {q}"
    return None


def refuse_mixed(infos: Mapping[str, Mapping[str, Any]], description: str, store: object) -> None:
    """Refuse features of one set, by the attributes of each recording's, not all computed alike."""
    first = next(iter(infos), None)
    for name, info in infos.items():
        assert first is not None
        different = difference(info, infos[first])
        if different is not None:
            raise InputError(
                f"{store}: features '{description}' of {name} were computed with {different} as"
                f" those of {first}: extract all of them with the same `device` and `precision`,"
                " into another store or with `overwrite=True`"
            )


def made_with(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Describe who computed a feature set, by the attributes of each recording's features.

    ``computed``: each combination of device, precision and engine that occurs. ``versions``: by
    program, the versions that occur. ``notes``: a line on each that is not one.
    """
    computed = [info["computed"] for info in infos.values() if info.get("computed")]
    versions: dict[str, set[str]] = {}
    for info in infos.values():
        for program, version in info.get("versions", {}).items():
            versions.setdefault(program, set()).add(version)
    devices = sorted({str(one["device"]) for one in computed})
    notes = [
        f"some features were made with {program} {', some with '.join(sorted(several))}"
        for program, several in sorted(versions.items())
        if len(several) > 1
    ]
    if len(devices) > 1:
        notes.append(f"some features were computed on {', some on '.join(devices)}")
    return {
        "computed": [dict(pairs) for pairs in sorted({tuple(sorted(c.items())) for c in computed})],
        "versions": {program: sorted(several) for program, several in sorted(versions.items())},
        "notes": notes,
    }
