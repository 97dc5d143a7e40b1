"""Backbones rewritten to compute the same features with fewer operations.

Batch norms are folded into the convolutions and linear layers before them, and the first
convolution takes the pictures' darkness instead of three equal normalised channels. The features
are the same apart from rounding, on every device.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from toptune.backbones.loading import LoadedBackbone
from toptune.machine.interruption import heed_interrupt

_LOG = logging.getLogger(__name__)


class Channel(NamedTuple):
    """An input channel: ``darkness * scale + shift``; darkness is 0 for white and 1 for black."""

    scale: float
    shift: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Folded:
    """A network and the content of its input."""

    module: nn.Module  # (n, channels, S, S) to (n, d), float32, on the CPU, in evaluation mode
    # Darkness alone; darkness and a plane of ones; or three normalised channels, if the network
    # does not begin with a plain convolution.
    channels: tuple[Channel, ...]


def fold(loaded: LoadedBackbone) -> Folded:
    """Fold batch norms and the input's normalisation into a copy, as far as possible.

    With x_c = (1 - D - m_c) / s_c, the normalised channel c of a picture of darkness D, and the
    weights W_c of the first convolution,

        sum_c W_c * x_c = (-sum_c W_c / s_c) * D + (sum_c W_c (1 - m_c) / s_c) * 1

    so two channels, darkness and ones, replace three. If the convolution pads its input, the ones
    cannot become a bias, because a padded pixel is 0 in the normalised picture and not white; a
    plane of ones is padded as the channels were. Without padding they become a bias.
    Darkness is used instead of the grey value because pictures are mostly white: 16 bits resolve
    values near 0 finely, but values near 1 in steps of 0.4 % (bfloat16) or 0.05 % (float16).

    A network that torch.fx cannot trace is used unchanged, with three normalised channels.
    """
    plain = tuple(
        Channel(-1 / s, (1 - m) / s) for m, s in zip(loaded.mean, loaded.std, strict=True)
    )
    module = copy.deepcopy(loaded.module).eval()
    try:
        traced = fx.symbolic_trace(module)
    except Exception as error:  # noqa: BLE001  # tracing runs any network's code on stand-ins
        heed_interrupt(error)
        _LOG.info("%s is used unchanged, nothing is folded: %s", loaded.name, error)
        return Folded(module=module, channels=plain)
    _fold_norms(traced)
    channels = _fold_input(traced, plain) or plain
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return Folded(module=traced.eval().requires_grad_(False), channels=channels)


def _fold_norms(traced: fx.GraphModule) -> None:
    """Fold each batch norm into the layer before it, if that layer feeds nothing else."""
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        layer, norm = modules[str(before.target)], modules[str(node.target)]
        # A layer that is called twice may be followed by different norms.
        if len(before.users) > 1 or calls[before.target] > 1 or not _has_statistics(norm):
            continue
        fused = _fused(layer, norm)
        if fused is None:
            continue
        traced.set_submodule(str(before.target), fused)
        modules[str(before.target)] = fused
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)


def _has_statistics(norm: nn.Module) -> bool:
    """Tell whether a module is a batch norm that uses learnt statistics."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)  # these types exactly, since a subclass may do more
    return type(norm) in kinds and norm.running_mean is not None


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
        return fuse_conv_bn_eval(layer, norm)
    if type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
        return fuse_linear_bn_eval(layer, norm)
    return None


def _fold_input(traced: fx.GraphModule, plain: tuple[Channel, ...]) -> tuple[Channel, ...] | None:
    """Let the first convolution take darkness; None if the network does not begin with one."""
    users = [n for p in traced.graph.nodes if p.op == "placeholder" for n in p.users]
    if len(users) != 1 or users[0].op != "call_module":
        return None
    name = str(users[0].target)
    first = traced.get_submodule(name)
    if type(first) is not nn.Conv2d or first.groups != 1:
        return None
    scale, shift = torch.tensor(plain, dtype=torch.float64).T[:, :, None, None]
    weight = first.weight.to(torch.float64)
    of_darkness = (weight * scale).sum(1, keepdim=True)
    of_ones = (weight * shift).sum(1, keepdim=True)
    padded = first.padding != (0, 0) and first.padding != "valid"
    bias = None if first.bias is None else first.bias.to(torch.float64)
    if not padded:
        ones = of_ones.sum((1, 2, 3))
        bias = ones if bias is None else bias + ones
    taken = torch.cat([of_darkness, of_ones], 1) if padded else of_darkness
    traced.set_submodule(name, _convolution(first, taken.float(), bias))
    return (Channel(1, 0), Channel(0, 1)) if padded else (Channel(1, 0),)


def _convolution(like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    made = copy.deepcopy(like)
    made.in_channels = weight.shape[1]
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias.float())
    return made
