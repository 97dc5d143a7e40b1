"""OpenVINO against eager torch, for batches that the pictures do not fill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_data import install_tiny_backbones

from toptune.backbones import loading as backbones
from toptune.backbones.openvino_engine import OpenVinoNetwork
from toptune.params import Backbone

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize(("batch_size", "n"), [(1, 5), (4, 4), (4, 5), (4, 3), (64, 5)])
def test_every_picture_gets_its_own_row_whatever_the_batch(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, n: int
) -> None:
    install_tiny_backbones(monkeypatch)
    loaded = backbones.load_backbone(Backbone(name="tiny", weights="random"))
    grey = torch.rand(n, 32, 32, generator=torch.Generator().manual_seed(n))
    with torch.inference_mode():
        normalised = ((grey[:, None] - 0.5) / 0.25).expand(-1, 3, -1, -1)
        expected = loaded.module(normalised).numpy()
    found = OpenVinoNetwork(loaded, batch_size, 2)(grey)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
