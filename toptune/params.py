"""Parameters of every stage: frozen, keyword-only, unit-suffixed, checked once.

What enters: numbers and names from the command line, Python or JSON.
What leaves: values that stages trust without checking again, and for each a key (16 hex digits)
that names its outputs: equal parameters, equal key.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from toptune.errors import InputError

Alignment = Literal["largest", "negative"]
Noise = Literal["smallest_sd", "mad", "fixed"]
PictureKind = Literal["histogram", "raster"]


def content_key(value: Any) -> str:
    """Name a JSON-able value by its content: the first 16 hex digits of its sha256."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(owner: object, name: str, ok: bool, rule: str) -> None:
    if not ok:
        value = getattr(owner, name)
        raise InputError(f"{type(owner).__name__}.{name} must be {rule}, got {value!r}")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _Params:
    """What all parameter classes share: a key, and JSON that refuses unknown names."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """16 hex digits; equal parameters give an equal key."""
        return content_key({type(self).__name__: self.to_json()})

    def to_json(self) -> dict[str, Any]:
        """Plain values that ``from_json`` turns back into an equal object."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # every subclass is a dataclass

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; an unknown name is an error, never ignored."""
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # every subclass is a dataclass
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(
                f"{cls.__name__} has no parameter {unknown[0]!r}; it has {', '.join(known)}"
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ptsd(_Params):
    """Precision Timing Spike Detection (Maccione et al. 2009, J. Neurosci. Methods 177:241-249).

    Parameters
    ----------
    threshold_sd
        Differential (peak-to-peak) threshold, in noise standard deviations.
    lifetime_ms
        Peak lifetime period: the longest a peak and its opposite peak may be apart.
    refractory_ms
        The shortest time between two spikes of one channel.
    overshoot_ms
        How far the window is extended, once, when the opposite peak lies on its edge.
    alignment
        Which of the two peaks dates the spike: ``largest`` in absolute value, or ``negative``.
    noise
        ``smallest_sd``: the smallest SD of 30 windows of 200 ms; ``mad``: MAD / 0.6745 over the
        recording; ``fixed``: no estimate, `threshold_uv` is the threshold.
    threshold_uv
        The peak-to-peak threshold in microvolts; only with, and required by, ``noise="fixed"``.
    """

    threshold_sd: float = 8.0
    lifetime_ms: float = 2.0
    refractory_ms: float = 1.0
    overshoot_ms: float = 0.5
    alignment: Alignment = "largest"
    noise: Noise = "smallest_sd"
    threshold_uv: float | None = None

    def __post_init__(self) -> None:
        for name in ("threshold_sd", "lifetime_ms"):
            value = getattr(self, name)
            _check(self, name, _finite(value) and value > 0, "above 0")
        for name in ("refractory_ms", "overshoot_ms"):
            value = getattr(self, name)
            _check(self, name, _finite(value) and value >= 0, "0 or above")
        choices = get_args(Alignment)
        _check(self, "alignment", self.alignment in choices, f"one of {', '.join(choices)}")
        choices = get_args(Noise)
        _check(self, "noise", self.noise in choices, f"one of {', '.join(choices)}")
        if self.noise == "fixed":
            value = self.threshold_uv
            _check(self, "threshold_uv", _finite(value) and value > 0, "above 0 with noise='fixed'")  # type: ignore[operator]  # _finite refuses None
        else:
            _check(self, "threshold_uv", self.threshold_uv is None, "None unless noise='fixed'")


@dataclass(frozen=True, kw_only=True, slots=True)
class HighPass(_Params):
    """Causal Butterworth high-pass filter; ``cutoff_hz=0`` turns it off.

    Parameters
    ----------
    cutoff_hz
        The -3 dB frequency; must lie below half the sampling rate of what is filtered.
    order
        Filter order, 1 to 8.
    """

    cutoff_hz: float = 300.0
    order: int = 2

    def __post_init__(self) -> None:
        _check(self, "cutoff_hz", _finite(self.cutoff_hz) and self.cutoff_hz >= 0, "0 or above")
        ok = isinstance(self.order, int) and 1 <= self.order <= 8
        _check(self, "order", ok, "a whole number from 1 to 8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows(_Params):
    """Sliding windows over a recording.

    Parameters
    ----------
    width_s
        Length of a window; whole bins.
    stride_s
        From one window's start to the next; whole bins.
    bin_ms
        Bins are counted from the recording's start.
    """

    width_s: float = 120.0
    stride_s: float = 5.0
    bin_ms: float = 10.0

    def __post_init__(self) -> None:
        _check(self, "bin_ms", _finite(self.bin_ms) and self.bin_ms > 0, "above 0")
        for name in ("width_s", "stride_s"):
            value = getattr(self, name)
            _check(self, name, _finite(value) and value > 0, "above 0")
            bins = value * 1000 / self.bin_ms
            whole = round(bins) >= 1 and abs(bins - round(bins)) < 1e-6
            _check(self, name, whole, f"a whole number of {self.bin_ms:g} ms bins")

    @property
    def width_bins(self) -> int:
        """Bins in a window."""
        return round(self.width_s * 1000 / self.bin_ms)

    @property
    def stride_bins(self) -> int:
        """Bins from one window's start to the next."""
        return round(self.stride_s * 1000 / self.bin_ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture(_Params):
    """How a window is drawn.

    Parameters
    ----------
    kind
        ``histogram`` (cumulative spike count of all channels) or ``raster`` (a band an electrode).
    count_axis
        Top of the histogram's count axis: ``window`` (each picture's own maximum), ``recording``
        (the recording's maximum) or a number of spikes per bin. A raster has no such axis.
    """

    kind: PictureKind = "histogram"
    count_axis: str | float = "window"

    def __post_init__(self) -> None:
        choices = get_args(PictureKind)
        _check(self, "kind", self.kind in choices, f"one of {', '.join(choices)}")
        axis = self.count_axis
        ok = (
            axis in ("window", "recording") if isinstance(axis, str) else _finite(axis) and axis > 0
        )
        _check(self, "count_axis", ok, "window, recording or a number above 0")
        if self.kind == "raster":
            _check(
                self, "count_axis", axis == "window", "left at window: a raster has no count axis"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone(_Params):
    """A frozen network that describes pictures.

    Parameters
    ----------
    name
        ``efficientnet_b0``, ``efficientnet_b1``, ``densenet121``, ``densenet201``, ``xception``,
        ``mobilenet_v2``, any other torchvision classification model, or ``timm:NAME``.
    weights
        ``imagenet`` (downloaded and cached by torchvision or timm), ``random`` (seeded), or the
        path of a .safetensors or .pth file.
    seed
        Seed of random weights; without meaning otherwise.
    """

    name: str = "efficientnet_b0"
    weights: str = "imagenet"
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, "name", isinstance(self.name, str) and bool(self.name), "a model's name")
        ok = isinstance(self.weights, str) and bool(self.weights)
        _check(self, "weights", ok, "imagenet, random or a file")
        ok = isinstance(self.seed, int) and 0 <= self.seed < 2**32
        _check(self, "seed", ok, "a whole number from 0 to 2**32 - 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class BurstCriteria(_Params):
    """What counts as active, as a burst, as a network burst and as coincident.

    Parameters
    ----------
    active_hz
        An electrode is active from so many spikes a second on: one in ten seconds, a limit that is
        usual for cultures.
    start_ms, end_ms, between_ms, duration_ms
        Of the MaxInterval method (MC_Rack's manual, chapter on burst analysis; after Legendy &
        Salcman 1985, J. Neurophysiol. 53:926-939): the longest interval that starts a burst, the
        longest one inside it, bursts nearer than `between_ms` are merged, and shorter ones than
        `duration_ms` dropped. The values are those of Cotterill et al. 2016, J. Neurophysiol.
        116:306-321.
    min_spikes
        The fewest spikes in a burst, by either method; as in Cotterill et al.
    cutoff_ms, longest_ms, void
        Of the logISI method (Pasquale, Martinoia & Chiappalone 2010, J. Comput. Neurosci.
        29:213-229): intervals inside bursts peak below `cutoff_ms`, which is also the threshold
        where the histogram shows none; peaks are told apart where the valley between them reaches
        the void parameter; a threshold above `longest_ms` is not believed (Cotterill et al.).
    bursting_per_minute
        An electrode is a bursting one from so many bursts a minute on.
    network_share
        The smallest share of active electrodes in a network burst; two electrodes at least.
    coincidence_ms
        Spikes of two electrodes no further apart are coincident, for the spike time tiling
        coefficient.
    count_bin_ms
        Bins in which spikes are counted for the correlation of electrodes.
    """

    active_hz: float = 0.1
    start_ms: float = 170.0
    end_ms: float = 300.0
    between_ms: float = 200.0
    duration_ms: float = 10.0
    min_spikes: int = 3
    cutoff_ms: float = 100.0
    longest_ms: float = 1000.0
    void: float = 0.7
    bursting_per_minute: float = 0.4
    network_share: float = 0.2
    coincidence_ms: float = 50.0
    count_bin_ms: float = 100.0

    def __post_init__(self) -> None:
        above_0 = (
            "active_hz", "start_ms", "end_ms", "cutoff_ms", "longest_ms", "coincidence_ms",
            "count_bin_ms",
        )  # fmt: skip
        for name in above_0:
            value = getattr(self, name)
            _check(self, name, _finite(value) and value > 0, "above 0")
        for name in ("between_ms", "duration_ms", "bursting_per_minute"):
            value = getattr(self, name)
            _check(self, name, _finite(value) and value >= 0, "0 or above")
        for name in ("void", "network_share"):
            value = getattr(self, name)
            _check(self, name, _finite(value) and 0 < value < 1, "between 0 and 1")
        ok = isinstance(self.min_spikes, int) and self.min_spikes >= 2
        _check(self, "min_spikes", ok, "a whole number from 2")
        _check(self, "end_ms", self.end_ms >= self.start_ms, "start_ms or more")
