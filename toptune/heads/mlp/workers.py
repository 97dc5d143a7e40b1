"""Tuning of the MLP on the workers of a cluster: each trains some of the networks and scores them.

Rows and scores go through a folder that all of them see, and only names of files through Dask. On
processors of one kind a network is the same, bit for bit, wherever it is trained.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from toptune.cluster import Cluster
from toptune.cluster.worker import kept, threads_here
from toptune.heads.base import StepProgress
from toptune.heads.mlp.classifier import MLPClassifier, PutScores, TrainingData, score_models
from toptune.heads.mlp.training import Rows, one_hot
from toptune.heads.rows import Float64, group_rows
from toptune.machine.durable import writing

# Tasks a worker, so that none waits long for the last.
_TASKS_A_WORKER = 4


class TuningJob(NamedTuple):
    """What a worker must know to train any of the networks."""

    folder: Path
    features: str  # file of the rows, (n, d)
    labels: str  # file of the codes of classes and groups, (2, n)
    n_classes: int
    classifiers: tuple[MLPClassifier, ...]  # not fitted; all normalise alike
    seed: int
    n_jobs: int | None  # threads; None: as many as the worker has


class Workers:
    """The workers of a cluster, and a folder, empty at first, that all of them see."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder.resolve()
        self._written: tuple[Any, str] = (None, "")  # rows, and their file

    def score(
        self,
        classifiers: Sequence[MLPClassifier],
        data: TrainingData,
        models: Sequence[tuple[int, ...]],
        seed: int,
        put: PutScores,
        progress: StepProgress | None,
    ) -> None:
        """Do what `score_models` does."""
        job = TuningJob(
            self._folder,
            self._features(data),
            self._write("labels", np.stack([data.codes, data.group])),
            data.n_classes,
            tuple(classifiers),
            seed,
            self._cluster.n_jobs,
        )
        grouping = group_rows(data.group)
        size = -(-len(models) // (_TASKS_A_WORKER * max(1, self._cluster.n_workers)))
        parts = {
            f"models {first}": models[first : first + size] for first in range(0, len(models), size)
        }
        on_gpu = str(classifiers[0].device).startswith("cuda")
        n_done = 0
        function = f"{__name__}:{train_part.__name__}"
        with closing(self._cluster.run(function, job, parts, on_gpu=on_gpu)) as ended:
            for one in ended:
                path = self._folder / one.value()
                scores = np.load(path, allow_pickle=False)
                path.unlink()
                for variant, left_out, group in _order(len(classifiers), parts[one.name]):
                    n_rows = len(grouping.rows(group))
                    put(variant, left_out, group, scores[:n_rows])
                    scores = scores[n_rows:]
                n_done += len(parts[one.name]) * len(classifiers)
                if progress is not None:
                    progress(n_done, len(models) * len(classifiers))

    def _features(self, data: TrainingData) -> str:
        """Write the rows, once for all labellings of them."""
        if self._written[0] is not data.source:
            self._written = (data.source, self._write("features", data.X))
        return self._written[1]

    def _write(self, what: str, values: Any) -> str:
        name = f"{what}-{secrets.token_hex(4)}.npy"
        with writing(self._folder):
            np.save(self._folder / name, values)
        return name


def _order(
    n_classifiers: int, models: Sequence[tuple[int, ...]]
) -> list[tuple[int, tuple[int, ...], int]]:
    """List variants, models and groups in the order in which a part's scores lie in its file."""
    return [
        (v, groups, group) for v in range(n_classifiers) for groups in models for group in groups
    ]


def train_part(job: TuningJob, models: Sequence[tuple[int, ...]]) -> str:
    """Train and score some networks on a worker; gives the name of the file with the scores."""
    codes, group = np.load(job.folder / job.labels, allow_pickle=False)
    first = job.classifiers[0]

    def read() -> torch.Tensor:
        X = np.load(job.folder / job.features, allow_pickle=False)
        return first.shared_rows(X, codes, job.n_classes).X

    key = (job.features, first.normalise, first.view_sizes)
    X = kept(str(job.folder), key, read)
    targets = one_hot(np.atleast_2d(codes), job.n_classes, X.device)
    found: dict[tuple[int, tuple[int, ...], int], Float64] = {}

    def put(variant: int, left_out: tuple[int, ...], group: int, scores: Float64) -> None:
        found[variant, left_out, group] = scores

    torch.set_num_threads(job.n_jobs or threads_here())
    score_models(Rows(X, targets), job.classifiers, group_rows(group), models, job.seed, put)
    name = f"scores-{secrets.token_hex(4)}.npy"
    with writing(job.folder):
        # Whole or not at all: a worker may die, and another do the same.
        np.save(
            job.folder / f".{name}",
            np.concatenate([found[one] for one in _order(len(job.classifiers), models)]),
        )
        (job.folder / f".{name}").replace(job.folder / name)
    return name
