"""What was done in a run, as a paper's methods section tells it, with every parameter.

Only what the run really used is described and cited, and references are numbered in the order in
which they are first cited. All that is said is from the run's files, and from its store where that
is at hand.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toptune.evaluation.effects import Effects
from toptune.machine.display import count
from toptune.runs.reading import ReadRun
from toptune.store.feature_store import FeatureStore

_REFERENCES = {
    "approach": "Pastore VP, Parodi G, Brofiga M, Massobrio P, Chiappalone M, Odone F, Martinoia S."
    " An efficient deep learning approach to identify dynamics in in vitro neural networks. Annu"
    " Int Conf IEEE Eng Med Biol Soc 2023:1-4. doi:10.1109/EMBC40787.2023.10340862",
    "ptsd": "Maccione A, Gandolfo M, Massobrio P, Novellino A, Martinoia S, Chiappalone M. A novel"
    " algorithm for precise identification of spikes in extracellularly recorded neuronal signals."
    " J Neurosci Methods 2009;177:241-249",
    "mobilenet": "Sandler M, Howard A, Zhu M, Zhmoginov A, Chen LC. MobileNetV2: inverted residuals"
    " and linear bottlenecks. Proc IEEE Conf Comput Vis Pattern Recognit 2018:4510-4520",
    "efficientnet": "Tan M, Le QV. EfficientNet: rethinking model scaling for convolutional neural"
    " networks. Proc Int Conf Mach Learn 2019;97:6105-6114",
    "densenet": "Huang G, Liu Z, van der Maaten L, Weinberger KQ. Densely connected convolutional"
    " networks. Proc IEEE Conf Comput Vis Pattern Recognit 2017:4700-4708",
    "xception": "Chollet F. Xception: deep learning with depthwise separable convolutions. Proc"
    " IEEE Conf Comput Vis Pattern Recognit 2017:1251-1258",
    "resnet": "He K, Zhang X, Ren S, Sun J. Deep residual learning for image recognition. Proc IEEE"
    " Conf Comput Vis Pattern Recognit 2016:770-778",
    "imagenet": "Russakovsky O, Deng J, Su H, et al. ImageNet large scale visual recognition"
    " challenge. Int J Comput Vis 2015;115:211-252",
    "maxinterval": "Cotterill E, Charlesworth P, Thomas CW, Paulsen O, Eglen SJ. A comparison of"
    " computational methods for detecting bursts in neuronal spike trains and their application to"
    " human stem cell-derived neuronal networks. J Neurophysiol 2016;116:306-321",
    "logisi": "Pasquale V, Martinoia S, Chiappalone M. A self-adapting approach for the detection"
    " of bursts and network bursts in neuronal cultures. J Comput Neurosci 2010;29:213-229",
    "tiling": "Cutts CS, Eglen SJ. Detecting pairwise correlations in spike trains: an objective"
    " comparison of methods and application to the study of retinal waves. J Neurosci"
    " 2014;34:14288-14303",
    "falkon": "Rudi A, Carratino L, Rosasco L. FALKON: an optimal large scale kernel method. Adv"
    " Neural Inf Process Syst 2017;30",
    "falkon_gpu": "Meanti G, Carratino L, Rosasco L, Rudi A. Kernel methods through the roof:"
    " handling billions of points efficiently. Adv Neural Inf Process Syst 2020;33",
    "means": "Muandet K, Fukumizu K, Sriperumbudur B, Sch\u00f6lkopf B. Kernel mean embedding of"
    " distributions: a review and beyond. Found Trends Mach Learn 2017;10:1-141",
    "calibration": "Guo C, Pleiss G, Sun Y, Weinberger KQ. On calibration of modern neural"
    " networks. Proc Int Conf Mach Learn 2017;70:1321-1330",
    "wilson": "Wilson EB. Probable inference, the law of succession, and statistical inference. J"
    " Am Stat Assoc 1927;22:209-212",
    "bootstrap": "Field CA, Welsh AH. Bootstrapping clustered data. J R Stat Soc B 2007;69:369-390",
    "permutation": "Phipson B, Smyth GK. Permutation p-values should never be zero: calculating"
    " exact p-values when permutations are randomly drawn. Stat Appl Genet Mol Biol 2010;9:39",
    "cliff": "Cliff N. Dominance statistics: ordinal analyses to answer ordinal questions. Psychol"
    " Bull 1993;114:494-509",
    "newcombe": "Newcombe RG. Confidence intervals for an effect size measure based on the"
    " Mann-Whitney statistic. Part 2: asymptotic methods and evaluation. Stat Med 2006;25:559-573",
    "mann_whitney": "Mann HB, Whitney DR. On a test of whether one of two random variables is"
    " stochastically larger than the other. Ann Math Stat 1947;18:50-60",
    "wilcoxon": "Wilcoxon F. Individual comparisons by ranking methods. Biom Bull 1945;1:80-83",
    "discoveries": "Benjamini Y, Hochberg Y. Controlling the false discovery rate: a practical and"
    " powerful approach to multiple testing. J R Stat Soc B 1995;57:289-300",
    "selected": "Benjamini Y, Yekutieli D. False discovery rate-adjusted multiple confidence"
    " intervals for selected parameters. J Am Stat Assoc 2005;100:71-81",
}
_BACKBONES = {
    "mobilenet": "MobileNet",
    "efficientnet": "EfficientNet",
    "densenet": "DenseNet",
    "xception": "Xception",
    "resnet": "ResNet",
}
_PICTURES = {
    "histogram": "histograms of the spikes of all electrodes over time",
    "raster": "raster plots",
    "sorted_raster": "raster plots with the most active electrode on top",
    "intervals": "histograms of inter-spike intervals over time",
    "correlation": "matrices of the correlations between the spike counts of electrodes",
}
# Packages whose versions matter only where networks describe pictures.
_OF_NETWORKS = ("torch", "torchvision", "timm", "openvino")
_MINUTE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What only the store knows of the recordings of a run; each in the order of the windows."""

    durations_s: tuple[float, ...]
    n_electrodes: tuple[int, ...]
    sampling_rates_hz: tuple[float, ...]
    n_detected: int  # recordings whose spikes were detected in voltage, and not given

    @classmethod
    def of(cls, run: ReadRun, store: FeatureStore) -> Sample:
        """Read it from the store of a run."""
        trains = [store.read_spikes(name) for name in dict.fromkeys(run.origin.recording.tolist())]
        return cls(
            durations_s=tuple(one.duration_s for one in trains),
            n_electrodes=tuple(len(one.channel_labels) for one in trains),
            sampling_rates_hz=tuple(one.sampling_rate_hz for one in trains),
            n_detected=sum(bool(np.isfinite(one.threshold_uv).any()) for one in trains),
        )


class _Cited:
    """Numbers references as they are cited."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, *names: str) -> str:
        """Give the numbers of references in brackets."""
        numbers = [self._numbers.setdefault(name, len(self._numbers) + 1) for name in names]
        return f"[{', '.join(map(str, numbers))}]"

    def listed(self) -> Iterator[str]:
        for name, number in self._numbers.items():
            yield f"{number}. {_REFERENCES[name]}."


def describe_methods(
    run: ReadRun, sample: Sample | None = None, effects: Effects | None = None
) -> str:
    """Write the methods of a run as Markdown: a paragraph a step, all parameters, references.

    Parameters
    ----------
    run : ReadRun
    sample : Sample, optional
        What the store knows of the recordings; without it their lengths and electrodes are left
        out, and how spikes were detected is said of recordings that hold voltage.
    effects : Effects, optional
        Of the burst parameters, where they are reported, too.

    Returns
    -------
    str
    """
    cite = _Cited()
    steps = [
        ("Recordings", _recordings(run, sample)),
        ("Spikes", _spikes(run, sample, cite)),
        ("Features", _features(run, cite)),
        ("Classifier", _classifier(run, cite)),
        ("Validation", _validation(run, cite)),
        ("Burst parameters", _effects(effects, cite)),
        ("Software", _software(run)),
    ]
    parts = [f"# Methods of {run.name}", "To be adapted: everything below is what was computed."]
    parts += [f"**{title}.** {text}" for title, text in steps if text]
    parts += ["## Sample sizes", _sizes(run), "## Result", _result(run)]
    parts += [
        "## All parameters",
        _table(("step", "parameter", "value"), list(_parameters(run, sample))),
    ]
    parts += ["## References", "\n".join(cite.listed())]
    return "\n\n".join(parts) + "\n"


# --- the steps


def _recordings(run: ReadRun, sample: Sample | None) -> str:
    n_recordings = len(set(run.origin.recording.tolist()))
    text = (
        f"{count(n_recordings, 'recording')} of {count(run.counts.n_devices, 'device')} of"
        f" {len(run.classes)} classes ({', '.join(run.classes)}) were analysed"
    )
    merged = "".join(
        f" The classes {', '.join(members)} were merged into {name}."
        for name, members in run.params["merge"].items()
    )
    lost = run.params["features"].get("too_short", [])
    if lost:
        merged += f" {count(len(lost), 'recording')} shorter than a window were left out."
    if sample is None:
        return f"{text}.{merged}"
    minutes = [one / _MINUTE_S for one in sample.durations_s]
    rates = sorted(set(sample.sampling_rates_hz))
    return (
        f"{text}, {_between(minutes)} minutes long, from {_between(sample.n_electrodes)} electrodes"
        f" each, sampled at {' or '.join(f'{rate / 1000:g}' for rate in rates)} kHz.{merged}"
    )


def _between(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _spikes(run: ReadRun, sample: Sample | None, cite: _Cited) -> str:
    n = 0 if sample is None else len(sample.durations_s)
    if sample is not None and not sample.n_detected:
        return "The recordings held spike times, which were used as they were."
    all_detected = sample is not None and sample.n_detected == n
    which = "" if all_detected else " in recordings with voltage"
    settings = run.params["features"]["settings"]
    highpass, ptsd = settings["highpass"], settings["ptsd"]
    filtered = (
        f"{'The' if all_detected else 'Recorded'} voltage was high-pass filtered (causal"
        f" Butterworth filter of order {highpass['order']}, {highpass['cutoff_hz']:g} Hz). "
        if highpass["cutoff_hz"]
        else ""
    )
    threshold = {
        "smallest_sd": f"{ptsd['threshold_sd']:g} standard deviations of the noise (the smallest of"
        " 30 windows of 200 ms)",
        "mad": f"{ptsd['threshold_sd']:g} standard deviations of the noise (median absolute"
        " deviation / 0.6745)",
        "fixed": f"{ptsd['threshold_uv'] or 0:g} \u00b5V",
    }[ptsd["noise"]]
    given = "" if not which else " Spike times of the other recordings were used as they were."
    return (
        f"{filtered}Spikes{which} were found by Precision Timing Spike"
        f" Detection {cite('ptsd')}: pairs of opposite peaks at most {ptsd['lifetime_ms']:g} ms"
        f" apart (peak lifetime period) whose difference exceeds {threshold}; refractory period"
        f" {ptsd['refractory_ms']:g} ms.{given}"
    )


def _features(run: ReadRun, cite: _Cited) -> str:
    drawn: dict[tuple[str, str], list[str]] = {}
    measured = []
    used: dict[str, dict[str, Any]] = {}
    for view in run.views:
        params, windows = view["params"], view["params"]["windows"]
        span = (
            f"{windows['width_s']:g} s every {windows['stride_s']:g} s" if windows else "recordings"
        )
        if "criteria" in params:
            measured.append(span)
            continue
        backbone, picture = params["backbone"], params["picture"]
        used[f"{backbone['name']} {backbone['sha256']}"] = backbone
        kind = _PICTURES.get(picture["kind"], picture["kind"])
        if picture["kind"] == "histogram" and picture["count_axis"] != "window":
            axis = picture["count_axis"]
            kind += " (logarithmic count axis)" if axis == "log" else f" (count axis: {axis})"
        drawn.setdefault((span, backbone["name"]), []).append(kind)
    sentences = []
    if drawn:
        listed = "; ".join(
            f"in windows of {span}, described by {network}: {', '.join(kinds)}"
            for (span, network), kinds in drawn.items()
        )
        sentences.append(
            f"Following Pastore et al. {cite('approach')}, activity was drawn as pictures and these"
            f" were described by pre-trained networks, which were not trained further: {listed}."
        )
        sentences += [_backbone(one, cite) for one in used.values()]
    if measured:
        sentences.append(_measured(measured, cite))
    if len(run.views) > 1:
        sentences.append(f"The {len(run.views)} feature sets were fused.")
    return " ".join(sentences)


def _backbone(backbone: Mapping[str, Any], cite: _Cited) -> str:
    family = next((name for name in _BACKBONES if name in backbone["name"]), None)
    reference = f" {cite(family)}" if family else ""
    weights = backbone["weights"]
    if weights == "random":
        came = "had RANDOM weights (for testing only)"
    else:
        source = "" if weights == "imagenet" else f"{weights}, "
        came = (
            f"had weights pre-trained on ImageNet {cite('imagenet')}"
            if weights == "imagenet"
            else "had the weights of a file"
        )
        came += f" ({source}sha256 {backbone['sha256'][:16]})"
    size = backbone["input_size"]
    return f"{backbone['name']}{reference} {came}; its input has {size} x {size} pixels."


def _measured(spans: Sequence[str], cite: _Cited) -> str:
    whole = all(span == "recordings" for span in spans)
    where = "whole recordings" if whole else f"windows of {', '.join(spans)}"
    return (
        f"30 parameters of spikes and bursts were measured in {where}: firing rates, irregularity"
        " of intervals, bursts by the MaxInterval method with the values of"
        f" {cite('maxinterval')} and by logISI {cite('logisi')}, network bursts {cite('logisi')},"
        f" spike time tiling {cite('tiling')} and correlations of counts."
    )


def _classifier(run: ReadRun, cite: _Cited) -> str:
    params, head = run.params["head_params"], run.params["head"]
    described = {
        "falkon": _falkon,
        "mlp": _mlp,
        "parameters": _burst_classifier,
        "recordings": _kernel_means,
    }
    text = described[head](run, params, cite) if head in described else ""
    text = text or f"The classifier was {run.classifier} ({_listed(params)})."
    tuning = run.metrics["tuning"]
    if tuning is None:
        return f"{text} No parameter was tuned."
    return (
        f"{text} {_tuned(tuning)} chosen from"
        f" {count(tuning['n_candidates'], 'setting')} inside every fold, by cross-validation on the"
        " remaining devices (loss: share of misclassified windows plus half the cross-entropy, each"
        " device with the same weight)."
    )


def _tuned(tuning: Mapping[str, Any]) -> str:
    names = [name.replace("_", " ") for name in tuning["final"]]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed[:1].upper()}{listed[1:]} {'was' if len(names) == 1 else 'were'}"


def _falkon(run: ReadRun, params: Mapping[str, Any], cite: _Cited) -> str:
    weighted = " All classes had the same weight in the loss." if params.get("balanced") else ""
    told = (run.metrics.get("centres") or "").partition(" (")[0]
    centres = f"; {told}" if told else ""
    solved = (
        "solved directly" if params.get("solver") == "direct" else f"solver: {params.get('solver')}"
    )
    scales = params.get("scales") or [1.0]
    kernel = "a Gaussian kernel"
    if len(scales) > 1:
        kernel = f"the mean of {len(scales)} Gaussians as kernel"
    times = "" if scales == [1.0] else f" times {' and '.join(map(_value, scales))}"
    return (
        "Feature vectors were classified by Falkon, kernel ridge regression on Nystr\u00f6m"
        f" centres {cite('falkon', 'falkon_gpu')}, with {kernel} ({solved}{centres};"
        f" width {_value(params['width'])}{times}, penalty {_value(params['penalty'])})."
        f"{weighted}"
    )


def _mlp(run: ReadRun, params: Mapping[str, Any], cite: _Cited) -> str:
    of = f" as in {cite('approach')}" if params.get("n_hidden", 64) == 64 else ""
    del run
    return (
        f"Feature vectors were classified by a network with one hidden layer of"
        f" {params.get('n_hidden', 64)} units{of} ({_listed(params)})."
    )


def _burst_classifier(run: ReadRun, params: Mapping[str, Any], cite: _Cited) -> str:
    del run, cite
    gaussian = params.get("kernel") == "gaussian" or "ridge" in params
    kind = "a Gaussian kernel classifier" if gaussian else "multinomial logistic regression"
    return f"The burst parameters were classified by {kind} ({_listed(params)})."


def _kernel_means(run: ReadRun, params: Mapping[str, Any], cite: _Cited) -> str:
    del run
    return (
        "Recordings were compared as sets of windows by kernel mean embeddings"
        f" {cite('means')} and classified by kernel ridge regression ({_listed(params)})."
    )


def _validation(run: ReadRun, cite: _Cited) -> str:
    m, counts, grouped = run.metrics, run.counts, run.params["group_by"]
    units = run.rows_are
    steps = ["trained", *(["tuned"] if m["tuning"] else []), *(["calibrated"] * m["calibrated"])]
    learnt = " and ".join([", ".join(steps[:-1]), steps[-1]] if steps[1:] else steps)
    if counts.in_pairs:
        between = (
            f"95 % confidence intervals are those of a bootstrap over devices {cite('bootstrap')},"
            f" widened to cover those of Wilson {cite('wilson')}"
        )
    else:
        between = f"95 % confidence intervals are those of Wilson {cite('wilson')}"
    calibrated = (
        f" Probabilities were calibrated inside the training folds by temperature scaling"
        f" {cite('calibration')}."
        if m["calibrated"]
        else ""
    )
    return (
        f"Each {grouped} was left out once with all its recordings ({count(m['n_groups'], 'fold')})"
        f"; its {units} were classified by a model that was {learnt} without"
        f" it. The class of a device is that of most of its {units}, and of equally"
        f" many the more probable one. {between}.{calibrated}{_permutations(run, cite)}"
    )


def _permutations(run: ReadRun, cite: _Cited) -> str:
    test = run.metrics["permutations"]
    if test is None:
        return " No permutation test was made."
    n = f"all {test['n']:,} possible" if test["exact"] else f"{test['n']:,} random"
    within = f" within {run.params['strata']}" if run.params.get("strata") else ""
    anew = "tuning included" if "anew" in test["parameters"] else "without tuning"
    return (
        f" The device accuracy was compared with those after {n} shuffles of the devices'"
        f" labels{within}, in each of which the whole procedure was repeated, {anew}; p is the"
        f" share of accuracies at least as high, the observed one included {cite('permutation')}."
    )


def _effects(effects: Effects | None, cite: _Cited) -> str:
    if effects is None or not effects.n_tests:
        return ""
    paired = any(one.paired for one in effects.contrasts)
    how = "The two classes were" if len(effects.contrasts) == 1 else "Each class was"
    whom = "" if len(effects.contrasts) == 1 else " with all others together"
    # One after the other, so that references are numbered as they are read.
    text = (
        f"{how} compared{whom} in {len(effects.devices.names)} parameters of spikes and bursts, a"
        f" device counting once with the mean of its recordings. Effect sizes are Cliff's delta"
        f" {cite('cliff')}, with intervals"
    )
    text += " of Wilson's method" if paired else f" of Newcombe's method 5 {cite('newcombe')}"
    text += (
        f" at a confidence of {100 * effects.confidence:.4g} %, which allows for the number of"
        f" tests {cite('selected')}; p-values are those of"
    )
    text += (
        f" Wilcoxon's signed-rank test {cite('wilcoxon')} of differences within devices"
        if paired
        else f" the exact test of Mann and Whitney {cite('mann_whitney')}"
    )
    return (
        f"{text}, adjusted for all {count(effects.n_tests, 'test')} after Benjamini and Hochberg"
        f" {cite('discoveries')}."
    )


def _software(run: ReadRun) -> str:
    environment = run.environment
    packages = {name: v for name, v in environment["packages"].items() if v is not None}
    own = packages.pop("toptune", "of an unknown version")
    if not any("backbone" in view["params"] for view in run.views):
        for name in _OF_NETWORKS:
            packages.pop(name, None)
    listed = ", ".join(f"{name} {number}" for name, number in packages.items())
    return (
        f"All computations were made with toptune {own} under Python {environment['python']}"
        f" ({listed}), on {environment['cpu']}; seed {run.params['seed']}."
    )


# --- tables


def _sizes(run: ReadRun) -> str:
    pairs = zip(run.origin.recording.tolist(), run.windows.label.tolist(), strict=True)
    recordings: dict[str, str] = dict(pairs)
    n_recordings = Counter(recordings.values())
    n_windows = Counter(run.windows.label.tolist())
    n_devices = Counter(v.label for v in run.verdicts)
    right = Counter(v.label for v in run.verdicts if v.prediction == v.label)
    rows = [
        (name, n_devices[name], n_recordings[name], n_windows[name], right[name])
        for name in run.classes
    ]
    rows.append(
        ("all", run.counts.n_devices, len(recordings), len(run.windows.label), run.n_correct)
    )
    header = ("class", "devices", "recordings", run.rows_are, "classified correctly")
    if run.rows_are == "recordings":
        return _table((*header[:3], header[4]), [(*row[:3], row[4]) for row in rows])
    return _table(header, rows)


def _result(run: ReadRun) -> str:
    m = run.metrics
    low, high = m["device_accuracy_ci95"]
    p = "" if m["permutation_p"] is None else f", permutation p = {m['permutation_p']:.3g}"
    return (
        f"{run.counts.right} were classified correctly: {m['device_accuracy']:.3f} (95 % confidence"
        f" interval {low:.3f} to {high:.3f}; chance {m['chance']:.3f}{p}). Balanced accuracy"
        f" {m['balanced_accuracy']:.3f}, macro F1 {m['macro_f1']:.3f}; accuracy of {run.rows_are}"
        f" {m['window_accuracy_mean']:.3f} \u00b1 {m['window_accuracy_sd']:.3f} (mean and SD over"
        f" folds); expected calibration error {m['window_ece']:.3f}."
    )


def _parameters(run: ReadRun, sample: Sample | None) -> Iterator[tuple[str, str, str]]:
    params = run.params
    settings = dict(params["features"]["settings"])
    if sample is not None and not sample.n_detected:  # then nothing was filtered or detected
        del settings["highpass"], settings["ptsd"]
    for name, value in _flat(settings):
        yield "spikes", name, _value(value)
    for number, view in enumerate(run.views, 1):
        step = "features" if len(run.views) == 1 else f"features {number}"
        for name, value in _flat(view["params"]):
            yield step, name, _value(value)
    for name, value in params["head_params"].items():
        yield f"classifier {params['head']}", name, _value(value)
    for name in ("group_by", "merge", "strata", "permutations", "seed"):
        yield "validation", name, _value(params.get(name))
    yield (
        "validation",
        "windows_per_recording",
        _value(run.metrics.get("windows_per_recording")),
    )


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _listed(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in params.items())


def _value(value: Any) -> str:
    """Write a value; of a list of equal ones, how many there are."""
    if isinstance(value, list):
        shown = [_value(one) for one in value]
        if len(shown) > 1 and len(set(shown)) == 1:
            return f"{len(shown)} x {shown[0]}"
        return ", ".join(shown) or "none"
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a table as Markdown does."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
