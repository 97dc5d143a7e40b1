"""What a user may set is read off the parameter classes."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toptune.errors import InputError
from toptune.params import (
    RECOMMENDED_PICTURES,
    Backbone,
    BurstCriteria,
    Compute,
    FitOptions,
    HighPass,
    Option,
    Picture,
    PictureKind,
    Ptsd,
    SpikeSettings,
    Windows,
    command_words,
    from_options,
    options_of,
    picture_words,
    pictures_of,
    values_of,
)

SOME = (
    *RECOMMENDED_PICTURES,
    Picture(kind="histogram"),
    Picture(kind="raster"),
    Picture(kind="correlation"),
    Picture(kind="sorted_raster"),
    Picture(count_axis="recording"),
    Picture(count_axis=40.0),
)
ALL = (Backbone, Compute, FitOptions, Picture, SpikeSettings, Windows)


@pytest.mark.parametrize("cls", [HighPass, Ptsd, *(cls for cls in ALL if cls != SpikeSettings)])
def test_an_option_sets_its_field_to_its_default(cls: type) -> None:
    needed = {"head": "mlp"} if cls is FitOptions else {}
    for option in options_of(cls):
        made = cls(**{**needed, option.field: option.default})
        assert made == cls(**needed)
        assert option.help.endswith(".")


def test_classes_inside_a_class_are_set_by_their_own_options() -> None:
    changed = {"highpass_hz": 100.0, "highpass_order": 2, "threshold_sd": 7.5, "window_s": 30.0}
    made = from_options(SpikeSettings, changed)
    assert made == SpikeSettings(
        highpass=HighPass(cutoff_hz=100.0, order=2), ptsd=Ptsd(threshold_sd=7.5)
    )
    assert [o.name for o in options_of(SpikeSettings)] == list(values_of(made))
    assert from_options(SpikeSettings, values_of(made)) == made
    assert from_options(Windows, changed) == Windows(width_s=30.0)


def test_names_are_those_of_the_command_line_and_none_stands_twice() -> None:
    names = [option.name for cls in ALL for option in options_of(cls)]
    # A classifier and random weights may each have a seed.
    assert [n for n in {*names} if names.count(n) > 1] == ["seed"]
    assert {"highpass_hz", "window_s", "picture", "backbone", "threshold_sd", "group_by"} <= {
        *names
    }


def test_optional_fields_have_the_type_of_one_value() -> None:
    found = {option.name: option for option in options_of(Compute)}
    assert found["n_jobs"].type is int
    assert found["device"].choices == ("auto", "cpu", "cuda")
    assert typing.get_origin({o.name: o for o in options_of(Ptsd)}["noise"].type) is typing.Literal


def test_command_words_say_only_what_differs_from_the_defaults() -> None:
    options = [o for cls in (Windows, Backbone, FitOptions) for o in options_of(cls)]
    defaults = [Windows(), Backbone(), FitOptions(head="mlp")]
    values = {name: value for made in defaults for name, value in values_of(made).items()}
    assert command_words(options, values) == []
    changed = {
        "window_s": 10.0,
        "stride_s": 0.1 + 0.2,
        "backbone": "timm:x y",
        "merge": ("AB=A,B", "CD=C,D"),
        "tune": False,
        "permutations": 0,
        "strata": None,
    }
    assert command_words(options, {**values, **changed}) == [
        *("--window-s", "10", "--stride-s", "0.30000000000000004", "--backbone", "timm:x y"),
        *("--merge", "AB=A,B", "--merge", "CD=C,D", "--no-tune", "--permutations", "0"),
    ]


def test_the_filter_of_an_earlier_version_is_said_in_the_command() -> None:
    earlier = values_of(SpikeSettings(highpass=HighPass(order=2)))
    assert command_words(options_of(SpikeSettings), earlier) == ["--highpass-order", "2"]


def test_pictures_of_several_kinds_are_listed_once_each() -> None:
    assert pictures_of(()) == (Picture(),)
    assert pictures_of(["raster", "histogram", "raster"], [40.0, "log"]) == (
        Picture(kind="raster"), Picture(count_axis=40.0), Picture(count_axis="log"),
    )  # fmt: skip
    assert pictures_of(["recommended"]) == RECOMMENDED_PICTURES
    assert pictures_of(["sorted_raster", "recommended", "histogram"], ["log", 9.0]) == (
        Picture(kind="sorted_raster"), *RECOMMENDED_PICTURES, Picture(count_axis=9.0),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"one of histogram, .*, recommended, none, got 'rastr'"):
        pictures_of(["rastr"])
    assert pictures_of(["none"]) == ()
    for more in (["none", "raster"], ["none", "recommended"]):
        with pytest.raises(InputError, match="goes with no other picture"):
            pictures_of(more)
    with pytest.raises(InputError, match="goes with no other picture and no count axis"):
        pictures_of(["none"], ["log"])
    with pytest.raises(InputError, match=r"only a histogram has a count axis$"):
        pictures_of(["raster"], [5.0])
    with pytest.raises(InputError, match="recommended pictures have their own"):
        pictures_of(["recommended"], ["log"])


@settings(deadline=None)
@given(st.lists(st.sampled_from(SOME), unique=True))
def test_pictures_are_read_as_they_are_written(pictures: list[Picture]) -> None:
    words = picture_words(pictures)
    told: dict[str, list[str]] = {"--picture": [], "--count-axis": []}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        told[flag].append(value)
    axes = [float(axis) if axis[0].isdigit() else axis for axis in told["--count-axis"]]
    assert {*pictures_of(told["--picture"], axes)} == {*pictures}


def test_recommended_pictures_are_one_word() -> None:
    assert picture_words(RECOMMENDED_PICTURES) == ["--picture", "recommended"]
    assert picture_words([Picture()]) == []
    assert picture_words([Picture(count_axis=0.1)]) == ["--count-axis", "0.1"]
    assert picture_words([Picture(kind="raster"), Picture()]) == [
        "--picture", "raster", "--picture", "histogram",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [k for k in typing.get_args(PictureKind) if k != "histogram"])
def test_only_a_histogram_has_a_count_axis(kind: PictureKind) -> None:
    with pytest.raises(InputError, match="only a histogram has a count axis"):
        Picture(kind=kind, count_axis="log")
    assert Picture(kind=kind).description == kind
    described = [Picture(count_axis=axis).description for axis in ("window", "log", 40.0)]
    assert described == ["histogram", "histogram, axis log", "histogram, axis 40"]


def test_command_words_tell_one_value_from_several() -> None:
    weights = Option(
        name="view_weights", field="view_weights", type=tuple, default=None, help=".", several=True
    )
    assert command_words([weights], {"view_weights": [(0.5, 0.5), (0.9, 0.1)]}) == [
        *("--view-weights", "0.5,0.5", "--view-weights", "0.9,0.1")
    ]
    penalty = Option(
        name="penalty", field="penalty", type=float, default=1e-6, help=".", several=True
    )
    assert command_words([penalty], {"penalty": 1e-7}) == ["--penalty", "1e-07"]


def test_equal_parameters_have_equal_keys_however_numbers_are_written() -> None:
    assert Windows(width_s=10, stride_s=5).key == Windows(width_s=10.0, stride_s=5.0).key
    assert Picture(count_axis=4).key == Picture(count_axis=4.0).key
    assert Ptsd(threshold_sd=8).to_json() == Ptsd(threshold_sd=8.0).to_json()
    assert HighPass(cutoff_hz=300, order=2).to_json()["order"] == 2
    assert type(HighPass(cutoff_hz=300, order=2).to_json()["order"]) is int
    assert type(HighPass(cutoff_hz=300).to_json()["cutoff_hz"]) is float
    whole = SpikeSettings(
        highpass=HighPass(cutoff_hz=300), ptsd=Ptsd(threshold_sd=8), duration_s=60
    )
    halves = SpikeSettings(
        highpass=HighPass(cutoff_hz=300.0), ptsd=Ptsd(threshold_sd=8.0), duration_s=60.0
    )
    assert repr(whole.to_json()) == repr(halves.to_json())
    assert BurstCriteria(start_ms=170).key == BurstCriteria().key
