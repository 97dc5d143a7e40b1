"""Objects with the methods of neo's, quantities' and SpikeInterface's that toptune asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIZES = {
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "us": ("time", 1e-6),
    "Hz": ("rate", 1.0),
    "kHz": ("rate", 1e3),
    "V": ("voltage", 1.0),
    "mV": ("voltage", 1e-3),
    "uV": ("voltage", 1e-6),
    "dimensionless": ("none", 1.0),
}


@dataclass
class Quantity:
    """A number or an array with a unit, as of quantities."""

    magnitude: Any
    unit: str

    @property
    def units(self) -> Quantity:
        return Quantity(1.0, self.unit)

    @property
    def dimensionality(self) -> str:
        return self.unit

    def rescale(self, unit: str) -> Quantity:
        (kind, size), (wanted, wanted_size) = _SIZES[self.unit], _SIZES[unit]
        if kind != wanted:
            raise ValueError(f'Unable to convert between units of "{self.unit}" and "{unit}"')
        return Quantity(np.asarray(self.magnitude) * (size / wanted_size), unit)

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.magnitude + other.rescale(self.unit).magnitude, self.unit)

    def __rtruediv__(self, number: float) -> Quantity:
        return Quantity(number / float(self.rescale("Hz").magnitude), "s")


@dataclass
class NeoTrain:
    """A neo SpikeTrain."""

    times: Quantity
    t_stop: Quantity
    t_start: Quantity = field(default_factory=lambda: Quantity(0.0, "s"))
    name: str | None = None
    sampling_rate: Quantity | None = field(default_factory=lambda: Quantity(1.0, "Hz"))
    annotations: dict[str, Any] = field(default_factory=dict)

    def rescale(self, unit: str) -> Quantity:
        return self.times.rescale(unit)


@dataclass
class LazyTrain:
    """A neo SpikeTrainProxy."""

    train: NeoTrain

    @property
    def t_stop(self) -> Quantity:
        return self.train.t_stop

    def load(self) -> NeoTrain:
        return self.train


@dataclass
class NeoSignal:
    """A neo AnalogSignal: (samples, channels)."""

    magnitude: NDArray[Any]
    unit: str = "mV"
    sampling_rate: Quantity = field(default_factory=lambda: Quantity(10.0, "kHz"))
    t_start: Quantity = field(default_factory=lambda: Quantity(0.0, "s"))
    name: str | None = None
    array_annotations: dict[str, Any] = field(default_factory=dict)

    @property
    def units(self) -> Quantity:
        return Quantity(1.0, self.unit)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.magnitude.shape


class LazySignal:
    """A neo AnalogSignalProxy, which notes what is loaded."""

    def __init__(self, signal: NeoSignal) -> None:
        self._signal = signal
        self.loaded: list[tuple[int, int]] = []
        self.shape = signal.shape
        for name in ("units", "sampling_rate", "t_start", "name", "array_annotations"):
            setattr(self, name, getattr(signal, name))

    def load(self, time_slice: tuple[Quantity, Quantity], *, strict_slicing: bool) -> NeoSignal:
        assert not strict_slicing
        rate = float(self._signal.sampling_rate.rescale("Hz").magnitude)
        origin = self._signal.t_start.rescale("s").magnitude
        low, high = (round((t.rescale("s").magnitude - origin) * rate) for t in time_slice)
        self.loaded.append((low, high))
        return NeoSignal(self._signal.magnitude[low:high], self._signal.unit)


@dataclass
class NeoSegment:
    """A neo Segment."""

    spiketrains: list[Any] = field(default_factory=list)
    analogsignals: list[Any] = field(default_factory=list)
    name: str | None = None


@dataclass
class NeoBlock:
    """A neo Block."""

    segments: list[NeoSegment]
    name: str | None = None


class _SpikeInterface:
    """What SpikeInterface's recordings and sortings have in common."""

    def __init__(self, rate_hz: float, starts_s: list[float | None]) -> None:
        self._rate_hz = rate_hz
        self._starts_s = starts_s
        self._properties: dict[str, Any] = {}

    def get_sampling_frequency(self) -> float:
        return self._rate_hz

    def get_num_segments(self) -> int:
        return len(self._starts_s)

    def get_start_time(self, segment_index: int) -> float | None:
        return self._starts_s[segment_index]

    def set_property(self, key: str, values: Any) -> None:
        self._properties[key] = np.asarray(values)

    def get_property_keys(self) -> list[str]:
        return list(self._properties)

    def get_property(self, key: str) -> Any:
        return self._properties[key]


class SpikeInterfaceRecording(_SpikeInterface):
    """A recording of SpikeInterface, (samples, channels) per segment, which notes what is read."""

    def __init__(
        self,
        traces: list[NDArray[Any]],
        rate_hz: float = 10_000.0,
        *,
        gain_uv: float | None = 1.0,
        ids: list[Any] | None = None,
        starts_s: list[float | None] | None = None,
    ) -> None:
        super().__init__(rate_hz, starts_s or [None] * len(traces))
        self._traces = traces
        self._gain_uv = gain_uv
        self._ids = list(range(traces[0].shape[1])) if ids is None else ids
        self.asked: list[tuple[int, int]] = []
        self.times_s: list[NDArray[np.float64] | None] = [None] * len(traces)
        self.filtered = False

    def get_channel_ids(self) -> Any:
        return np.array(self._ids)

    def get_dtype(self) -> Any:
        return self._traces[0].dtype

    def has_scaleable_traces(self) -> bool:
        return self._gain_uv is not None

    def is_filtered(self) -> bool:
        return self.filtered

    def get_num_samples(self, segment_index: int) -> int:
        return len(self._traces[segment_index])

    def has_time_vector(self, segment_index: int) -> bool:
        return self.times_s[segment_index] is not None

    def get_times(self, segment_index: int) -> Any:
        return self.times_s[segment_index]

    def get_traces(
        self,
        segment_index: int,
        start_frame: int,
        end_frame: int,
        channel_ids: list[Any] | None = None,
        return_in_uV: bool = False,  # SpikeInterface's own name
    ) -> NDArray[Any]:
        self.asked.append((start_frame, end_frame))
        kept = self._ids if channel_ids is None else channel_ids
        rows = [self._ids.index(one) for one in kept]
        traces = self._traces[segment_index][start_frame:end_frame, rows]
        return traces * np.float32(self._gain_uv or 1) if return_in_uV else traces


class OldSpikeInterfaceRecording(SpikeInterfaceRecording):
    """The same before return_in_uV."""

    def get_traces(
        self,
        segment_index: int,
        start_frame: int,
        end_frame: int,
        channel_ids: list[Any] | None = None,
        return_scaled: bool = False,
    ) -> NDArray[Any]:
        return super().get_traces(
            segment_index, start_frame, end_frame, channel_ids, return_in_uV=return_scaled
        )


class SpikeInterfaceSorting(_SpikeInterface):
    """A sorting of SpikeInterface: frames of each unit, segment by segment."""

    def __init__(
        self,
        units: list[dict[Any, list[int]]],
        rate_hz: float = 10_000.0,
        *,
        samples: list[int] | None = None,
        starts_s: list[float | None] | None = None,
    ) -> None:
        super().__init__(rate_hz, starts_s or [None] * len(units))
        self._units = units
        self._samples = samples

    def get_unit_ids(self) -> Any:
        return np.array(list(self._units[0]))

    def has_recording(self) -> bool:
        return self._samples is not None

    def get_num_samples(self, segment_index: int) -> int:
        assert self._samples is not None
        return self._samples[segment_index]

    def get_unit_spike_train(self, unit_id: Any, segment_index: int) -> Any:
        return np.array(self._units[segment_index][unit_id], np.int64)
