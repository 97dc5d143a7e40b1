"""The head ``mlp``: rules of its classifier's parameters."""

from __future__ import annotations

from collections.abc import Mapping

from toptune.heads.rules import Rule, above_0, above_0_up_to_1, at_least_0, whole_from_1

RULES: Mapping[str, Rule] = {
    "n_hidden": whole_from_1,
    "batch_size": whole_from_1,
    "epochs": whole_from_1,
    "learning_rate": above_0,
    "learning_rate_decay": above_0_up_to_1,
    "weight_decay": at_least_0,
}
