"""What a user may set is read off the parameter classes."""

from __future__ import annotations

import typing

import pytest

from toptune.params import (
    Backbone,
    Compute,
    FitOptions,
    HighPass,
    Picture,
    Ptsd,
    SpikeSettings,
    Windows,
    options_of,
)

ALL = (Backbone, Compute, FitOptions, HighPass, Picture, Ptsd, SpikeSettings, Windows)


@pytest.mark.parametrize("cls", ALL)
def test_an_option_sets_its_field_to_its_default(cls: type) -> None:
    needed = {"head": "mlp"} if cls is FitOptions else {}
    for option in options_of(cls):
        made = cls(**{**needed, option.field: option.default})
        assert made == cls(**needed)
        assert option.help.endswith(".")


def test_names_are_those_of_the_command_line_and_none_stands_twice() -> None:
    names = [option.name for cls in ALL for option in options_of(cls)]
    assert len(names) == len(set(names))
    assert {"highpass_hz", "window_s", "picture", "backbone", "threshold_sd", "group_by"} <= {
        *names
    }


def test_optional_fields_have_the_type_of_one_value() -> None:
    found = {option.name: option for option in options_of(Compute)}
    assert found["n_jobs"].type is int
    assert found["device"].choices == ("auto", "cpu", "cuda")
    assert typing.get_origin({o.name: o for o in options_of(Ptsd)}["noise"].type) is typing.Literal
