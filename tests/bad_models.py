"""Weights, models and runs that must be refused."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bad_case import EXTRACT, FIT, PREDICT, Case
from bad_recordings import Harmful
from bad_stores import bytes_edit, json_edit, put
from safetensors.torch import save_file

# --- weights


def weights(name: str, make: Callable[[Path], object], file: str, *says: str) -> Case:
    command = (*EXTRACT[:-3], "mobilenet_v2", "--weights", file)
    return Case(f"weights: {name}", make, command, (file, *says))


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> Any:
    """Write a file of that header."""

    def make(folder: Path) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(text) if length is None else length
        (folder / "w.safetensors").write_bytes(size.to_bytes(8, "little") + text + data)

    return make


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def state(change: Callable[[dict[str, torch.Tensor]], object]) -> Any:
    """Write weights of MobileNetV2 with something changed."""

    def make(folder: Path) -> None:
        from torchvision.models import mobilenet_v2

        tensors = mobilenet_v2(num_classes=2).state_dict()
        change(tensors)
        save_file(tensors, folder / "w.safetensors")

    return make


def pth(content: Any, **how: Any) -> Any:
    return lambda folder: torch.save(content, folder / "w.pth", **how)


def compressed(folder: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, folder / "x.pth")
    with (
        zipfile.ZipFile(folder / "x.pth") as old,
        zipfile.ZipFile(folder / "w.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["features.0.0.weight"][0, 0, 0, 0] = float("nan")


ST = "w.safetensors"
WEIGHTS = (
    weights("not there", lambda _: None, ST, "does not exist"),
    weights("a folder", lambda f: (f / ST).mkdir(), ST, "is a folder"),
    weights("a pipe", lambda f: os.mkfifo(f / ST), ST, "neither a file nor a folder"),
    weights("empty", lambda f: (f / ST).touch(), ST, "is empty"),
    weights("of an unknown name", lambda _: None, "imagnet", "imagenet, random, or a file"),
    weights("of another kind", lambda f: (f / "w.onnx").touch(), "w.onnx", "ending in"),
    weights("header beyond the file", safetensors({}, length=10**6), ST, "not a complete"),
    weights("header of 2**63 bytes", safetensors({}, length=2**63), ST, "not a complete"),
    weights("header of no JSON", safetensors(b"hello"), ST, "not a complete"),
    weights("header of nested lists", safetensors(b"[" * 50_000), ST, "not a complete"),
    weights("no tensors", safetensors({}), ST, "no tensors by name"),
    weights(
        "tensor beyond the file",
        safetensors({"a": tensor("F32", [9], 0, 36)}),
        ST,
        "not a complete",
    ),
    weights(
        "tensors that overlap",
        safetensors({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 2, 6)}, bytes(6)),
        ST,
        "not a complete",
    ),
    weights(
        "absurd offsets",
        safetensors({"a": tensor("F32", [1], 2**60, 2**60 + 4)}),
        ST,
        "not a complete",
    ),
    weights(
        "shape that overflows",
        safetensors({"a": tensor("F32", [2**62, 2**62], 0, 4)}, bytes(4)),
        ST,
        "not a complete",
    ),
    weights(
        "unknown type", safetensors({"a": tensor("F99", [1], 0, 4)}, bytes(4)), ST, "not a complete"
    ),
    weights(
        "of one small tensor", safetensors({"a": tensor("F32", [1], 0, 4)}, bytes(4)), ST, "fit"
    ),
    weights("a tensor missing", state(lambda t: t.pop("features.0.0.weight")), ST, "1 missing"),
    weights("a tensor too many", state(lambda t: t.update(x=torch.ones(1))), ST, "1 unexpected"),
    weights(
        "of another shape",
        state(lambda t: t.update({"features.0.0.weight": torch.ones(3)})),
        ST,
        "of another shape",
    ),
    weights("with NaN", state(_nan), ST, "not finite, in features.0.0.weight"),
    weights("text as .pth", lambda f: (f / "w.pth").write_text("hello"), "w.pth", "copy it again"),
    weights("a module", pth(torch.nn.Linear(2, 2)), "w.pth", "never run", "state_dict()"),
    weights(
        "an old module",
        pth(torch.nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        "w.pth",
        "never run",
    ),
    weights("code", lambda f: (f / "w.pth").write_bytes(pickle.dumps(Harmful())), "w.pth", "never"),
    weights("a list", pth([torch.ones(1)]), "w.pth", "no tensors by name"),
    weights("numbers", pth({"a": 1}), "w.pth", "more than tensors"),
    weights("a sparse tensor", pth({"a": torch.eye(3).to_sparse()}), "w.pth", "plain floating"),
    weights("a tensor without values", pth({"a": torch.ones(3, device="meta")}), "w.pth", "meta"),
    weights("compressed", compressed, "w.pth", "its tensors are compressed"),
)

# --- models and runs

MODEL = "run/model/model.json"


def model(name: str, make: Callable[[Path], object], *says: str) -> Case:
    return Case(f"model: {name}", make, PREDICT, ("run/model", *says))


def mine(name: str, content: str) -> Callable[[Path], None]:
    """Make a folder that is not toptune's."""

    def make(folder: Path) -> None:
        (folder / "mine").mkdir()
        (folder / "mine" / name).write_text(content)

    return make


def described(name: str, *keys: Any, value: Any, says: str) -> Case:
    """Edit model.json."""
    return model(name, json_edit(MODEL, put(*keys, value=value)), says)


MODELS = (
    Case("model: not there", lambda _: None, ("predict", "x", *PREDICT[2:]), ("x", "no model")),
    model("without model.json", lambda f: (f / MODEL).unlink(), "no model"),
    model(
        "without tensors", lambda f: (f / MODEL).with_suffix(".safetensors").unlink(), "cannot be"
    ),
    model("of no JSON", bytes_edit(MODEL, lambda d: d[:-9]), "no model"),
    model("of nested JSON", bytes_edit(MODEL, lambda _: b"[" * 100_000), "no model"),
    model("of a list", bytes_edit(MODEL, lambda _: b"[]"), "does not describe a model"),
    model("of 17 MiB", bytes_edit(MODEL, lambda d: d + b" " * 17 * 2**20), "longer than"),
    model(
        "with a NaN",
        bytes_edit(MODEL, lambda d: d.replace(b'"scores"', b'"x":NaN,"scores"', 1)),
        "NaN in model.json",
    ),
    model(
        "with other tensors",
        bytes_edit("run/model/model.safetensors", lambda d: d[:-4] + b"\1" * 4),
        "sha256 is not model.json's",
    ),
    described("of another kind", "kind", value="run", says="does not describe a model"),
    described("of a later format", "format", value=99, says="use a newer toptune"),
    described("of an older format", "format", value=1, says="fit again"),
    described("without a head", "head", value=..., says="there is no 'head'"),
    described("of an unknown head", "head", "name", value="forest", says="forest"),
    described("with an unknown parameter", "head", "params", "depth", value=3, says="depth"),
    described("of one class", "head", "classes", value=["A"], says="two classes or more"),
    described("of one class twice", "head", "classes", value=["A", "A"], says="all different"),
    described("of three classes", "head", "classes", value=["A", "B", "C"], says="damaged"),
    described("without settings", "provenance", "settings", value=..., says="settings"),
    described(
        "with other settings", "provenance", "settings", "ptsd", "speed", value=1, says="speed"
    ),
    described("without views", "provenance", "views", value=[], says="damaged"),
    described("with two weights", "weights", value=[None, None], says="damaged"),
    described("with strange weights", "weights", value=[{"url": "x"}], says="url"),
    described("with a temperature of 0", "inverse_temperature", value=0.0, says="must be above 0"),
    described("with a temperature of text", "inverse_temperature", value="hot", says="damaged"),
    described("without scores", "scores", value={}, says="scores have no"),
    described("without limits", "novelty", value=..., says="there is no 'novelty'"),
    described(
        "with a limit of text", "novelty", "least_nearness", value="x", says="least_nearness"
    ),
    described("with half a range", "novelty", "n_electrodes", value=[1], says="damaged"),
    Case(
        "model: whose seed is another",
        json_edit(MODEL, put("weights", value=[{"path": None, "seed": 7}])),
        PREDICT,
        ("needs tiny with random weights", "the right file"),
    ),
    Case(
        "model: whose weights are not there",
        json_edit(MODEL, lambda m: _weights_from_file(m, "/no/w.pth")),
        PREDICT,
        ("not found at /no/w.pth", "--weights"),
    ),
    Case(
        "model: and weights that are not its own",
        lambda f: (f / "w.pth").write_bytes(b"x"),
        (*PREDICT, "--weights", "w.pth"),
        ("w.pth", "is not what the model needs"),
    ),
    Case("run: that is there", lambda _: None, (*FIT[:-1], "run"), ("run exists", "--overwrite")),
    Case(
        "run: that is another's folder",
        mine("notes.txt", "mine"),
        (*FIT[:-1], "mine", "--overwrite"),
        ("mine is not a run of toptune",),
    ),
    Case(
        "run: with nested params.json",
        mine("params.json", "[" * 100_000),
        (*FIT[:-1], "mine", "--overwrite"),
        ("mine is not a run of toptune",),
    ),
    Case("run: below a file", lambda _: None, (*FIT[:-1], "r0.csv/run"), ("r0.csv",)),
)


def _weights_from_file(content: Any, path: str) -> None:
    content["weights"] = [{"path": path, "seed": None}]
    content["provenance"]["views"][0]["params"]["backbone"]["weights"] = "file"


CASES = (*WEIGHTS, *MODELS)
