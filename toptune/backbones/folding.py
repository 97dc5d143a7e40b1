"""Backbones with fewer operations that compute the same.

What enters: a frozen network for normalised pictures (n, 3, S, S), with the mean and SD of its
three channels. What leaves: a module whose batch norms are folded into the convolutions and linear
layers before them, and whose first convolution takes the pictures' darkness instead of three equal
normalised channels; and what each of its input channels is. Nothing depends on the device, and
apart from rounding the features are the same.
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

_LOG = logging.getLogger(__name__)


class Channel(NamedTuple):
    """An input channel: ``darkness * scale + shift``; darkness is 0 for white and 1 for black.

    Attributes
    ----------
    scale, shift
        Without unit.
    """

    scale: float
    shift: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Folded:
    """A network and what it is fed with.

    Parameters
    ----------
    module
        (n, channels, S, S) to (n, d), float32, on the CPU, in evaluation mode.
    channels
        What the input channels hold: darkness alone; darkness and a plane of ones; or three
        normalised channels, where the network does not begin with a plain convolution.
    """

    module: nn.Module
    channels: tuple[Channel, ...]

    def planes(self, grey: torch.Tensor) -> torch.Tensor:
        """Make the input of grey pictures.

        Parameters
        ----------
        grey : (n, S, S) float32
            In [0, 1], 1 = white.

        Returns
        -------
        (n, channels, S, S) float32
        """
        darkness = 1 - grey
        return torch.stack([darkness * scale + shift for scale, shift in self.channels], dim=1)


def fold(loaded: LoadedBackbone) -> Folded:
    """Fold what can be folded.

    Parameters
    ----------
    loaded
        The backbone; its module is left as it is.

    Notes
    -----
    With x_c = (1 - D - m_c) / s_c, the normalised channel c of a picture of darkness D, and the
    weights W_c of the first convolution,

        sum_c W_c * x_c = (-sum_c W_c / s_c) * D + (sum_c W_c (1 - m_c) / s_c) * 1

    so two channels, darkness and ones, do the work of three. The ones cannot become a bias where
    the convolution pads its input, because a padded pixel is 0 in the normalised picture, not
    white; a plane of ones is padded just as the channels were. Without padding they can.
    Darkness, not the grey value, because pictures are mostly white: in 16 bits values near 0 are
    resolved finely, near 1 in steps of 0.4 % (bfloat16) or 0.05 % (float16).

    A network that torch.fx cannot trace is kept as it is, with three normalised channels.
    """
    plain = tuple(
        Channel(-1 / s, (1 - m) / s) for m, s in zip(loaded.mean, loaded.std, strict=True)
    )
    module = copy.deepcopy(loaded.module).eval()
    try:
        traced = fx.symbolic_trace(module)
    except Exception as error:  # noqa: BLE001  # tracing runs any network's code on stand-ins
        _LOG.info("%s is run as it is, nothing folded: %s", loaded.name, error)
        return Folded(module=module, channels=plain)
    _fold_norms(traced)
    channels = _fold_input(traced, plain) or plain
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return Folded(module=traced.eval().requires_grad_(False), channels=channels)


def _fold_norms(traced: fx.GraphModule) -> None:
    """Fold each batch norm into the layer before it, where that layer feeds nothing else."""
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        layer, norm = modules[str(before.target)], modules[str(node.target)]
        # A layer that is called twice has no one norm after it.
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
    """Tell whether a module is a batch norm that uses statistics it has learnt."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)  # exactly: a subclass may do more than its parent
    return type(norm) in kinds and norm.running_mean is not None


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
        return fuse_conv_bn_eval(layer, norm)
    if type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
        return fuse_linear_bn_eval(layer, norm)
    return None


def _fold_input(traced: fx.GraphModule, plain: tuple[Channel, ...]) -> tuple[Channel, ...] | None:
    """Let the first convolution take darkness; None where the network does not begin with one."""
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
