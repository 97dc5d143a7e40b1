"""Who computed features: what is refused as mixed, what is only told."""

from __future__ import annotations

from typing import Any

import pytest

from toptune.errors import InputError
from toptune.store.feature_store import difference, made_with, refuse_mixed


def info(
    device: str = "cpu", precision: str = "float32", engine: str = "openvino", **versions: str
) -> dict[str, Any]:
    return {
        "computed": {"device": device, "precision": precision, "engine": engine},
        "versions": {"toptune": "1", **versions},
    }


OLDER: dict[str, Any] = {"versions": {"toptune": "0"}}
HALF = info("cuda:NVIDIA H100", "float16", "torch")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (info(), info(), None),
        (info(torch="2.5"), info(torch="2.6"), None),
        (HALF, info("cuda:NVIDIA A100", "float16", "torch"), None),
        (HALF, info(), "precision float16, not float32"),
        (info(engine="torch"), info(), "engine torch, not openvino"),
        (info("cuda:X", engine="torch"), info(engine="torch"), "device cuda, not cpu"),
        (OLDER, OLDER, None),
        (OLDER, info(), None),
        (OLDER, HALF, "precision float32, not float16"),
        (HALF, OLDER, "precision float16, not float32"),
    ],
)
def test_what_may_change_numbers_is_named(
    one: dict[str, Any], other: dict[str, Any], expected: str | None
) -> None:
    assert difference(one, other) == expected
    assert (difference(other, one) is None) == (expected is None)


def test_mixed_features_are_refused_by_name_with_the_way_out() -> None:
    refuse_mixed({"a": HALF, "b": HALF}, "histogram", "s.zarr")
    refuse_mixed({}, "histogram", "s.zarr")
    with pytest.raises(InputError) as error:
        refuse_mixed({"a": HALF, "b": HALF, "c": info()}, "histogram", "s.zarr")
    for text in (
        "s.zarr",
        "'histogram' of c",
        "precision float32, not float16",
        "`overwrite=True`",
    ):
        assert text in str(error.value)


def test_versions_and_gpus_that_differ_are_told() -> None:
    other = info("cuda:NVIDIA A100", "float16", "torch", openvino="2025.1")
    told = made_with(
        {"a": {**HALF, "versions": {"toptune": "1", "openvino": "2024.6"}}, "b": other}
    )
    assert told["versions"] == {"toptune": ["1"], "openvino": ["2024.6", "2025.1"]}
    assert [one["device"] for one in told["computed"]] == ["cuda:NVIDIA A100", "cuda:NVIDIA H100"]
    assert told["notes"] == [
        "some features were made with openvino 2024.6, some with 2025.1",
        "some features were computed on cuda:NVIDIA A100, some on cuda:NVIDIA H100",
    ]


def test_one_maker_needs_no_note() -> None:
    told = made_with({"a": info(), "b": info(), "c": OLDER | {"versions": {"toptune": "1"}}})
    assert told == {
        "computed": [{"device": "cpu", "precision": "float32", "engine": "openvino"}],
        "versions": {"toptune": ["1"]},
        "notes": [],
    }
