"""The names of backbones, known without loading torch.

torchvision's classification models go by their own names, every timm model by ``timm:NAME``, and
``xception`` stands for ``timm:legacy_xception``.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import NoReturn

from toptune.errors import InputError
from toptune.machine.installation import require_networks

#: The six backbones of the paper.
PAPER_BACKBONES = (
    "efficientnet_b0",
    "efficientnet_b1",
    "densenet121",
    "densenet201",
    "xception",
    "mobilenet_v2",
)
#: Short names.
ALIASES = {"xception": "timm:legacy_xception"}

# How both packages mark the functions that build their models.
_REGISTERED = re.compile(
    r"^@register_model(?:\(\))?[^\n]*\n(?:@[^\n]*\n|    [^\n]*\n|\)\n)*def (\w+)\(", re.MULTILINE
)


@cache
def registered(package: str) -> frozenset[str]:
    """Names of the models of torchvision or timm, read from its source; none without it.

    To import either takes seconds, in which a mistyped name would not be refused.
    """
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return frozenset(
        name
        for place in places or ()
        for file in Path(place, "models").glob("*.py")
        for name in _REGISTERED.findall(file.read_text("utf-8"))
    )


def require_known(name: str) -> str:
    """Return the full name of a backbone; refuse one that neither package has.

    A timm model may have a tag, as in ``timm:resnet18.a1_in1k``, which is not checked here. Where
    torch or a package of networks is not installed, that is a `MissingPackagesError`.
    """
    require_networks("a network that describes pictures")
    name = ALIASES.get(name, name)
    package = "timm" if name.startswith("timm:") else "torchvision"
    architecture = name.removeprefix("timm:").partition(".")[0] if package == "timm" else name
    if architecture not in registered(package):
        refuse_name(name)
    return name


def refuse_name(name: str) -> NoReturn:
    """Refuse a name, and suggest similar ones."""
    choices = [*registered("torchvision"), *ALIASES, *(f"timm:{n}" for n in registered("timm"))]
    wanted = [name] if ":" in name else [name, f"timm:{name}"]
    close = dict.fromkeys(c for w in wanted for c in _closest(w, choices))
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    raise InputError(
        f"there is no backbone {name!r}; {meant}classification models of torchvision go by their "
        "own names, and those of timm as timm:NAME, such as timm:resnet18 or timm:resnet18.a1_in1k"
    )


def _closest(name: str, choices: list[str]) -> list[str]:
    """Return up to three choices similar to a name, the most similar first, then by alphabet."""
    close = difflib.get_close_matches(name, choices, n=30, cutoff=0.75)
    similarity = {c: difflib.SequenceMatcher(None, c, name).ratio() for c in close}
    return sorted(close, key=lambda c: (-similarity[c], c))[:3]
