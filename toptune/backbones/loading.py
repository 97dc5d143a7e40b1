"""Backbones with their weights: frozen networks that turn pictures into features.

ImageNet weights are those of `networks.torchvision_weights`, or timm's default; others can be given
as a file. One source of weights never replaces another silently.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from toptune.backbones.names import ALIASES
from toptune.backbones.networks import (
    WELL_KNOWN,
    Network,
    build_network,
    build_timm,
    canonical_name,
    private_random_numbers,
    torchvision_weights,
)
from toptune.backbones.weights import Triple, fitting_state, read_weights, state_sha256
from toptune.errors import InputError, ToptuneError
from toptune.machine.caches import usable_or_private
from toptune.machine.interruption import heed_interrupt
from toptune.params import Backbone

_log = logging.getLogger(__name__)

_CALIBRATION_PICTURES = 8
_OTHER_WEIGHTS = "name a .safetensors or .pth file by `weights`, or use `weights='random'`"


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedBackbone:
    """A frozen network and the pictures that its weights expect."""

    name: str  # as given
    input_size: int  # side S of the pictures, in pixels
    n_features: int  # length d of a feature vector
    mean: Triple  # with std the normalisation of the three colour channels, of pictures in [0, 1]
    std: Triple
    # Normalised float32 (n, 3, S, S) to float32 (n, d); evaluation mode, no gradients, CPU.
    module: nn.Module
    weights: str  # their source, for people
    weights_sha256: str  # of the file, if they came from one; else of the values (`state_sha256`)
    n_parameters: int  # of the module, without the classifier


def load_backbone(params: Backbone) -> LoadedBackbone:
    """Build a network without its classifier and give it its weights.

    Parameters
    ----------
    params
        Name, weights (``imagenet``, ``random`` or a file) and the seed of random weights.

    Returns
    -------
    LoadedBackbone
        Ready for use. The global random state is not changed.

    Raises
    ------
    InputError
        There is no such network, or the weights file is damaged or of another network.
    ToptuneError
        ImageNet weights could not be downloaded.

    Notes
    -----
    Random weights are the network's own initialisation with the seed. The statistics of its batch
    norms are then computed from eight seeded pictures of bars and marks: with the initial values (0
    and 1) the features of EfficientNet would be below 1e-14.
    """
    canonical = canonical_name(params.name)
    if params.weights == "random":
        network, sha256 = _random(canonical, params)
        weights = f"random (seed {params.seed})"
    elif params.weights == "imagenet":
        network, weights = _imagenet(canonical)
        sha256 = state_sha256(network.module.state_dict())
    else:
        network, sha256 = _from_file(canonical, params)
        weights = f"file {Path(params.weights).name}"
    return LoadedBackbone(
        name=params.name,
        input_size=network.input_size,
        n_features=_count_features(network, params.name),
        mean=network.mean,
        std=network.std,
        module=network.module,
        weights=weights,
        weights_sha256=sha256,
        n_parameters=sum(p.numel() for p in network.module.parameters()),
    )


def _random(name: str, params: Backbone) -> tuple[Network, str]:
    _log.warning(
        "%s has RANDOM weights (seed %d), which are for testing only: the results are meaningless; "
        "use `weights='imagenet'` or a file",
        params.name,
        params.seed,
    )
    with private_random_numbers(params.seed):
        network = build_network(name)
        _calibrate(network)
    return network, state_sha256(network.module.state_dict())


def _from_file(name: str, params: Backbone) -> tuple[Network, str]:
    file = read_weights(params.weights)
    if file.backbone is not None and ALIASES.get(file.backbone, file.backbone) != name:
        raise InputError(
            f"{file.path} says that it holds weights of {file.backbone!r}, not of {params.name!r}"
        )
    with private_random_numbers(0):
        network = build_network(name)
    state = network.module.state_dict()
    try:
        fitting = fitting_state(
            file.state, state, network.classifier, source=str(file.path), name=params.name
        )
    except InputError as error:
        likely = _likely_network(file.state, name)
        raise InputError(f"{error}{f'; it fits {likely}' if likely else ''}") from error
    network.module.load_state_dict(fitting)
    mean, std = file.mean or network.mean, file.std or network.std
    return replace(network, mean=mean, std=std), file.sha256


def _imagenet(name: str) -> tuple[Network, str]:
    if name.startswith("timm:"):
        return _imagenet_timm(name.removeprefix("timm:"))
    entry = torchvision_weights(name)
    folder = torchvision_folder(Path(entry.url).name)
    try:
        fetched = entry.get_state_dict(progress=True, check_hash=True, model_dir=str(folder))
    except (OSError, RuntimeError) as error:
        raise ToptuneError(
            f"could not download the ImageNet weights of {name} from {entry.url} into {folder} "
            f"({error}); offline, {_OTHER_WEIGHTS}"
        ) from error
    with private_random_numbers(0):
        network = build_network(name)
    expected = network.module.state_dict()
    state = fitting_state(fetched, expected, network.classifier, source=entry.url, name=name)
    network.module.load_state_dict(state)
    return network, f"torchvision {entry}"


def torchvision_folder(file: str) -> Path:
    """Return the folder in which torch keeps a file of weights, or can keep it."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if (folder / file).is_file():
        return folder
    return usable_or_private(folder, "torch")


def _imagenet_timm(name: str) -> tuple[Network, str]:
    import timm
    from huggingface_hub.constants import HF_HUB_CACHE

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise InputError(f"timm has no trained weights of {name}: {_OTHER_WEIGHTS}")
    try:
        with private_random_numbers(0):
            network = build_timm(name, pretrained=True)
    except InputError:
        raise
    except Exception as error:  # the hub's clients raise errors of many kinds
        heed_interrupt(error)
        source = config.hf_hub_id or config.url
        raise ToptuneError(
            f"could not download the trained weights of timm:{name} from {source} into"
            f" {HF_HUB_CACHE} or {torch.hub.get_dir()} ({_first_line(error)}); offline,"
            f" {_OTHER_WEIGHTS}"
        ) from error
    return network, f"timm {name} {config.tag}".strip()


def _count_features(network: Network, name: str) -> int:
    size = network.input_size
    with torch.no_grad():
        features = network.module(torch.zeros(1, 3, size, size))
    shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features)
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise InputError(f"{name} gives {shape} for a picture, not one row of features")
    return int(features.shape[1])


def _likely_network(state: dict[str, torch.Tensor], asked: str) -> str | None:
    """Return the well-known network that a file's weights fit, if any."""
    for name in WELL_KNOWN:
        canonical = canonical_name(name)
        if canonical == asked:
            continue
        with private_random_numbers(0), torch.device("meta"):
            network = build_network(canonical)
        expected = network.module.state_dict()
        with contextlib.suppress(InputError):
            fitting_state(state, expected, network.classifier, source="", name="")
            return name
    return None


def _calibrate(network: Network) -> None:
    """Compute the statistics of batch norms from seeded pictures: bar charts and rasters."""
    norms = [m for m in network.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    size, half = network.input_size, _CALIBRATION_PICTURES // 2
    height = torch.rand(half, 1, size) ** 3
    row = torch.arange(size - 1, -1, -1)[:, None]
    bars = (height * size - row).clamp(0, 1)
    # With bars alone, fine-grained pictures would be far outside the norms' statistics, and values
    # would grow from layer to layer until float32 gives only noise.
    density = torch.rand(half, size, 1) ** 2
    marks = torch.rand(half, size, size) * (torch.rand(half, size, size) < density)
    grey = 1 - torch.cat([bars, marks])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.mean, network.std))
    pictures = (grey[:, None] - mean) / std
    momenta = [m.momentum for m in norms]
    threads = torch.get_num_threads()
    # On one thread, because sums depend on the number of threads, and the weights' sha256 on sums.
    torch.set_num_threads(1)
    try:
        for norm in norms:
            norm.momentum = None  # a plain mean over the batch
            norm.reset_running_stats()
            norm.train()
        with torch.no_grad():
            network.module(pictures)
    finally:
        torch.set_num_threads(threads)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
