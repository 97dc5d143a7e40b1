"""The files that are not Python: CUDA sources and the description of the store's layout.

A wheel carries them inside the package, as toptune/_assets; a checkout, or an editable installation
of one, has them beside the package.
"""

from __future__ import annotations

from pathlib import Path

from toptune.errors import ToptuneError

_PACKAGE = Path(__file__).resolve().parents[1]


def kernels() -> Path:
    """Return the folder of the CUDA C sources (``*.cu``)."""
    return _folder("kernels")


def store_contract() -> Path:
    """Return the folder with ``LAYOUT.md``, ``schema.json`` and ``golden.zarr``."""
    return _folder("store")


def _folder(name: str) -> Path:
    for folder in (_PACKAGE / "_assets" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ToptuneError(f"this installation of toptune lacks its {name}/ folder: install it again")
