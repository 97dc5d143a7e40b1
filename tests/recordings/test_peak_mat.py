"""Finding a variable in a .mat file: against SciPy's own listing and reading."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from toptune.errors import InputError
from toptune.recordings.peak_mat import find_variable

VARIABLES: dict[str, Any] = {
    "a": np.arange(3.0),
    "peak_train": scipy.sparse.csc_matrix(([2.5, 7.0], ([1, 9], [0, 0])), (10, 1)),
    "dense": np.arange(12, dtype=np.int16).reshape(3, 4),
    "text": "hello",
    "a_name_as_long_as_names_may_be": np.ones((2, 2)) * 1j,
    "cell": np.array([[1], "x"], object),
    "deep": {"x": {"y": np.zeros(5)}},
    "empty": np.zeros((0, 5)),
    "cube": np.zeros((2, 3, 4)),
}
CLASSES = {"sparse": 5, "double": 6, "int16": 10, "char": 4, "cell": 1, "struct": 2}


@pytest.mark.parametrize("squeeze", [False, True])
def test_names_shapes_and_classes_are_those_of_scipy(tmp_path: Path, squeeze: bool) -> None:
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, VARIABLES, do_compression=squeeze)
    listed = scipy.io.whosmat(path)
    assert [name for name, *_ in listed] == list(VARIABLES)
    for name, shape, kind in listed:
        found = find_variable(path, name)
        assert found.name == name
        assert found.shape == ((1, 5) if kind == "char" else shape)  # SciPy counts strings
        assert found.matrix_class == CLASSES[kind]
        assert found.is_complex == (name == "a_name_as_long_as_names_may_be")
        alone = scipy.io.loadmat(io.BytesIO(found.alone()))
        assert [n for n in alone if not n.startswith("__")] == [name]
        if kind != "struct" and kind != "cell":
            expected, got = scipy.io.loadmat(path)[name], alone[name]
            plain = [x.toarray() if scipy.sparse.issparse(x) else x for x in (expected, got)]
            np.testing.assert_array_equal(*plain)


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    tags = np.array([14, 64, 6, 8, 6, 0, 5, 8, 1, 1, 1, 1], ">u4").tobytes()
    value = np.array([9, 8], ">u4").tobytes() + np.array([2.5], ">f8").tobytes()
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI"
    path.write_bytes(header + tags + b"q".ljust(8, b"\0") + value)
    assert scipy.io.loadmat(path)["q"] == 2.5
    found = find_variable(path, "q")
    assert (found.shape, found.matrix_class) == ((1, 1), 6)
    assert scipy.io.loadmat(io.BytesIO(found.alone()))["q"] == 2.5


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_file_cut_anywhere_is_refused_or_has_its_variable_whole(
    tmp_path: Path, squeeze: bool
) -> None:
    path, cut = tmp_path / "x.mat", tmp_path / "cut.mat"
    scipy.io.savemat(path, {"peak_train": VARIABLES["peak_train"]}, do_compression=squeeze)
    whole = path.read_bytes()
    for end in range(len(whole)):
        cut.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"cut\.mat: (damaged|no variable)"):
            find_variable(cut, "peak_train")
