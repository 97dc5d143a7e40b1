"""What was run and how to repeat it, as a section of a report.

The list of settings and the commands are made from the parameter classes (`options_of`) and from
the options of the classifier. What no option sets is written as a comment below the commands.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from toptune.errors import InputError
from toptune.heads.catalogue import head_of
from toptune.machine.display import count
from toptune.params import (
    Backbone,
    BurstCriteria,
    Compute,
    FitOptions,
    HighPass,
    Option,
    Picture,
    Ptsd,
    SpikeSettings,
    Windows,
    command_words,
    options_of,
    picture_words,
    word,
    write_merge,
)
from toptune.recordings.simulated import simulation_of
from toptune.recordings.trains import WeightsSource
from toptune.reports.page import Block, Code, Details, Section, Table, Text
from toptune.runs.reading import ReadRun
from toptune.store.feature_store import FeatureSet, FeatureStore

# Options of features that several pictures share.
_NOT_DRAWN = [one for cls in (Windows, Backbone) for one in options_of(cls)]


class Setting(NamedTuple):
    """A parameter with another value than its default."""

    part: str  # the step it belongs to
    name: str  # name of the option, or of the parameter where no option sets it
    value: Any
    default: Any
    has_option: bool  # whether an option of the command line sets it to this value


def setup_section(run: ReadRun, store: FeatureStore | None = None) -> Section:
    """Show the settings that differ from the defaults, the commands, and all parameters."""
    settings = changed_settings(run)
    listed: Block = Text(text="All settings have their default values.")
    if settings:
        listed = Table(
            caption="All settings that differ from the defaults",
            header=("step", "setting", "this run", "default"),
            rows=tuple((s.part, s.name, _shown(s.value), _shown(s.default)) for s in settings),
        )
    names = tuple(Text(text=view["name"]) for view in run.views)
    blocks = (
        Details(summary=count(len(names), "feature set"), blocks=names),
        listed,
        Text(text="These commands repeat the run:"),
        Code(text="\n".join(commands(run, store))),
        Details(
            summary="All parameters, and the machine it ran on",
            printed=False,
            blocks=(
                Text(text="params.json", quiet=True),
                Code(text=json.dumps(run.params, indent=2)),
                Text(text="environment.json", quiet=True),
                Code(text=json.dumps(run.environment, indent=2)),
            ),
        ),
    )
    return Section(title="Settings, and how to repeat this run", blocks=blocks)


# --- settings


def changed_settings(run: ReadRun) -> list[Setting]:
    """List the settings that differ from their defaults, in the order of the steps."""
    found = _spike_settings(_settings_of(run))
    for view in run.views:
        part = "features" if len(run.views) == 1 else f"features {view['key'][:8]}"
        found += _view_settings(part, view["params"])
    found += _changed("fit", FitOptions, _fit_values(run))
    return found + _classifier_settings(run)


def _changed(part: str, cls: type, values: Mapping[str, Any]) -> list[Setting]:
    """List the values, by a parameter class's fields, that differ from the class's defaults."""
    called = {one.field: one.name for one in options_of(cls)}
    defaults = {one.name: one.default for one in fields(cls)}
    return [
        Setting(part, called.get(name, name), value, defaults.get(name), name in called)
        for name, value in values.items()
        if value != defaults.get(name)
    ]


def _settings_of(run: ReadRun) -> dict[str, Any]:
    settings: dict[str, Any] = run.params["features"]["settings"]
    return settings


def _spike_settings(settings: Mapping[str, Any]) -> list[Setting]:
    settings = dict(settings)
    highpass, ptsd = settings.pop("highpass"), settings.pop("ptsd")
    return [
        *_changed("spikes", HighPass, highpass),
        *_changed("spikes", Ptsd, ptsd),
        *_changed("spikes", SpikeSettings, settings),
    ]


def _view_settings(part: str, params: Mapping[str, Any]) -> list[Setting]:
    found = _changed(part, Windows, params["windows"] or {})
    if "criteria" in params:
        return found + _changed(part, BurstCriteria, params["criteria"])
    found += _changed(part, Picture, params["picture"])
    backbone = {name: params["backbone"][name] for name in ("name", "weights")}
    return found + _changed(part, Backbone, backbone)


def _fit_values(run: ReadRun) -> dict[str, Any]:
    """Give the values of `FitOptions`, as far as they are those of `fit` and not of a head."""
    params, requested = run.params, run.params.get("requested", {})
    merge = tuple(write_merge(name, members) for name, members in params["merge"].items())
    return {
        "group_by": params["group_by"],
        "merge": merge,
        "classes": requested.get("classes"),
        "strata": params.get("strata"),
        "tune": requested.get("tune", len(params["candidates"]) > 1),
        "permutations": requested.get("permutations"),
        "windows_per_recording": requested.get("windows_per_recording"),
        "seed": params["seed"],
    }


def _classifier_settings(run: ReadRun) -> list[Setting]:
    requested = run.params.get("requested", {})
    options = {one.field: one for one in _head_options(run)}
    part = f"classifier {run.params['head']}"
    found = []
    for name, value in requested.get("fixed", {}).items():
        one = options.get(name)
        if one is None:
            found.append(Setting(part, name, value, None, False))
        else:
            default = "tuned" if one.several else one.default
            found.append(Setting(part, one.name, value, default, _fits(one, value)))
    found += [
        Setting(part, f"{options[name].name}, values to choose from", values, "default grid", True)
        for name, values in requested.get("tried", {}).items()
    ]
    return found


def _head_options(run: ReadRun) -> tuple[Option, ...]:
    try:
        return head_of(run.params["head"]).options
    except InputError:  # of a package that is not installed here
        return ()


def _fits(one: Option, value: Any) -> bool:
    """Whether the command line can give a value: a list only where one value is a list."""
    return not isinstance(value, list) or getattr(one.type, "__origin__", None) is tuple


# --- commands


def commands(run: ReadRun, store: FeatureStore | None = None) -> list[str]:
    """Write an `extract` for each feature set, then the `fit`; what no option sets is a comment.

    Where the recordings were simulated, the first command simulates them.
    """
    devices = run.params.get("devices")
    place = run.params.get("store") or (str(store.path.resolve()) if store else "store.zarr")
    missing = bool(run.metrics.get("missing_recordings"))
    shared = [
        *command_words(
            options_of(SpikeSettings), _values(_spike_settings(run.params["features"]["settings"]))
        ),
        *option_words(keep_going=missing),
    ]
    extract = ["toptune", "extract", devices or "devices.csv", *option_words(store=place)]
    lines = [*_simulate_command(devices)]
    lines += [shlex.join([*extract, *features, *shared]) for features in _feature_words(run)]
    lines.append(shlex.join(["toptune", "fit", place, *_fit_words(run, missing=missing)]))
    return [*lines, *_comments(run, devices)]


def extract_commands(store: FeatureStore) -> Iterator[str]:
    """Write an `extract` for each feature set of a store, which makes what is missing in it."""
    devices = store.devices_file
    settings = _spike_settings(store.settings)
    shared = command_words(options_of(SpikeSettings), _values(settings))
    extract = ["toptune", "extract", str(devices or "devices.csv")]
    extract += option_words(store=str(store.path))
    drawn = []
    for one in store.feature_sets():
        infos = (store.features_info(info.name, one.key) for info in store.recordings)
        computed = next((i["computed"] for i in infos if i is not None and "computed" in i), None)
        made = [computed] if computed else []
        drawn.append(Drawn(one.params, store.weights_source(one.key), made))
    for features in _words_of(drawn) if drawn else [picture_words(())]:
        yield shlex.join([*extract, *features, *shared])
    if devices is None:
        yield "# devices.csv: put here the devices file, whose path this store does not know"
    yield from _not_options(settings)


def _simulate_command(devices: str | None) -> Iterator[str]:
    """Give the command that made a devices file and its recordings, if `simulate` did."""
    folder = Path(devices).parent if devices else None
    made = simulation_of(folder) if folder else None
    if made is not None:
        words = option_words(
            devices=made["n_devices"], seconds=made["seconds"], seed=made["seed"], overwrite=True
        )
        yield shlex.join(["toptune", "simulate", str(folder), *words])


class Drawn(NamedTuple):
    """A feature set of pictures."""

    params: Mapping[str, Any]
    source: WeightsSource | None
    computed: Sequence[Mapping[str, Any]]  # with which devices and precisions


def _feature_words(run: ReadRun) -> Iterator[list[str]]:
    """Give the options of each `extract` that the run needs; one makes several pictures."""
    made_with = run.params["features"].get("made_with", {})
    drawn = [
        Drawn(view["params"], source, made_with.get(view["key"], {}).get("computed", ()))
        for view, source in zip(run.views, run.sources, strict=False)
        if "criteria" not in view["params"]
    ]
    yield from _words_of(drawn)


def _words_of(drawn: Sequence[Drawn]) -> Iterator[list[str]]:
    pictures: dict[tuple[str, ...], list[Picture]] = {}
    for params, source, computed in drawn:
        values = _values(_view_settings("", params)) | _weights(source)
        words = (*command_words(_NOT_DRAWN, values), *_computed_words(computed))
        pictures.setdefault(words, []).append(Picture.from_json(params["picture"]))
    for words, alike in pictures.items():
        yield [*words, *picture_words(alike)]
    if not drawn:
        yield picture_words(())  # spikes are all that it needs


def _weights(source: WeightsSource | None) -> dict[str, Any]:
    known = {} if source is None else {"weights": source.path, "seed": source.seed}
    return {name: value for name, value in known.items() if value is not None}


def _computed_words(computed: Any) -> list[str]:
    """Give the options for the device and precision that features were computed with."""
    if not computed:
        return []
    device = str(computed[0]["device"]).partition(":")[0]
    usual = "float32" if device == "cpu" else "float16"
    precision = computed[0]["precision"]
    asked = "auto" if precision == usual else "float32" if precision == "float32" else "half"
    return command_words(options_of(Compute), {"device": device, "precision": asked})


def _fit_words(run: ReadRun, *, missing: bool) -> list[str]:
    requested = run.params.get("requested", {})
    values = _fit_values(run)
    if "requested" not in run.params:
        values["permutations"] = run.params["permutations"]
    # One value of an option that takes several fixes it.
    fixed = {name: [value] for name, value in requested.get("fixed", {}).items()}
    given = {**fixed, **requested.get("tried", {})}
    options = _head_options(run)
    of_head = {
        one.name: given[one.field] if one.several else given[one.field][0]
        for one in options
        if one.field in given and all(_fits(one, value) for value in given[one.field])
    }
    return [
        *option_words(
            head=run.params["head"], features=_chosen_features(run), allow_incomplete=missing
        ),
        *command_words(options_of(FitOptions), values),
        *command_words(options, of_head),
        *command_words(options_of(Compute), {"device": requested.get("device")}),
        "-o",
        f"{run.name}-again",
    ]


def _chosen_features(run: ReadRun) -> list[str]:
    """Name the feature sets as `fit` reads them; none for burst parameters of whole recordings."""
    names = []
    for view in run.views:
        params = view["params"]
        if "criteria" not in params:
            names.append(_key_of_command(params)[:8])
        elif params["windows"]:
            width, stride = (word(params["windows"][name]) for name in ("width_s", "stride_s"))
            names.append(f"{params['kind']} {width} s every {stride} s")
    return names


def _key_of_command(params: Mapping[str, Any]) -> str:
    """Give the key of the features that the command makes, whose numbers are never whole ones.

    Python may have been given ``width_s=10``, which is the same but not to a key.
    """
    windows = {name: float(value) for name, value in params["windows"].items()}
    axis = params["picture"]["count_axis"]
    picture = params["picture"] | {"count_axis": axis if isinstance(axis, str) else float(axis)}
    return FeatureSet.of({**params, "windows": windows, "picture": picture}).key


def _comments(run: ReadRun, devices: str | None) -> Iterator[str]:
    """Say what the commands cannot express."""
    if devices is None:
        yield "# devices.csv: put here the devices file, whose path this run does not know"
    if "requested" not in run.params:
        yield "# options of the classifier: not recorded by the version that made this run"
    yield from _not_options(changed_settings(run))


def _not_options(settings: Iterable[Setting]) -> Iterator[str]:
    for setting in settings:
        if not setting.has_option:
            # Escaped, since a line break would end the comment.
            yield (
                f"# {setting.part}: {setting.name} = {json.dumps(setting.value)} cannot be set on"
                " the command line, but from Python"
            )


def _values(settings: list[Setting]) -> dict[str, Any]:
    return {setting.name: setting.value for setting in settings if setting.has_option}


def option_words(**values: Any) -> list[str]:
    """Write options that belong to no parameter class; what is empty or None is left out."""
    given = {name: value for name, value in values.items() if value}
    options = [
        Option(name=name, field=name, type=str, default=None, help="", several=True)
        for name in given
    ]
    return command_words(options, given)


def _shown(value: Any) -> str:
    """Write a value for people."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple):
        return "; ".join(word(one) for one in value)
    return word(value)
