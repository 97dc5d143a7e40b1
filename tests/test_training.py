"""A run from a feature table: what is refused, what is written, and that it can be used again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from results import read_csv, read_json
from small_data import make_facts, make_provenance, make_view

from toptune import training as fit_module
from toptune.errors import InputError, InputErrors, StorageError
from toptune.evaluation.folds import leave_one_group_out
from toptune.features.table import FeatureTable, RecordingInfo
from toptune.heads.base import Head
from toptune.heads.catalogue import head_of
from toptune.heads.falkon import head as falkon_head
from toptune.params import FitOptions
from toptune.runs.model import load_model, read_model
from toptune.training import RunResult

FILES = {
    "metrics.json", "folds.csv", "windows.csv", "devices.csv", "confusion.csv", "confusion.png",
    "params.json", "environment.json", "report.html", "model",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make_table(seed: int = 0) -> FeatureTable:
    """Twelve devices of three classes, one of them with two recordings; four batches."""
    rng = np.random.default_rng(seed)
    infos = [
        RecordingInfo(f"rec{i:02}", f"dev{i:02}", "ABC"[i % 3], {"batch": f"b{i % 4}"})
        for i in range(12)
    ]
    infos.append(RecordingInfo("rec12", "dev00", "A", {"batch": "b0"}))
    # A recording shorter than a window has none.
    infos.append(RecordingInfo("short", "dev99", "", {}))
    recording = np.repeat(np.arange(13), rng.integers(3, 9, size=13))
    label = np.array(["ABC".index(infos[row].label) for row in recording])
    features = np.abs(
        rng.standard_normal((3, 40))[label]
        + 0.3 * rng.standard_normal((13, 40))[recording]
        + 0.3 * rng.standard_normal((len(label), 40))
    )
    starts = np.concatenate([5.0 * np.arange((recording == i).sum()) for i in range(13)])
    views = (make_view(40),)
    return FeatureTable(
        features.astype(np.float32), starts, recording, tuple(infos), make_provenance(*views), views
    )


def fit(table: FeatureTable, head: str, out: Path, **options: Any) -> RunResult:
    """Fit without tuning and permutations, which have tests of their own, unless told otherwise."""
    options = {"facts": make_facts(table), "tune": False, "permutations": 0, **options}
    names = set(FitOptions.__dataclass_fields__) & set(options)
    of_fit = {name: options.pop(name) for name in sorted(names)}
    return fit_module.fit(table, FitOptions(head=head, **of_fit), out, **options)


@pytest.mark.parametrize("head", ["falkon", "mlp"])
def test_a_run_holds_what_was_promised_and_its_files_agree(head: str, tmp_path: Path) -> None:
    table = make_table()
    params = {"epochs": 40, "learning_rate": 0.005} if head == "mlp" else {}
    result = fit(table, head, tmp_path / "deep" / "run", fixed=params, seed=3, device="cpu")
    assert {path.name for path in result.path.iterdir()} == FILES
    assert [path.name for path in result.path.parent.iterdir()] == ["run"]

    metrics = read_json(result.path / "metrics.json")
    assert metrics == result.metrics
    assert (metrics["head"], metrics["classes"]) == (head, ["A", "B", "C"])
    assert (metrics["n_devices"], metrics["n_windows"]) == (12, len(table.features))
    assert metrics["permutation_p"] is None
    assert metrics["device_accuracy"] >= 0.75 > metrics["chance"] == pytest.approx(1 / 3)

    windows = read_csv(result.path / "windows.csv")
    assert [row["recording"] for row in windows] == [
        table.recordings[row].name for row in table.recording
    ]
    np.testing.assert_array_equal([float(row["start_s"]) for row in windows], table.start_s)
    for row in windows:
        shares = {name: float(row[f"probability_{name}"]) for name in "ABC"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == max(shares, key=lambda name: shares[name])
        assert row["correct"] == str(int(row["label"] == row["prediction"]))

    # Folds, devices and confusions follow from the windows.
    folds = read_csv(result.path / "folds.csv")
    for row in folds:
        mine = [w for w in windows if w["group"] == row["group"]]
        assert int(row["n_windows"]) == len(mine) == len(windows) - int(row["n_train_windows"])
        assert int(row["n_correct"]) == sum(int(w["correct"]) for w in mine)
    shares_right = [int(row["n_correct"]) / int(row["n_windows"]) for row in folds]
    assert metrics["window_accuracy_mean"] == pytest.approx(np.mean(shares_right))
    devices = read_csv(result.path / "devices.csv")
    assert [row["device"] for row in devices] == [f"dev{i:02}" for i in range(12)]
    for row in devices:
        named = [w["prediction"] for w in windows if w["device"] == row["device"]]
        assert [int(row[f"windows_{name}"]) for name in "ABC"] == [named.count(n) for n in "ABC"]
    right = sum(int(row["correct"]) for row in devices)
    assert metrics["device_accuracy"] == right / 12
    for cell in read_csv(result.path / "confusion.csv"):
        rows = devices if cell["unit"] == "device" else windows
        expected = sum(
            (r["label"], r["prediction"]) == (cell["label"], cell["prediction"]) for r in rows
        )
        assert int(cell["count"]) == expected

    written = read_json(result.path / "params.json")
    assert (written["head"], written["seed"], written["group_by"]) == (head, 3, "device")
    assert written["head_params"]["random_state"] == 3
    assert params.items() <= written["head_params"].items()
    assert written["features"] == table.provenance
    environment = read_json(result.path / "environment.json")
    assert environment["device"] == "cpu"
    assert environment["packages"]["numpy"] == np.__version__
    assert (result.path / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("head", ["falkon", "mlp", "recordings"])
def test_the_model_is_trained_on_all_devices_and_predicts_as_before(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table()
    fitted = []

    make = Head.make

    def remember(self: Head, params: Mapping[str, Any]) -> Any:
        fitted.append(make(self, params))
        return fitted[-1]

    monkeypatch.setattr(Head, "make", remember)
    result = fit(table, head, tmp_path / "run", device="cpu")
    model = read_model(result.path / "model")
    assert (model.head, model.provenance) == (head, table.provenance)
    assert {path.name for path in (result.path / "model").iterdir()} == {
        "model.json",
        "model.safetensors",
    }
    new = make_table(seed=9).features
    np.testing.assert_array_equal(model.estimator.predict_proba(new), fitted[0].predict_proba(new))
    np.testing.assert_array_equal(
        load_model(result.path / "model").predict(new), fitted[0].predict(new)
    )
    if head == "falkon":
        assert len(model.estimator.centres_) == len(table.features)
    if head == "recordings":
        sizes = np.bincount(np.minimum(table.recording, 12) % 12)
        assert model.estimator.sizes_.tolist() == sizes.tolist()


@pytest.mark.parametrize("head", ["falkon", "mlp"])
def test_equal_seeds_give_equal_files_but_for_the_time(head: str, tmp_path: Path) -> None:
    params = {"n_centres": 20} if head == "falkon" else {"epochs": 2}

    def run(name: str, seed: int) -> dict[str, Any]:
        # The report tells the folder's name.
        out = tmp_path / name / "run"
        path = fit(make_table(), head, out, fixed=params, seed=seed).path
        files: dict[str, Any] = {
            str(file.relative_to(path)): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file()
        }
        files["metrics.json"] = read_json(path / "metrics.json")
        del files["metrics.json"]["seconds"]
        report, n_times = re.subn(rb"scoring took [\d.]+ s", b"", files["report.html"])
        assert n_times == 1
        return {**files, "report.html": report}

    first, again, other = run("a", 1), run("b", 1), run("c", 2)
    assert first == again
    assert first["windows.csv"] != other["windows.csv"]


def test_whole_batches_are_left_out_together(tmp_path: Path) -> None:
    table = make_table()
    result = fit(table, "falkon", tmp_path / "run", group_by="batch")
    label = np.array([table.recordings[row].label for row in table.recording])
    batch = np.array([table.recordings[row].columns["batch"] for row in table.recording])
    classifier = head_of("falkon").make({})
    expected = leave_one_group_out(classifier, table.features, label, batch)
    np.testing.assert_allclose(result.folds.scores, expected.scores, atol=1e-7)
    assert [row["group"] for row in read_csv(result.path / "folds.csv")] == ["b0", "b1", "b2", "b3"]
    assert result.metrics["n_groups"] == 4
    assert result.metrics["n_devices"] == 12


def test_merged_classes_are_what_is_trained(tmp_path: Path) -> None:
    result = fit(make_table(), "falkon", tmp_path / "run", merge=["AB=A,B"])
    assert result.metrics["classes"] == ["AB", "C"]
    assert result.metrics["chance"] == pytest.approx(8 / 12)
    assert set(read_model(result.path / "model").estimator.classes_) == {"AB", "C"}
    assert read_json(result.path / "params.json")["merge"] == {"AB": ["A", "B"]}


def with_batches(batch_of: Callable[[str], str]) -> FeatureTable:
    """The table with every recording in the batch that its label says."""
    table = make_table()
    infos = [replace(r, columns={"batch": batch_of(r.label)}) for r in table.recordings]
    return replace(table, recordings=tuple(infos))


@pytest.mark.parametrize(
    ("batch_of", "options", "expected"),
    [
        (lambda _: "b0", {}, []),
        (lambda label: "b1" if label == "C" else "", {}, []),
        (
            lambda label: "b1" if label == "C" else "b0",
            {},
            ["class A lies in one batch only, b0", "class B lies in one batch only, b0",
             "class C lies in one batch only, b1"],
        ),
        (
            lambda label: "b1" if label == "C" else "b0",
            {"merge": ["AB=A,B"]},
            ["class AB lies in one batch only, b0", "class C lies in one batch only, b1"],
        ),
    ],
)  # fmt: skip
def test_a_class_in_one_batch_only_is_warned_of(
    batch_of: Callable[[str], str], options: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    result = fit(with_batches(batch_of), "falkon", tmp_path / "run", **options)
    warnings = read_json(result.path / "metrics.json")["warnings"]
    assert [w.partition(":")[0] for w in warnings] == expected
    assert all("may be the batch, not the class" in w for w in warnings)


def test_a_class_in_one_stratum_only_is_warned_of_and_mixed_batches_are_not(tmp_path: Path) -> None:
    table = make_table()
    infos = [
        replace(r, columns={**r.columns, "dish": "d1" if r.label == "B" else f"d{i % 2}"})
        for i, r in enumerate(table.recordings)
    ]
    table = replace(table, recordings=tuple(infos))
    assert fit(table, "falkon", tmp_path / "a").metrics["warnings"] == []
    (warning,) = fit(table, "falkon", tmp_path / "b", strata="dish").metrics["warnings"]
    assert warning.startswith("class B lies in one dish only, d1")


def change(table: FeatureTable, row: int, **changes: Any) -> FeatureTable:
    infos = list(table.recordings)
    infos[row] = replace(infos[row], **changes)
    return replace(table, recordings=tuple(infos))


def with_nan(table: FeatureTable) -> FeatureTable:
    features = table.features.copy()
    features[np.flatnonzero(table.recording == 4)[:2], 7] = np.nan
    return replace(table, features=features)


def only(table: FeatureTable, labels: str) -> FeatureTable:
    keep = [table.recordings[row].label in labels for row in table.recording]
    return replace(
        table,
        features=table.features[keep],
        start_s=table.start_s[keep],
        recording=table.recording[keep],
    )


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda t: change(t, 3, label=""), {}, "recording rec03 has no label"),
        (lambda t: change(t, 3, device=""), {}, "recording rec03 has no device"),
        (lambda t: t, {"group_by": "div"}, "recording rec00 has no div"),
        (lambda t: change(t, 3, name="rec04"), {}, "recording rec04 is in the table 2 times"),
        (with_nan, {}, "recording rec04: 2 windows have features that are NaN"),
        (lambda t: change(t, 3, label="D"), {}, "class D has one group, dev03"),
        (lambda t: only(t, "A"), {}, "there is one class, A"),
        (lambda t: t, {"merge": ["X=A,B,C"]}, "there is one class, X"),
        (lambda t: only(t, ""), {}, "there are no windows"),
        (
            lambda t: change(t, 12, columns={"batch": "b3"}),
            {"group_by": "batch"},
            "device dev00 is in groups b0 and b3: a device must be left out whole",
        ),
        (lambda t: t, {"merge": ["X=A,Q"]}, "cannot merge class 'Q'"),
        (lambda t: t, {"merge": ["A,B"]}, "not of the form NAME=A,B,C"),
        (lambda t: t, {"head": "svm"}, "there is no classifier 'svm'"),
        (lambda t: t, {"fixed": {"gamma": 1}}, "no parameter 'gamma'"),
        (lambda t: t, {"fixed": {"random_state": 1}}, "`random_state` follows from the run's seed"),
        (lambda t: t, {"device": "gpu"}, "device must be auto, cpu or cuda, got 'gpu'"),
        (lambda t: t, {"head": "mlp", "device": "abacus"}, "got 'abacus'"),
        (lambda t: t, {"strata": "div", "permutations": 9}, "recording rec00 has no div"),
        (
            lambda t: t,
            {"tune": True, "tried": {"n_centres": [9, 12]}},
            "`n_centres` of the classifier",
        ),
        (
            lambda t: t,
            {"tried": {"width": [0.5, 1.0]}},
            "`width` is to be chosen from [0.5, 1.0], but",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    damage: Callable[[FeatureTable], FeatureTable],
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    arguments = {"head": "falkon", **options}
    with pytest.raises(InputErrors) as refused:
        fit(damage(make_table()), out=tmp_path / "run", **arguments)
    assert any(message in problem for problem in refused.value.problems)
    assert all("\n" not in problem for problem in refused.value.problems)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("permutations", -1), ("seed", 2**32), ("tune", "yes"), ("group_by", 3), ("strata", 3)],
)
def test_options_of_a_fit_are_checked_where_they_are_made(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"FitOptions.{name} must be .*, got {value!r}"):
        FitOptions(head="falkon", **{name: value})


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    table = change(with_nan(make_table()), 3, label="")
    with pytest.raises(InputErrors) as refused:
        fit(table, "falkon", tmp_path / "run", merge=["A"], fixed={"sigma": 1})
    text = "\n".join(refused.value.problems)
    assert len(refused.value.problems) == 5
    for part in ("exists", "NAME=A,B,C", "'sigma'", "rec04", "rec03 has no label"):
        assert part in text


def test_a_run_is_replaced_only_when_told_and_nothing_else_ever(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(make_table(), "falkon", out, seed=1)
    (out / "note.txt").write_text("mine")
    with pytest.raises(InputErrors, match="exists; choose another name or give `overwrite=True`"):
        fit(make_table(), "falkon", out, seed=2)
    assert read_json(out / "params.json")["seed"] == 1
    fit(make_table(), "falkon", out, seed=2, overwrite=True)
    assert read_json(out / "params.json")["seed"] == 2
    assert {path.name for path in out.iterdir()} == FILES

    for name, text in (("thesis", None), ("config", '{"kind": "other"}'), ("list", "[]")):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "params.json").write_text(text)
        with pytest.raises(InputErrors, match="is not a run of toptune"):
            fit(make_table(), "falkon", tmp_path / name, overwrite=True)
        assert (tmp_path / name).is_dir()


def test_a_failure_while_writing_leaves_the_old_run_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    fit(make_table(), "falkon", out, seed=1)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(fit_module, "write_model", fail)
    with pytest.raises(StorageError, match=r"run cannot be written \(disk full\)"):
        fit(make_table(), "falkon", out, seed=2, overwrite=True)
    assert read_json(out / "params.json")["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_failure_while_replacing_brings_the_old_run_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    fit(make_table(), "falkon", out, seed=1)
    rename = Path.rename
    # As on file systems where two folders cannot change names at once.
    monkeypatch.setattr("toptune.machine.durable.exchange", lambda *_: False)

    def fail_to_publish(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("the network share is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_publish)
    with pytest.raises(StorageError, match="share is gone"):
        fit(make_table(), "falkon", out, seed=2, overwrite=True)
    assert read_json(out / "params.json")["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_many_windows_get_nystrom_centres_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(falkon_head, "ALL_ROWS_CAP", 30)
    monkeypatch.setattr(falkon_head, "NYSTROM_CENTRES", 25)
    result = fit(make_table(), "falkon", tmp_path / "run")
    assert "25 of" in result.metrics["centres"]
    assert read_json(result.path / "params.json")["head_params"]["n_centres"] == 25
    assert len(read_model(result.path / "model").estimator.centres_) == 25


# --- tuning, permutations and several feature sets


def make_fused(seed: int = 0) -> FeatureTable:
    """Give the same windows a second view, of noise."""
    table = make_table(seed)
    noise = np.random.default_rng(seed).random((len(table.features), 30)).astype(np.float32)
    views = (make_view(40), make_view(30, kind="raster"))
    return replace(
        table,
        features=np.concatenate([table.features, noise], axis=1),
        views=views,
        provenance=make_provenance(*views),
    )


def test_a_tuned_run_says_what_was_chosen_where_and_how_it_was_tested(tmp_path: Path) -> None:
    grid = {"width": [0.3, 1.0], "penalty": [1e-4, 1e-2]}
    table = make_table()
    result = fit(table, "falkon", tmp_path / "run", tune=True, tried=grid, permutations=49)
    metrics = read_json(result.path / "metrics.json")
    assert metrics["calibrated"]
    tuning = metrics["tuning"]
    assert tuning["n_candidates"] == 4
    assert sum(line["folds"] for line in tuning["chosen"]) == 12
    assert metrics["permutation_p"] == pytest.approx(1 / 50)
    assert metrics["permutations"]["parameters"] == "chosen anew under every shuffle"
    assert (metrics["permutations"]["n"], metrics["permutations"]["exact"]) == (49, False)
    assert 0 <= metrics["device_ece"] <= 1
    for row in read_csv(result.path / "folds.csv"):
        assert float(row["chosen_width"]) in (0.3, 1.0)
        assert float(row["chosen_penalty"]) in (1e-4, 1e-2)
        assert float(row["inner_loss"]) > 0
        assert float(row["inverse_temperature"]) > 0
    written = read_json(result.path / "params.json")
    assert len(written["candidates"]) == 4
    assert written["permutations"] == 49
    model = read_model(result.path / "model")
    assert model.estimator.width == tuning["final"]["width"] == written["head_params"]["width"]
    assert model.inverse_temperature == result.evaluation.final_inverse_temperature


def test_fixed_values_are_not_tuned(tmp_path: Path) -> None:
    fixed = {"width": 0.7, "penalty": 1e-3}
    result = fit(make_table(), "falkon", tmp_path / "run", tune=True, fixed=fixed, permutations=9)
    assert result.metrics["tuning"] is None
    assert result.metrics["permutations"]["parameters"] == "fixed beforehand"
    assert "chosen_width" not in read_csv(result.path / "folds.csv")[0]
    one = fit(
        make_table(), "falkon", tmp_path / "one", tune=True, fixed={"width": 0.7},
        tried={"penalty": [1e-4, 1e-3]},
    )  # fmt: skip
    chosen = read_csv(one.path / "folds.csv")
    assert {row["chosen_width"] for row in chosen} == {"0.7"}
    assert one.metrics["tuning"]["n_candidates"] == 2


def test_labels_without_meaning_give_no_small_p(tmp_path: Path) -> None:
    table = make_table()
    names = np.random.default_rng(4).permutation(list("ABC" * 4)).tolist()
    infos = [replace(info, label=name) for info, name in zip(table.recordings, names, strict=False)]
    infos.append(replace(table.recordings[12], label=names[0]))
    infos.append(table.recordings[13])
    noise = np.random.default_rng(1).random(table.features.shape).astype(np.float32)
    result = fit(
        replace(table, recordings=tuple(infos), features=noise), "falkon", tmp_path / "run",
        tune=True, permutations=99,
    )  # fmt: skip
    assert result.metrics["permutation_p"] > 0.05


def test_shuffles_stay_within_strata(tmp_path: Path) -> None:
    result = fit(make_table(), "falkon", tmp_path / "run", strata="batch", permutations=999)
    # Each batch holds one device of each class: (3!)^4 ways.
    assert result.metrics["permutations"]["n"] == 999
    assert not result.metrics["permutations"]["exact"]
    assert read_json(result.path / "params.json")["strata"] == "batch"


def test_fused_feature_sets_are_weighed_inside_the_folds(tmp_path: Path) -> None:
    result = fit(make_fused(), "falkon", tmp_path / "run", tune=True)
    metrics = result.metrics
    # Two penalties, and each of the views left out.
    assert metrics["tuning"]["n_candidates"] == 4
    # The second view is noise; equal weights are left only for what is clearly better.
    assert metrics["tuning"]["final"]["view_weights"][0] >= 0.5
    assert len(metrics["features"]) == 2
    alone = fit(make_table(), "falkon", tmp_path / "alone", tune=True, tried={"width": [1.0, 0.9]})
    assert metrics["device_accuracy"] >= alone.metrics["device_accuracy"] - 0.1
    weights = {row["chosen_view_weights"] for row in read_csv(result.path / "folds.csv")}
    assert all(sum(map(float, text.split(","))) == pytest.approx(1) for text in weights)
    assert read_model(result.path / "model").estimator.view_sizes == (40, 30)


def test_an_mlp_is_tuned_and_tested_by_training_anew(tmp_path: Path) -> None:
    small = {"epochs": 4, "learning_rate": 0.005, "n_hidden": 8}
    tuned = fit(
        make_fused(), "mlp", tmp_path / "tuned", tune=True, fixed=small, device="cpu",
        tried={"learning_rate_decay": [1.0, 0.5]}, permutations=2,
    )  # fmt: skip
    assert tuned.metrics["tuning"]["n_candidates"] == 4
    assert tuned.metrics["calibrated"]
    assert tuned.metrics["permutations"]["parameters"] == "chosen anew under every shuffle"
    assert tuned.metrics["permutation_p"] in (1 / 3, 2 / 3, 1)
    plain = fit(make_fused(), "mlp", tmp_path / "plain", fixed=small, device="cpu", permutations=19)
    assert not plain.metrics["calibrated"]
    assert plain.metrics["permutations"]["parameters"] == "fixed beforehand"
    assert plain.metrics["permutation_p"] >= 0.05
    assert "20 permutations" not in str(plain.metrics["permutations"]["note"])


def test_the_iterative_solver_takes_fixed_values_only(tmp_path: Path) -> None:
    with pytest.raises(InputErrors, match="the solver iterative fits one fold at a time"):
        fit(
            make_table(), "falkon", tmp_path / "run", fixed={"solver": "iterative"},
            tune=True,
        )  # fmt: skip
    result = fit(
        make_table(), "falkon", tmp_path / "run", permutations=None,
        fixed={"solver": "iterative", "n_centres": 30, "penalty": 1e-3},
    )  # fmt: skip
    assert result.metrics["permutation_p"] is None
    assert not result.metrics["calibrated"]
    direct = fit(
        make_table(), "falkon", tmp_path / "direct", fixed={"n_centres": 30, "penalty": 1e-3}
    )
    np.testing.assert_allclose(result.folds.scores, direct.folds.scores, atol=1e-5)


def test_the_device_is_resolved_for_the_solvers_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    iterative = {"solver": "iterative"}

    def resolved(device: str) -> list[str]:
        heads: list[tuple[str, dict[str, str]]] = [
            ("falkon", {}),
            ("falkon", iterative),
            ("mlp", {}),
        ]
        return [head_of(head).device(device, params) for head, params in heads]

    assert resolved("auto") == ["cuda", "cuda", "cuda"]
    # Float64 at a 64th of the rate: the processor is faster, unless the user insists.
    capability = (8, 9)
    assert resolved("auto") == ["cpu", "cuda", "cuda"]
    assert resolved("cuda") == ["cuda", "cuda", "cuda"]
    assert resolved("cpu") == ["cpu", "cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolved("auto") == ["cpu", "cpu", "cpu"]
    with pytest.raises(InputError, match=r"torch finds no GPU, .*; use `device='cpu'`"):
        resolved("cuda")


def test_centres_are_planned_for_the_devices_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from toptune.machine import device as machine_device

    monkeypatch.setattr(machine_device, "free_bytes", lambda _: 8 * 2**30)
    falkon = head_of("falkon")
    params, _ = falkon.prepare({}, n_rows=5024, view_sizes=(8,), device="cuda")
    assert params == {"n_centres": None}
    params, note = falkon.prepare({}, n_rows=12_000, view_sizes=(8,), device="cuda")
    # 8 GiB: four matrices of 11,585 rows fill half.
    assert params == {"n_centres": 4000}
    assert note is not None
    assert "8.0 GiB of memory are at hand, enough for 11585" in note


def test_a_report_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ValueError("no font")

    monkeypatch.setattr(fit_module, "write_report", failing)
    result = fit(make_table(), "falkon", tmp_path / "run", fixed={"n_centres": 20})
    assert (result.path / "model" / "model.json").exists()
    assert "run is published without its report.html (no font): `report` tries again" in caplog.text
