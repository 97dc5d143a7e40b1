"""Feature tables given as pandas, xarray and AnnData."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from small_data import make_provenance, make_view

from toptune.errors import InputError
from toptune.features.burst_features import KIND, NAMES
from toptune.features.exports import feature_names
from toptune.features.table import FeatureTable, RecordingInfo, View


def table(*sizes: int) -> FeatureTable:
    views = tuple(make_view(size) for size in sizes)
    return FeatureTable(
        features=np.arange(5 * sum(sizes), dtype=np.float32).reshape(5, -1),
        start_s=np.array([0.0, 1.0, 2.0, 0.0, 1.0]),
        recording=np.array([0, 0, 0, 1, 1]),
        recordings=(
            RecordingInfo("r0", "dev0", "A", {"div": "14", "label": "x"}),
            RecordingInfo("r1", "dev1", "B", {"batch": "b1"}),
        ),
        provenance=make_provenance(*views),
        views=views,
    )


def test_pandas_gets_where_windows_are_from_and_then_the_features() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas: not installed")
    made = table(3)
    frame = made.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == [
        *("device", "label", "recording", "start_s", "div", "label (devices file)", "batch"),
        *("f0", "f1", "f2"),
    ]
    assert frame["device"].tolist() == ["dev0"] * 3 + ["dev1"] * 2
    assert frame["label"].tolist() == ["A"] * 3 + ["B"] * 2
    assert frame["recording"].tolist() == ["r0"] * 3 + ["r1"] * 2
    assert frame["start_s"].tolist() == made.start_s.tolist()
    assert frame["div"].tolist() == ["14"] * 3 + [""] * 2
    assert frame["label (devices file)"].tolist() == ["x"] * 3 + [""] * 2
    features = frame[["f0", "f1", "f2"]].to_numpy()
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, made.features)
    assert frame.groupby("device")["f0"].mean().tolist() == [3.0, 10.5]


def test_xarray_gets_them_as_coordinates() -> None:
    xarray = pytest.importorskip("xarray", reason="xarray: not installed")
    made = table(2, 1)
    array = made.to_xarray()
    assert isinstance(array, xarray.DataArray)
    assert array.dims == ("window", "feature")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array.values, made.features)
    assert array["device"].values.tolist() == ["dev0"] * 3 + ["dev1"] * 2
    assert array["feature"].values.tolist() == ["1:f0", "1:f1", "2:f0"]
    assert array["feature_set"].values.tolist() == [
        v.name for v in made.views for _ in range(v.n_columns)
    ]
    assert json.loads(array.attrs["provenance"]) == made.provenance
    assert array.groupby("device").mean().sel(device="dev1").values.tolist() == [10.5, 11.5, 12.5]


def test_anndata_gets_them_as_observations(tmp_path: Any) -> None:
    anndata = pytest.importorskip("anndata", reason="anndata: not installed")
    made = table(2, 1)
    data = made.to_anndata()
    assert isinstance(data, anndata.AnnData)
    assert data.shape == (5, 3)
    assert np.shares_memory(data.X, made.features)
    assert data.obs["label"].tolist() == ["A"] * 3 + ["B"] * 2
    assert data.obs["start_s"].tolist() == made.start_s.tolist()
    assert data.var_names.tolist() == ["1:f0", "1:f1", "2:f0"]
    assert json.loads(data.uns["provenance"]) == made.provenance
    data.write_h5ad(tmp_path / "table.h5ad")
    again = anndata.read_h5ad(tmp_path / "table.h5ad")
    np.testing.assert_array_equal(again.X, made.features)
    assert again.obs["device"].tolist() == ["dev0"] * 3 + ["dev1"] * 2


def test_burst_parameters_have_their_names() -> None:
    view = View("parameters", "k", len(NAMES), {"kind": KIND})
    made = FeatureTable(
        np.zeros((1, len(NAMES)), np.float32), np.zeros(1), np.zeros(1, np.int64),
        (RecordingInfo("r", "d", "A", {}),), make_provenance(view), (view,),
    )  # fmt: skip
    assert feature_names(made) == list(NAMES)
    bare = FeatureTable(
        np.zeros((1, 2), np.float32), np.zeros(1), np.zeros(1, np.int64),
        (RecordingInfo("r", "d", "A", {}),), {},
    )  # fmt: skip
    assert feature_names(bare) == ["f0", "f1"]


@pytest.mark.parametrize("package", ["pandas", "xarray", "anndata"])
def test_a_package_that_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"{package} is not installed .*pip install {package}"):
        getattr(table(2), f"to_{package}")()
