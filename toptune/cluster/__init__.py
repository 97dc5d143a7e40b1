"""Work on many processes and machines, by Dask: who does it, and how it comes back.

Tasks enter: the name of a function of toptune and small arguments, such as paths and settings; what
the functions return leaves, in the order in which they end. Whatever is large, recordings, spikes
and features, workers read and publish themselves, on a file system that all of them and the caller
see under the same paths. Dask keeps the tasks of a worker that dies and gives them to another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toptune.machine.lazy import lazy_names

if TYPE_CHECKING:
    from toptune.cluster.client import Cluster, open_cluster
else:
    __getattr__ = lazy_names(__name__, {"client": ("Cluster", "open_cluster")})

__all__ = ["Cluster", "open_cluster"]
