"""Weights files: what is read, what is refused and with which words."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from toptune.backbones.weights import fitting_state, read_weights, state_sha256
from toptune.errors import InputError

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "fc.weight": torch.ones(4, 2)}
EXPECTED = {"conv.weight": torch.zeros(2, 3), "norm.num_batches_tracked": torch.tensor(0)}


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("echo this must not run",)


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_tensors_come_back_with_the_files_sha256(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, path, {"backbone": "x", "mean": "[0.1, 0, 1]", "std": "[1, 2, 3.5]"})
    else:
        save(path, STATE)
    file = read_weights(path)
    assert file.state.keys() == STATE.keys()
    assert all(torch.equal(file.state[k], v) for k, v in STATE.items())
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    if suffix == ".safetensors":
        assert (file.backbone, file.mean, file.std) == ("x", (0.1, 0.0, 1.0), (1.0, 2.0, 3.5))
    else:
        assert (file.backbone, file.mean, file.std) == (None, None, None)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
)
def test_wrappers_of_training_scripts_are_taken_off(
    tmp_path: Path, wrap: Callable[[dict[str, torch.Tensor]], dict[str, Any]]
) -> None:
    assert read_weights(save(tmp_path / "w.pth", wrap(STATE))).state.keys() == STATE.keys()


def whole(suffix: str, folder: Path) -> bytes:
    path = folder / f"whole{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=suffix == ".pth")
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"hello, these are no weights\n" * 20,
        lambda _: b"<!DOCTYPE html><html>404</html>",
        lambda data: data[:-7],
        lambda data: data[: len(data) // 2],
        lambda data: data[:5],
        lambda data: bytes(len(data)),
    ],
    ids=["text", "html", "last bytes gone", "half gone", "five bytes", "zeros"],
)
def test_damaged_files_are_refused_in_one_line(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(damage(whole(suffix, tmp_path)))
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_never_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], protocol: int
) -> None:
    bare, zipped = tmp_path / "bare.pth", tmp_path / "zipped.pth"
    bare.write_bytes(pickle.dumps(Code(), protocol=protocol))
    save(zipped, {"weight": torch.ones(2), "more": Code()})
    for path in (bare, zipped):
        with pytest.raises(InputError, match="cannot be used as weights: it holds pickled code"):
            read_weights(path)
    assert "must not run" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {3: torch.ones(1)}, torch.ones(2)])
def test_a_pickle_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match="tensors by name"):
        read_weights(save(tmp_path / "w.pth", content))


def test_files_that_are_not_there_or_not_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weights file .*no\.pth does not exist"):
        read_weights(tmp_path / "no.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        read_weights(tmp_path / "folder.pth")
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(InputError, match=r"empty\.safetensors is empty"):
        read_weights(tmp_path / "empty.safetensors")
    with pytest.raises(InputError, match="imagnet is no weights: give imagenet, random, or a file"):
        read_weights("imagnet")


@pytest.mark.parametrize("value", ["0.5", "[0.5, 0.5]", "[0, 0, 0]", "[1, 2, NaN]", "half", "null"])
def test_metadata_that_cannot_normalise_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file(STATE, path, {"std": value})
    with pytest.raises(InputError, match="metadata 'std' must be a JSON list of three numbers abo"):
        read_weights(path)


def fit(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    classifier = ("fc.weight", "aux.")
    return fitting_state(state, EXPECTED, classifier, source="w.pth", name="net")


def test_the_classifier_is_dropped_whatever_its_shape() -> None:
    state = {**STATE, "fc.weight": torch.ones(1001, 9), "aux.conv.weight": torch.ones(1)}
    fitted = fit(state)
    assert fitted.keys() == EXPECTED.keys()
    assert torch.equal(fitted["conv.weight"], STATE["conv.weight"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"conv.weight": None}, r"1 missing \(conv\.weight\)"),
        ({"extra": torch.ones(1)}, r"1 unexpected \(extra\)"),
        ({"conv.weight": torch.ones(3, 2)}, r"1 of another shape or kind \(conv\.weight\)"),
        ({"conv.weight": torch.ones(2, 3).int()}, r"1 of another shape or kind \(conv\.weight\)"),
        ({k: torch.ones(1) for k in "abcd"}, r"4 unexpected \(a, b, c, \.\.\.\)"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, torch.Tensor | None], says: str) -> None:
    state = {k: v for k, v in {**STATE, **change}.items() if v is not None}
    with pytest.raises(InputError, match=f"w.pth does not fit net: {says}"):
        fit(state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"values that are not finite, in conv\.weight"):
        fit({**STATE, "conv.weight": torch.full((2, 3), value)})


def test_the_content_hash_sees_names_types_shapes_and_values_but_not_order() -> None:
    one = {"a": torch.ones(2, 3), "b": torch.zeros(1)}
    others: list[dict[str, torch.Tensor]] = [
        {"a": torch.ones(3, 2), "b": torch.zeros(1)},
        {"a": torch.ones(2, 3), "c": torch.zeros(1)},
        {"a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int32)},
        {"a": torch.ones(2, 3), "b": torch.full((1,), 1e-7)},
    ]
    assert state_sha256(dict(reversed(one.items()))) == state_sha256(one)
    assert len({state_sha256(s) for s in [one, *others]}) == 5
    assert len(state_sha256(one)) == 64
