"""What computed the features of a set, and whether it was the same for all recordings.

Keys tell bytes, parameters and weights apart, but not what computed: equal parameters give equal
features except for rounding. Yet a rounding of 16 bits, or of another engine, that coincides with
the devices of one class is a trace that a classifier can learn. So features of one set must come
from one kind of device, engine and precision. Versions of programs, and GPUs of one kind, are
reported but not refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toptune.errors import InputError

# Features of stores that do not say what computed them are of this precision.
_UNSAID_PRECISION = "float32"


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Name what may have changed the numbers between two published groups of one feature set.

    Parameters
    ----------
    one, other
        Their attributes; ``computed`` has ``device``, ``precision`` and ``engine``, and is absent
        in older stores.

    Returns
    -------
    str or None
        Such as ``precision float16, not float32``; None where nothing that counts differs.
    """
    a, b = one.get("computed"), other.get("computed")
    if a is None or b is None:
        p, q = ((c or {}).get("precision", _UNSAID_PRECISION) for c in (a, b))
        return None if p == q else f"precision {p}, not {q}"
    for name in ("precision", "engine", "device"):
        # A GPU's name follows its kind: cuda:NVIDIA H100.
        p, q = (str(c.get(name)).partition(":")[0] for c in (a, b))
        if p != q:
            return f"{name} {p}, not {q}"
    return None


def refuse_mixed(infos: Mapping[str, Mapping[str, Any]], description: str, store: object) -> None:
    """Refuse features of one set that were not all computed alike.

    Parameters
    ----------
    infos
        Attributes of the published features, by recording.
    description
        Of the feature set.
    store
        Its path.

    Raises
    ------
    InputError
        Two recordings that differ, and in what.
    """
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
    """Describe who computed a feature set.

    Returns
    -------
    dict
        ``computed``: each combination of device, precision and engine that occurs. ``versions``:
        by program, the versions that occur. ``notes``: a line on each that is not one.
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
