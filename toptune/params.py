"""Parameters of every stage: frozen, keyword-only, unit-suffixed, checked once.

Each class has a key (16 hex digits) that names its outputs: equal parameters, equal key.

A field made by `option` is something a user may set. The command line's options, the keys of a
sweep's grid, a report's list of settings and the command that repeats a run are all made from
these fields (`options_of`), so that a name, a default or a sentence of help stands once.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from toptune.errors import InputError, InputErrors

T = TypeVar("T")

Alignment = Literal["largest", "negative"]
Noise = Literal["smallest_sd", "mad", "fixed"]
PictureKind = Literal["histogram", "raster", "sorted_raster", "intervals", "correlation"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "half"]
TimeUnit = Literal["s", "ms", "us", "samples"]
OddElectrodes = Literal["refuse", "leave_out"]

#: Ten times what the fastest amplifiers do.
FASTEST_HZ = 1e7
#: The longest recording, gaps included; longer ones have times in the wrong unit.
LONGEST_S = 7 * 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One value that a user may set, from Python, in a grid or on the command line."""

    name: str  # the key of a grid; the command line writes it with hyphens
    field: str  # of the parameter class, or the argument of a classifier's constructor
    type: Any  # of one value: bool, int, float, str, or a Literal of the choices
    default: Any  # None where it follows from the data or the device
    help: str  # one sentence: what it is, and in which unit
    panel: str = "Basic"  # under which heading the command line's help lists it
    # Several values may be given. Of a classifier, they are then chosen from inside every fold.
    several: bool = False
    least: float | None = None  # the range of a number, both ends allowed; None for no limit
    most: float | None = None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a ``Literal``; none of other types."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()


def option(default: Any, help: str, **told: Any) -> Any:  # noqa: A002  # typer's and argparse's word
    """Make a dataclass field that a user may set; `told` is what `Option` takes beside it.

    The option has the field's name and type unless told otherwise.
    """
    return field(default=default, metadata={"option": {"help": help, **told}})


def _detection(default: Any, text: str, **told: Any) -> Any:
    return option(default, text, panel="Spike detection", **told)


def _recording(default: Any, text: str, **told: Any) -> Any:
    return option(default, text, panel="Recording", **told)


def _advanced(default: Any, text: str, **told: Any) -> Any:
    return option(default, text, panel="Advanced", **told)


def options_of(cls: type) -> tuple[Option, ...]:
    """List what a user may set of a parameter class and of those inside it, in their order."""
    hints = get_type_hints(cls)
    found: list[Option] = []
    for one in fields(cls):
        told: Mapping[str, Any] | None = one.metadata.get("option")
        if told is not None:
            default = None if one.default is MISSING else one.default
            of_field = {"name": one.name, "type": _without_none(hints[one.name])}
            found.append(Option(**{**of_field, "field": one.name, "default": default, **told}))
        elif is_dataclass(hints[one.name]):
            found += options_of(hints[one.name])
    return tuple(found)


def values_of(params: Any) -> dict[str, Any]:
    """Give what a parameter object, and those inside it, say of each option, by its name."""
    values: dict[str, Any] = {}
    for one in fields(params):
        value = getattr(params, one.name)
        if "option" in one.metadata:
            values[one.metadata["option"].get("name", one.name)] = value
        elif is_dataclass(value):
            values |= values_of(value)
    return values


def from_options(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a parameter object, and those inside it, from values by the options' names.

    What is not named is left at its default; names of other classes' options are passed over.
    """
    hints = get_type_hints(cls)
    made: dict[str, Any] = {}
    for one in fields(cls):  # type: ignore[arg-type]  # parameter classes are dataclasses
        if "option" in one.metadata:
            name = one.metadata["option"].get("name", one.name)
            made |= {one.name: values[name]} if name in values else {}
        elif is_dataclass(hints[one.name]):
            made[one.name] = from_options(hints[one.name], values)
    return cls(**made)


def parse_setting(setting: str) -> dict[str, Any]:
    """Read ``KEY=VALUE``, the value as in TOML; text may go without quotes."""
    key, equals, value = setting.partition("=")
    if not equals or not re.fullmatch(r"\s*[\w.]+\s*", key):
        raise InputError(f"setting {setting!r} is not of the form KEY=VALUE")
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:
        quoted = value.strip().replace("\\", "\\\\").replace('"', '\\"')
        return tomllib.loads(f'{key} = "{quoted}"')


def parse_merges(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read merges of classes, each written ``NAME=A,B,C``; what is wrong is told all at once.

    A name with a comma or an equals sign stands between double quotes.
    """
    merges: dict[str, tuple[str, ...]] = {}
    problems = []
    for text in texts:
        match = _MERGE.fullmatch(text)
        name = (match[1] or match[2]).strip() if match else ""
        parts = parse_names(match[3]) if match else ()
        if not name or not parts or not all(parts):
            problems.append(
                f"`merge` {text!r} is not of the form NAME=A,B,C; a name with a comma stands"
                ' between double quotes: NAME="A, 1",B'
            )
        elif name in merges:
            problems.append(f"`merge` gives {name} twice; name all its classes at once")
        else:
            merges[name] = parts
    if problems:
        raise InputErrors(problems)
    return merges


_MERGE = re.compile(r'\s*(?:"([^"]+)"|([^="]+))\s*=(.*)', re.DOTALL)


def parse_names(text: str) -> tuple[str, ...]:
    """Read names between commas; one with a comma stands between double quotes."""
    try:
        (parts,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        return ("",)
    return tuple(part.strip() for part in parts)


def write_merge(name: str, members: Iterable[str]) -> str:
    """Write a merge of classes as `parse_merges` reads it."""
    return f"{write_names([name])}={write_names(members)}"


def write_names(names: Iterable[str]) -> str:
    """Write names between commas as `parse_names` reads them."""
    return ",".join(f'"{one}"' if re.search('[,="]', one) else one for one in names)


def command_words(options: Iterable[Option], values: Mapping[str, Any]) -> list[str]:
    """Write values, by the options' names, as the words of a command line, not yet quoted.

    Of an option with `several` values, a list or tuple is that many values. What is not named, is
    None, or equals its default is left out.
    """
    words: list[str] = []
    for one in options:
        value = values.get(one.name, one.default)
        if value is None or value == one.default:
            continue
        flag = one.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        several = one.several and isinstance(value, list | tuple)
        for each in value if several else [value]:
            words += [f"--{flag}", word(each)]
    return words


def word(value: Any) -> str:
    """Write a value as the command line reads it: numbers no longer than needed, but exact."""
    if isinstance(value, list | tuple):
        return ",".join(map(word, value))
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def _without_none(hint: Any) -> Any:
    """Take the type of one value out of ``T | None``."""
    left = [arg for arg in get_args(hint) if arg is not type(None)]
    return left[0] if type(None) in get_args(hint) and len(left) == 1 else hint


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


def _check_above_0(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _check(owner, name, _finite(value) and value > 0, "above 0")


def _check_from_0(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _check(owner, name, _finite(value) and value >= 0, "0 or above")


def _check_choice(owner: object, name: str, choices: Any) -> None:
    listed = get_args(choices)
    _check(owner, name, getattr(owner, name) in listed, f"one of {', '.join(listed)}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(parameters: Any) -> dict[str, Any]:
    """Plain values of a parameter class; equal objects give equal values.

    A whole number where any number may stand, as in ``width_s=10``, is written as the command line
    reads it, 10.0.
    """
    values: dict[str, Any] = asdict(parameters)
    for one in fields(parameters):
        value = getattr(parameters, one.name)
        if isinstance(value, _Params):
            values[one.name] = value.to_json()
        elif "float" in str(one.type) and type(value) is int:
            values[one.name] = float(value)
    return values


class _Params:
    """What all parameter classes share: a key, and JSON that refuses unknown names."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """16 hex digits; equal parameters give an equal key."""
        return content_key({type(self).__name__: self.to_json()})

    def to_json(self) -> dict[str, Any]:
        """Plain values that ``from_json`` turns back into an equal object."""
        return _plain(self)

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

    threshold_sd: float = _detection(8.0, "Peak-to-peak threshold, in noise standard deviations.")
    lifetime_ms: float = _detection(
        2.0, "Peak lifetime period, in ms: longest time between the two peaks of a spike."
    )
    refractory_ms: float = _detection(
        1.0, "Refractory period, in ms: shortest time between spikes of a channel."
    )
    overshoot_ms: float = _detection(
        0.5, "Extension of the search, in ms, where the second peak lies at its end."
    )
    alignment: Alignment = _detection("largest", "Which of a spike's two peaks gives its time.")
    noise: Noise = _detection(
        "smallest_sd", "How a channel's noise is estimated; fixed: threshold_uv is used instead."
    )
    threshold_uv: float | None = _detection(
        None, "Peak-to-peak threshold, in microvolts, where noise is fixed."
    )

    def __post_init__(self) -> None:
        _check_above_0(self, "threshold_sd", "lifetime_ms")
        _check_from_0(self, "refractory_ms", "overshoot_ms")
        _check_choice(self, "alignment", Alignment)
        _check_choice(self, "noise", Noise)
        if self.noise == "fixed":
            value = self.threshold_uv
            ok = value is not None and _finite(value) and value > 0
            _check(self, "threshold_uv", ok, "above 0 with `noise='fixed'`")
        else:
            _check(self, "threshold_uv", self.threshold_uv is None, "None unless `noise='fixed'`")


@dataclass(frozen=True, kw_only=True, slots=True)
class HighPass(_Params):
    """Causal Butterworth high-pass filter; ``cutoff_hz=0`` turns it off.

    A large spike swings back behind a filter of order 2 or above, and PTSD may take the swing for
    another spike. Behind order 1 it hardly does (docs/detection.md).

    Parameters
    ----------
    cutoff_hz
        The -3 dB frequency; must lie below half the sampling rate of what is filtered.
    order
        Filter order, 1 to 8.
    """

    cutoff_hz: float = _detection(
        300.0, "Cut-off frequency of the high-pass filter, in Hz; 0: no filter.", name="highpass_hz"
    )
    order: int = _detection(1, "Order of the high-pass filter, 1 to 8.", name="highpass_order")

    def __post_init__(self) -> None:
        _check_from_0(self, "cutoff_hz")
        ok = _whole(self.order) and 1 <= self.order <= 8
        _check(self, "order", ok, "a whole number from 1 to 8")


@dataclass(frozen=True, kw_only=True)
class OpeningOptions:
    """What a user says about a recording; each format uses what applies to it.

    A file that states its rate, length, start or unit itself must agree with what is given.
    """

    stream: str | None = _recording(
        None, "Label of the electrode stream, where a file has several."
    )
    well: str | None = _recording(
        None,
        "Well or array to read, where a file holds several cultures: A1, or an array's number.",
    )
    sampling_rate_hz: float | None = _recording(
        None, "Sampling rate, in Hz, of spike files that do not state theirs; 10,000 if not given."
    )
    duration_s: float | None = _recording(
        None,
        "Length of the recording, in seconds, for spike files that do not state theirs; up to the"
        " last spike if not given.",
    )
    start_s: float | None = _recording(
        None,
        "Time on a spike file's clock at which the recording starts, in seconds; 0 if not given.",
    )
    time_unit: TimeUnit | None = _recording(
        None, "Unit of the times in a spike file that does not state it; s if not given."
    )
    odd_electrodes: OddElectrodes = _recording(
        "refuse",
        "What becomes of a recording with electrodes' files of another length or copies of a file:"
        " refuse it, or leave those electrodes out.",
    )

    def __post_init__(self) -> None:
        for name in ("stream", "well"):
            value = getattr(self, name)
            _check(self, name, value is None or isinstance(value, str), "None or text")
        for name, most in (("sampling_rate_hz", FASTEST_HZ), ("duration_s", LONGEST_S)):
            value = getattr(self, name)
            ok = value is None or (_finite(value) and 0 < value <= most)
            _check(self, name, ok, f"above 0 and at most {most:g}")
        _check(
            self, "start_s", self.start_s is None or _finite(self.start_s), "a number of seconds"
        )
        if self.time_unit is not None:
            _check_choice(self, "time_unit", TimeUnit)
        _check_choice(self, "odd_electrodes", OddElectrodes)

    @property
    def opening(self) -> dict[str, Any]:
        """What is given, by the names of `open_recording`'s arguments."""
        return {f.name: getattr(self, f.name) for f in fields(OpeningOptions)}


@dataclass(frozen=True, kw_only=True)
class SpikeSettings(OpeningOptions):
    """How the spikes of a whole store are found; one store, one setting.

    A line of the devices file may say otherwise of its recording what `OpeningOptions` holds.
    """

    highpass: HighPass = field(default_factory=HighPass)  # for voltage, as is the next
    ptsd: Ptsd = field(default_factory=Ptsd)

    def to_json(self) -> dict[str, Any]:
        """Plain values for the store; what was not an option of earlier versions, if it is set."""
        values = _plain(self)
        names = ("highpass", "ptsd", "stream", "sampling_rate_hz")
        later = {
            f.name: values[f.name]
            for f in fields(self)
            if f.name not in names and values[f.name] != f.default
        }
        return {name: values[name] for name in names} | later

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SpikeSettings:
        """Build from what `to_json` gave; a missing or unknown name is an error."""
        highpass, ptsd = HighPass.from_json(values["highpass"]), Ptsd.from_json(values["ptsd"])
        made = cls(**{**values, "highpass": highpass, "ptsd": ptsd})
        if made.to_json() != values:
            raise InputError(
                f"SpikeSettings are not complete, a default may have changed: {values}"
            )
        return made


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How long a live source waits for what does not come."""

    patience_s: float = _advanced(
        1.0, "Seconds for which missing samples are waited for, before they are a gap."
    )
    stopped_after_s: float = _advanced(
        2.0, "Seconds without samples after which a source is said to have stopped."
    )
    end_after_s: float = _advanced(
        60.0, "Seconds without samples after which a source is taken to have ended."
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            _check(self, one.name, _finite(value) and value > 0, "above 0")


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

    width_s: float = option(120.0, "Length of a window, in seconds.", name="window_s")
    stride_s: float = option(5.0, "Time between the starts of successive windows, in seconds.")
    bin_ms: float = 10.0

    def __post_init__(self) -> None:
        _check_above_0(self, "bin_ms")
        for name in ("width_s", "stride_s"):
            _check_above_0(self, name)
            bins = getattr(self, name) * 1000 / self.bin_ms
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
    """How a window is drawn; `toptune.pictures.drawer.Drawer` defines every pixel.

    Parameters
    ----------
    kind
        ``histogram``: spikes of all electrodes in each bin, over time. ``raster``: a band an
        electrode, in the file's order; ``sorted_raster``: the most active electrode on top.
        ``intervals``: how often which interval occurs between spikes of an electrode, over time.
        ``correlation``: a matrix of the correlations of all electrodes' spike counts.
    count_axis
        Top of the histogram's count axis: ``window`` (each picture's own maximum), ``recording``
        (the recording's maximum) or a number of spikes per bin. ``log``: a logarithmic axis, the
        same for all recordings, that ends at 255 spikes per bin. Other pictures have none.
    """

    kind: PictureKind = option("histogram", "How a window is drawn.", name="picture")
    count_axis: str | float = _advanced(
        "window",
        "Maximum of the histogram's count axis: window, recording, or spikes per bin; log: a"
        " logarithmic axis up to 255.",
    )

    def __post_init__(self) -> None:
        _check_choice(self, "kind", PictureKind)
        axis = self.count_axis
        named = axis in ("window", "recording", "log")
        ok = named or (not isinstance(axis, str) and _finite(axis) and axis > 0)
        _check(self, "count_axis", ok, "window, recording, log or a number above 0")
        ok = self.kind == "histogram" or axis == "window"
        _check(self, "count_axis", ok, "left at window: only a histogram has a count axis")

    @property
    def description(self) -> str:
        """The kind, with the count axis where it is not each window's own."""
        axis = self.count_axis
        if axis == "window":
            return self.kind
        return f"{self.kind}, axis {axis if isinstance(axis, str) else f'{axis:g}'}"

    @property
    def has_time(self) -> bool:
        """Whether time runs from left to right."""
        return self.kind != "correlation"


#: The pictures from which, beside burst parameters, verdicts are best (benchmarks/RESULTS.md), and
#: the word for them.
RECOMMENDED = "recommended"
#: The word for no picture at all: spikes only.
NO_PICTURE = "none"
RECOMMENDED_PICTURES = (Picture(kind="intervals"), Picture(kind="histogram", count_axis="log"))


def pictures_of(
    kinds: Iterable[str], count_axes: Iterable[str | float] = ()
) -> tuple[Picture, ...]:
    """List the pictures of several kinds, each once: a histogram for every count axis.

    ``recommended`` among the kinds stands for `RECOMMENDED_PICTURES`, and ``none`` alone for no
    picture. Without a kind it is the histogram. An unknown kind, ``none`` beside others, and count
    axes without a histogram are an `InputError`.
    """
    kinds, axes = tuple(kinds) or ("histogram",), tuple(count_axes)
    known = (*get_args(PictureKind), RECOMMENDED, NO_PICTURE)
    if NO_PICTURE in kinds and (len({*kinds}) > 1 or axes):
        raise InputError(f"`picture='{NO_PICTURE}'` goes with no other picture and no count axis")
    found: list[Picture] = []
    for kind in kinds:
        if kind not in known:
            raise InputError(f"`picture` must be one of {', '.join(known)}, got {kind!r}")
        if kind == NO_PICTURE:
            break
        if kind == RECOMMENDED:
            found += RECOMMENDED_PICTURES
        elif kind == "histogram":
            found += [Picture(count_axis=axis) for axis in axes or ("window",)]
        else:
            found.append(Picture.from_json({"kind": kind}))
    if axes and "histogram" not in kinds:
        raise InputError(
            "`count_axis` is of no use here: only a histogram has a count axis"
            + (f", and {RECOMMENDED} pictures have their own" if RECOMMENDED in kinds else "")
        )
    return tuple(dict.fromkeys(found))


def picture_words(pictures: Iterable[Picture]) -> list[str]:
    """Write pictures as the words of a command line that `pictures_of` reads."""
    pictures = list(pictures)
    if not pictures:
        return ["--picture", NO_PICTURE]
    all_recommended = {*RECOMMENDED_PICTURES} <= {*pictures}
    left = [p for p in pictures if not (all_recommended and p in RECOMMENDED_PICTURES)]
    kinds = [RECOMMENDED] if all_recommended else []
    kinds += dict.fromkeys(picture.kind for picture in left)
    axes = [picture.count_axis for picture in left if picture.kind == "histogram"]
    words = [] if kinds == ["histogram"] else [w for kind in kinds for w in ("--picture", kind)]
    return words + ([] if axes == ["window"] else [w for a in axes for w in _axis_words(a)])


def _axis_words(axis: str | float) -> tuple[str, str]:
    return "--count-axis", word(axis)


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
        Seed of random weights; of no use with others.
    """

    name: str = option(
        "efficientnet_b0",
        "Network that describes pictures: of torchvision, xception, or timm:NAME.",
        name="backbone",
    )
    weights: str = option(
        "imagenet", "Weights of the network: imagenet, random, or a .safetensors or .pth file."
    )
    seed: int = _advanced(0, "Seed of random weights.", least=0, most=2**32 - 1)

    def __post_init__(self) -> None:
        _check(self, "name", isinstance(self.name, str) and bool(self.name), "a model's name")
        ok = isinstance(self.weights, str) and bool(self.weights)
        _check(self, "weights", ok, "imagenet, random or a file")
        ok = isinstance(self.seed, int) and 0 <= self.seed < 2**32
        _check(self, "seed", ok, "a whole number from 0 to 2**32 - 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class BurstCriteria(_Params):
    """What counts as active, as a burst, as a network burst and as coincident.

    Bursts are found by the MaxInterval method (MC_Rack's manual, chapter on burst analysis; after
    Legendy & Salcman 1985, J. Neurophysiol. 53:926-939; the values are those of Cotterill et al.
    2016, J. Neurophysiol. 116:306-321) and by the logISI method (Pasquale, Martinoia & Chiappalone
    2010, J. Comput. Neurosci. 29:213-229).
    """

    # An electrode is active from so many spikes a second on: one in ten seconds, a limit that is
    # usual for cultures.
    active_hz: float = 0.1
    # MaxInterval: the longest interval that starts a burst, and the longest one inside it; bursts
    # nearer than `between_ms` are merged, and shorter ones than `duration_ms` dropped.
    start_ms: float = 170.0
    end_ms: float = 300.0
    between_ms: float = 200.0
    duration_ms: float = 10.0
    min_spikes: int = 3  # the fewest in a burst, by either method; as in Cotterill et al.
    # logISI: intervals inside bursts peak below `cutoff_ms`, which is also the threshold where the
    # histogram shows none; a threshold above `longest_ms` is not believed (Cotterill et al.); peaks
    # are told apart where the valley between them reaches the void parameter.
    cutoff_ms: float = 100.0
    longest_ms: float = 1000.0
    void: float = 0.7
    bursting_per_minute: float = 0.4  # an electrode is a bursting one from so many bursts on
    network_share: float = 0.2  # of active electrodes in a network burst; two at least
    # Spikes of two electrodes no further apart are coincident, for the spike time tiling
    # coefficient.
    coincidence_ms: float = 50.0
    count_bin_ms: float = 100.0  # in which spikes are counted for the correlation of electrodes

    def __post_init__(self) -> None:
        _check_above_0(self, "active_hz", "start_ms", "end_ms", "cutoff_ms", "longest_ms")
        _check_above_0(self, "coincidence_ms", "count_bin_ms")
        _check_from_0(self, "between_ms", "duration_ms", "bursting_per_minute")
        for name in ("void", "network_share"):
            value = getattr(self, name)
            _check(self, name, _finite(value) and 0 < value < 1, "between 0 and 1")
        ok = isinstance(self.min_spikes, int) and self.min_spikes >= 2
        _check(self, "min_spikes", ok, "a whole number from 2")
        _check(self, "end_ms", self.end_ms >= self.start_ms, "start_ms or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """Where and with how much of the machine to compute; no result depends on it but by rounding.

    The device ``cuda`` is an error where there is no GPU.
    """

    device: Device = option("auto", "Where to compute; auto: a GPU where there is one.")
    precision: Precision = _advanced(
        "auto",
        "Precision of backbones; auto: 16 bits on a GPU, else float32; half: on the CPU, too, where"
        " it has AMX, AVX512-FP16 or AVX512-BF16.",
    )
    batch_size: int | None = _advanced(
        None, "Pictures per batch; chosen by device if not given.", least=1
    )
    n_jobs: int | None = option(None, "Number of CPU threads; all cores if not given.", least=1)

    def __post_init__(self) -> None:
        _check_choice(self, "device", Device)
        _check_choice(self, "precision", Precision)
        for name in ("batch_size", "n_jobs"):
            value = getattr(self, name)
            ok = value is None or (isinstance(value, int) and value >= 1)
            _check(self, name, ok, "a whole number from 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How a classifier is trained and scored; what is not given is the classifier's own choice."""

    head: str  # the classifier's name
    fixed: Mapping[str, Any] = field(default_factory=dict)  # values of its options
    # For its other options, values to choose from inside every fold.
    tried: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    group_by: str = option("device", "Column of devices.csv whose values are left out together.")
    merge: tuple[str, ...] = option(
        (), "Merge classes before training: NAME=A,B,C; may be repeated.", type=str, several=True
    )
    classes: str | None = option(
        None, "Order in which classes are shown: A,B,C; that of devices.csv if not given."
    )
    strata: str | None = _advanced(
        None, "Column of devices.csv; labels are shuffled only within its values."
    )
    windows_per_recording: int | None = _advanced(
        None,
        "The most windows of a recording to train on and to score, evenly spread; 0: all; by"
        " classifier if not given.",
        least=0,
    )
    tune: bool = option(
        True, "Choose parameters inside every fold, or take the classifier's defaults."
    )
    permutations: int | None = _advanced(
        None,
        "Number of label shuffles for the p-value; 0: none; by classifier if not given.",
        least=0,
    )
    seed: int = _advanced(
        0, "Seed of all random numbers; equal seeds give equal results.", least=0, most=2**32 - 1
    )

    def __post_init__(self) -> None:
        _check(self, "group_by", isinstance(self.group_by, str), "the name of a column")
        ok = self.classes is None or (
            isinstance(self.classes, str) and all(parse_names(self.classes))
        )
        _check(self, "classes", ok, "None or names between commas, such as A,B,C")
        ok = self.strata is None or isinstance(self.strata, str)
        _check(self, "strata", ok, "None or the name of a column")
        _check(self, "tune", isinstance(self.tune, bool), "true or false")
        most = self.windows_per_recording
        ok = most is None or (_whole(most) and most >= 0)
        _check(self, "windows_per_recording", ok, "a whole number from 0")
        ok = self.permutations is None or (_whole(self.permutations) and self.permutations >= 0)
        _check(self, "permutations", ok, "a whole number from 0")
        ok = _whole(self.seed) and 0 <= self.seed < 2**32
        _check(self, "seed", ok, "a whole number from 0 to 2**32 - 1")

    def __hash__(self) -> int:
        # Mappings have no hash; equal options agree in the rest as well.
        return hash((self.head, self.group_by, self.merge, self.strata, self.tune))
