"""A stream of the Lab Streaming Layer as a source, through pylsl, which brings the library."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.errors import InputError, MissingPackagesError
from toptune.live.blocks import SourceInfo
from toptune.live.receiving import Received, Said
from toptune.live.stamps import Stamped, StampedOrdering
from toptune.params import FASTEST_HZ, Waiting
from toptune.recordings.trains import check_labels

#: What the name of such a source begins with.
PREFIX = "lsl:"
# How long streams are looked for, at first and each time when one was lost.
_FIND_S, _AGAIN_S = 5.0, 1.0
_OPEN_S = 10.0
# How often samples are taken, how many at most, and how often the clocks are compared.
_EVERY_S, _MOST, _COMPARED_S = 0.01, 4096, 5.0
# Seconds of samples that the library keeps, where they are not taken.
_BUFFER_S = 60
_MICROVOLTS = {
    "microvolts": 1.0, "microvolt": 1.0, "uv": 1.0, "µv": 1.0, "μv": 1.0,
    "millivolts": 1e3, "millivolt": 1e3, "mv": 1e3, "volts": 1e6, "volt": 1e6, "v": 1e6,
}  # fmt: skip
# The library writes what it does to the standard error output unless told otherwise.
_QUIET = "[log]\nlevel = -3\n"
_CONFIGURATIONS = ("lsl_api.cfg", "~/lsl_api/lsl_api.cfg", "/etc/lsl_api/lsl_api.cfg")


class _Described(NamedTuple):
    """What a stream says of itself."""

    labels: tuple[str, ...]
    gain_uv: NDArray[np.float64]
    rate: float
    format: int
    assumed: tuple[str, ...]


class LslSource(Received):
    """The samples of a stream from the moment it is opened.

    Samples are placed by their time stamps (`toptune.live.stamps`), brought to this machine's clock
    by the library's measurement of the difference. Where the stream is lost, it is looked for again
    by its name and source until it is given up.

    Parameters
    ----------
    name
        The stream's name; empty for the only stream there is.
    waiting
        How long what does not come is waited for.

    Raises
    ------
    InputError
        No such stream is there, or several; or it has no regular rate, no numbers or an unknown
        unit.
    MissingPackagesError
        pylsl is not installed.
    """

    def __init__(self, name: str, waiting: Waiting) -> None:
        self._lsl = _library()
        self._name = PREFIX + name
        found = self._choose(name)
        self._source_id, self._stream = found.source_id(), found.name()
        self._inlet = self._open(found)
        self._described = _described(self._inlet, self._name, self._lsl)
        self._clock = _Clock(self._inlet)
        info = SourceInfo(
            name=self._name if name else PREFIX + self._stream,
            channel_labels=self._described.labels,
            sampling_rate_hz=self._described.rate,
        )
        order = StampedOrdering(info.sampling_rate_hz, patience_s=waiting.patience_s)
        super().__init__(info, order, waiting)
        self._begin()

    def _choose(self, name: str) -> Any:
        found = self._lsl.resolve_byprop("name", name, 1, _FIND_S) if name else []
        if len(found) == 1:
            return found[0]
        there = self._lsl.resolve_streams(1.0)
        found = [one for one in there if not name or one.name() == name]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(sorted(repr(PREFIX + one.name()) for one in there)) or "none at all"
        many = f"{len(found)} streams" if found else "no stream"
        which = f" of the name {name!r}" if name else ""
        raise InputError(f"{many}{which} found in the Lab Streaming Layer; there are: {listed}")

    def _open(self, found: Any) -> Any:
        inlet = self._lsl.StreamInlet(found, max_buflen=_BUFFER_S, recover=False)
        try:
            inlet.open_stream(_OPEN_S)
        except RuntimeError as error:
            raise InputError(f"{self._name}: cannot be opened ({error})") from None
        return inlet

    def _pieces(self) -> Iterator[Stamped | Said]:
        for text in self._described.assumed:
            yield Said("assumed", text)
        while not self._closing.is_set():
            try:
                values, stamps = self._inlet.pull_chunk(
                    timeout=0.1, max_samples=_MOST, min_samples=1, as_numpy=True
                )
            except self._lsl.util.LostError:
                yield Said("stopped", "the stream is lost; it is looked for again")
                changed = self._find_again()
                if changed:
                    yield Said("changed", f"{changed}: the source ends")
                    return
                continue
            if not len(stamps):
                continue
            received_s = time.monotonic()
            yield from self._clock.compare()
            scaled = values.T * self._described.gain_uv[:, None]
            with np.errstate(over="ignore"):
                samples = np.ascontiguousarray(scaled, np.float32)
            yield Stamped(samples, stamps + self._clock.ahead_s, received_s)
            if len(stamps) < _MOST:
                self._closing.wait(_EVERY_S)

    def _find_again(self) -> str:
        """Open the stream anew; say what is no longer what it was, else nothing."""
        while not self._closing.is_set():
            found = self._lsl.resolve_byprop("name", self._stream, 1, _AGAIN_S)
            found = [one for one in found if one.source_id() == self._source_id]
            if not found:
                continue
            try:
                self._inlet = self._open(found[0])
                now = _described(self._inlet, self._name, self._lsl)
                self._clock = _Clock(self._inlet)
            except (InputError, RuntimeError):
                self._closing.wait(_AGAIN_S)
                continue
            return _difference(self._described, now)
        return ""

    def _let_go(self) -> None:
        self._inlet = None


class _Clock:
    """By how much this machine's clock is ahead of the sender's, measured now and then."""

    def __init__(self, inlet: Any) -> None:
        self._inlet = inlet
        self._failed = self._told = False
        self.ahead_s = 0.0
        self._compare()

    def compare(self) -> Iterator[Said]:
        """Measure again if it is time; say so once where it cannot be."""
        if time.monotonic() - self._compared_s >= _COMPARED_S:
            self._compare()
        if self._failed and not self._told:
            self._told = True
            yield Said(
                "clock",
                "the sender's clock cannot be compared with this machine's: its time stamps are"
                " taken as they are",
            )

    def _compare(self) -> None:
        try:
            # The first takes about a second; later ones are at hand.
            self.ahead_s = self._inlet.time_correction(2.0)
        except RuntimeError:
            self._failed = True
        self._compared_s = time.monotonic()


def _described(inlet: Any, name: str, lsl: Any) -> _Described:
    """Read what a stream says of itself; refuse what is no voltage of electrodes."""
    try:
        info = inlet.info(_OPEN_S)
    except RuntimeError as error:
        raise InputError(f"{name}: does not describe itself ({error})") from None
    n, rate, kind = info.channel_count(), info.nominal_srate(), info.channel_format()
    if not 0 < rate <= FASTEST_HZ:
        raise InputError(f"{name}: has no regular sampling rate ({rate:g} Hz)")
    if kind in (lsl.cf_string, lsl.cf_undefined):
        raise InputError(f"{name}: sends texts, not numbers")
    assumed = []
    labels = tuple((one or "").strip() for one in info.get_channel_labels() or ())
    if len(labels) != n or len(set(labels)) != n or not all(labels):
        labels = tuple(str(k + 1) for k in range(n))
        assumed.append("the stream does not name its electrodes: they are numbered")
    check_labels(Path(name), labels)
    units = [(one or "").strip() for one in info.get_channel_units() or ()] or [""] * n
    if not any(units):
        if kind not in (lsl.cf_float32, lsl.cf_double64):
            raise InputError(
                f"{name}: sends whole numbers and does not say their unit: describe its channels"
                " with the unit microvolts"
            )
        assumed.append("the stream does not say its unit: microvolts are assumed")
        units = ["microvolts"] * n
    return _Described(labels, _gains(name, labels, units), rate, kind, tuple(assumed))


def _gains(name: str, labels: tuple[str, ...], units: list[str]) -> NDArray[np.float64]:
    for label, unit in zip(labels, units, strict=True):
        if unit.lower() not in _MICROVOLTS:
            raise InputError(
                f"{name}: channel {label} is in {unit!r}, not in microvolts, millivolts or volts"
            )
    return np.array([_MICROVOLTS[unit.lower()] for unit in units])


def _difference(before: _Described, now: _Described) -> str:
    if len(now.labels) != len(before.labels):
        return f"it has {len(now.labels)} channels now, not {len(before.labels)}"
    if now.rate != before.rate:
        return f"it is sampled at {now.rate:g} Hz now, not at {before.rate:g} Hz"
    if now.labels != before.labels or (now.gain_uv != before.gain_uv).any():
        return "its channels have other names or units now"
    return ""


def _library() -> Any:
    """Import pylsl, and let its library be quiet unless the user has configured it."""
    try:
        import pylsl
    except (ImportError, RuntimeError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise MissingPackagesError(
            f"a stream of the Lab Streaming Layer is read through pylsl ({said}): pip install"
            " 'toptune[live]' (from a checkout: pip install '.[live]')"
        ) from None
    configured = "LSLAPICFG" in os.environ
    if not configured and not any(Path(one).expanduser().is_file() for one in _CONFIGURATIONS):
        # Without effect where the library has been used before.
        pylsl.set_config_content(_QUIET)
    return pylsl
