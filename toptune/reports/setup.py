"""What was run and how to run it again, for a report.

What enters: a run read back. What leaves: the settings that differ from their defaults, command
lines that repeat the run, and everything else as it was written down.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from toptune.errors import InputError
from toptune.features.burst_features import KIND
from toptune.heads.catalogue import head_of
from toptune.params import Backbone, BurstCriteria, HighPass, Picture, Ptsd, Windows
from toptune.recordings.facts import WeightsSource
from toptune.reports.page import Block, Code, Details, Section, Table, Text
from toptune.runs.reading import ReadRun

# The option of `extract` that sets each parameter; what is not here has none.
_OPTIONS = {
    "width_s": "--window-s",
    "stride_s": "--stride-s",
    "kind": "--picture",
    "count_axis": "--count-axis",
    "name": "--backbone",
    "weights": "--weights",
    "seed": "--seed",
    "cutoff_hz": "--highpass-hz",
    "threshold_sd": "--threshold-sd",
    "lifetime_ms": "--lifetime-ms",
    "refractory_ms": "--refractory-ms",
    "overshoot_ms": "--overshoot-ms",
    "alignment": "--alignment",
    "noise": "--noise",
    "threshold_uv": "--threshold-uv",
    "stream": "--stream",
    "sampling_rate_hz": "--sampling-rate-hz",
}
# What follows from the data, the run's seed or the machine.
_FOLLOWS = {"random_state", "device", "view_sizes"}


class Setting(NamedTuple):
    """A parameter that is not at its default.

    Attributes
    ----------
    part
        What it belongs to.
    name
        Of the parameter.
    value, default
        As they are.
    """

    part: str
    name: str
    value: Any
    default: Any


def setup_section(run: ReadRun, store: str) -> Section:
    """Say what was run: what differs from the defaults, commands, and everything.

    Parameters
    ----------
    run
        The run.
    store
        Its store's path, or a word in its place.
    """
    settings = changed_settings(run)
    blocks: list[Block] = []
    if settings:
        rows = tuple((s.part, s.name, _shown(s.value), _shown(s.default)) for s in settings)
        blocks.append(
            Table(
                caption="All that differs from the defaults",
                header=("part", "parameter", "here", "default"),
                rows=rows,
            )
        )
    else:
        blocks.append(Text(text="Everything was left at its default."))
    blocks += [
        Text(text="These commands do the same again:"),
        Code(text="\n".join(commands(run, store))),
        Details(
            summary="Everything that was set, and where it ran",
            blocks=(
                Text(text="params.json", quiet=True),
                Code(text=json.dumps(run.params, indent=2)),
                Text(text="environment.json", quiet=True),
                Code(text=json.dumps(run.environment, indent=2)),
            ),
        ),
    ]
    return Section(title="What was run, and how to repeat it", blocks=tuple(blocks))


def changed_settings(run: ReadRun) -> list[Setting]:
    """List the parameters that are not at their defaults, in the order of the flow."""
    found = _changed("spikes", _spike_settings(run), _spike_defaults())
    for view in run.views:
        part = "features" if len(run.views) == 1 else f"features {view['key'][:8]}"
        found += _changed(part, _view_settings(view), _view_defaults())
    params = run.params
    fit_defaults = {"seed": 0, "group_by": "device", "strata": None, "merge": {}}
    found += _changed("fit", {k: params.get(k, v) for k, v in fit_defaults.items()}, fit_defaults)
    fixed = _fixed_head_params(run)
    defaults = _head_defaults(run.params["head"])
    found += [Setting(f"{params['head']} head", k, v, defaults.get(k)) for k, v in fixed.items()]
    found += _tuned_settings(run)
    return found


def commands(run: ReadRun, store: str) -> list[str]:
    """Write command lines that repeat a run.

    Parameters
    ----------
    run
        The run.
    store
        The store's path.

    Returns
    -------
    list of str
        An `extract` for each feature set, then the `fit`. What no option sets is said as a comment.
    """
    lines = []
    spikes = _options(_changed("", _spike_settings(run), _spike_defaults()))
    if all(_is_measured(view) for view in run.views):
        # Any extraction finds the spikes, which is all that is needed.
        lines.append(shlex.join(["toptune", "extract", "devices.csv", "--store", store, *spikes]))
    for number, view in enumerate(run.views):
        if _is_measured(view):
            continue
        source = run.sources[number] if number < len(run.sources) else None
        options = _options(_changed("", _view_settings(view, source), _view_defaults()))
        words = ["toptune", "extract", "devices.csv", "--store", store, *options, *spikes]
        lines.append(shlex.join(words))
    lines.append(shlex.join(["toptune", "fit", store, *_fit_options(run)]))
    beyond = [s for s in changed_settings(run) if _only_python(s)]
    lines += [f"# {s.part}: {s.name} = {_shown(s.value)} has no option; set it from Python"
              for s in beyond]  # fmt: skip
    return lines


# --- settings and their defaults, name by name


def _changed(part: str, values: dict[str, Any], defaults: dict[str, Any]) -> list[Setting]:
    return [
        Setting(part, name, value, defaults.get(name))
        for name, value in values.items()
        if value != defaults.get(name)
    ]


def _spike_settings(run: ReadRun) -> dict[str, Any]:
    settings = run.params["features"]["settings"]
    rest = {k: v for k, v in settings.items() if not isinstance(v, dict)}
    return {**settings["highpass"], **settings["ptsd"], **rest}


def _spike_defaults() -> dict[str, Any]:
    return {**HighPass().to_json(), **Ptsd().to_json()}


def _is_measured(view: dict[str, Any]) -> bool:
    """Whether a view holds burst parameters and no picture's features."""
    return bool(view["params"].get("kind") == KIND)


def _view_settings(view: dict[str, Any], source: WeightsSource | None = None) -> dict[str, Any]:
    """Flatten what drew and described a view; weights by their path where it is known."""
    params = view["params"]
    if _is_measured(view):
        return {**params["criteria"], **(params["windows"] or {})}
    flat: dict[str, Any] = {}
    for name, part in params.items():
        if name != "backbone":
            flat |= part if isinstance(part, dict) else {name: part}
    backbone = params.get("backbone", {})
    flat |= {k: backbone[k] for k in ("name", "weights") if k in backbone}
    if source is not None and source.path is not None:
        flat["weights"] = source.path
    if source is not None and source.seed:
        flat["seed"] = source.seed
    return flat


def _view_defaults() -> dict[str, Any]:
    made = (Windows(), Picture(), Backbone(), BurstCriteria())
    return {name: value for params in made for name, value in params.to_json().items()}


def _head_defaults(head: str) -> dict[str, Any]:
    try:
        defaults: dict[str, Any] = head_of(head).make({}).get_params()
    except InputError:  # of a later toptune: then all its parameters are told
        return {}
    return defaults


def _tuned(run: ReadRun) -> list[str]:
    """Names of what was chosen inside the folds."""
    candidates = run.params["candidates"]
    return list(candidates[0]) if len(candidates) > 1 else []


def _fixed_head_params(run: ReadRun) -> dict[str, Any]:
    """Find what the user gave of the head's parameters, not at their defaults."""
    defaults = _head_defaults(run.params["head"])
    skipped = _FOLLOWS | set(_tuned(run))
    if run.metrics.get("centres"):
        skipped.add("n_centres")
    return {
        name: value
        for name, value in run.params["head_params"].items()
        if name not in skipped and value != defaults.get(name)
    }


def _tried(run: ReadRun) -> dict[str, list[Any]]:
    """Values that were chosen from, by parameter, each once and in their order."""
    tried: dict[str, list[Any]] = {}
    for candidate in run.params["candidates"]:
        for name, value in candidate.items():
            values = tried.setdefault(name, [])
            if value not in values:
                values.append(value)
    return tried


def _default_candidates(run: ReadRun) -> list[dict[str, Any]]:
    """List what tuning chooses from unless told otherwise."""
    head = head_of(run.params["head"])
    return [_listed(one) for one in head.candidates({}, {}, len(run.views), tune=True)]


def _listed(candidate: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in candidate.items()}


def _tuned_settings(run: ReadRun) -> list[Setting]:
    """How tuning differs from what it does by itself."""
    part = f"{run.params['head']} head"
    default = _default_candidates(run)
    if len(run.params["candidates"]) == 1:
        return [Setting(part, "tuning", "none", f"{len(default)} settings in every fold")] * (
            len(default) > 1
        )
    if run.params["candidates"] == default:
        return []
    return [Setting(part, f"{name}, to choose from", values, "the default grid")
            for name, values in _tried(run).items()]  # fmt: skip


# --- as options


def _options(settings: Iterable[Setting]) -> list[str]:
    words: list[str] = []
    for setting in settings:
        if setting.name in _OPTIONS:
            words += [_OPTIONS[setting.name], _shown(setting.value)]
    return words


def _only_python(setting: Setting) -> bool:
    if setting.part.startswith(("spikes", "features")):
        return setting.name not in _OPTIONS
    return setting.part.endswith("head") and setting.name in _PYTHON_ONLY


_PYTHON_ONLY = {"normalise", "precision", "tolerance", "max_iterations", "n_hidden"}


def _fit_options(run: ReadRun) -> list[str]:
    params = run.params
    words = ["--head", params["head"]]
    for view in run.views:
        if head_of(params["head"]).uses == "pictures":
            words += ["--features", view["name"] if _is_measured(view) else view["key"][:8]]
    if params["group_by"] != "device":
        words += ["--group-by", params["group_by"]]
    for name, members in params["merge"].items():
        words += ["--merge", f"{name}={','.join(members)}"]
    if params.get("strata"):
        words += ["--strata", params["strata"]]
    words += _head_options(run)
    test = run.metrics["permutations"]
    if test is None or not test["exact"]:
        words += ["--permutations", str(params["permutations"])]
    if params["seed"]:
        words += ["--seed", str(params["seed"])]
    return [*words, "-o", run.name]


def _head_options(run: ReadRun) -> Iterator[str]:
    given = {
        name: [value] for name, value in _fixed_head_params(run).items() if name not in _PYTHON_ONLY
    }
    default = _default_candidates(run)
    if len(run.params["candidates"]) == 1 and len(default) > 1:
        yield "--no-tune"
    elif run.params["candidates"] != default:
        given |= _tried(run)
    for name, values in given.items():
        for value in values:
            yield "--" + name.replace("_", "-")
            yield _shown(value)


def _shown(value: Any) -> str:
    """Write a value as the command line reads it."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(_shown(one) for one in value)
    if isinstance(value, dict):
        return "; ".join(f"{k}={_shown(v)}" for k, v in value.items()) or "none"
    return str(value)
