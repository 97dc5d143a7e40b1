"""Giving tasks to Dask's workers, and taking back what became of them."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from toptune.cluster.worker import Answer, Identity, clock_problem, identity, work
from toptune.errors import InputError, InputErrors, MissingPackagesError, ToptuneError
from toptune.machine.threads import usable_cores

if TYPE_CHECKING:
    from distributed import Client, Future

_LOG = logging.getLogger(__name__)
_LOCAL = "local:"
# Dask gives a task that fails by what may pass to workers so often, beside the first time.
_RETRIES = 2
# How long a scheduler's answer is waited for, and one that is gone.
_CONNECT_S = 10.0
_RETURN_S = 600.0


class Done(NamedTuple):
    """A task that has ended."""

    name: str
    answer: Answer

    def value(self) -> Any:
        """Give the result, or raise the error."""
        return self.answer.value()


class Cluster:
    """Dask's workers, for as long as `open_cluster` keeps them.

    Parameters
    ----------
    address
        Of the scheduler.
    client
        Connected to it.
    n_jobs
        Threads of a task where the caller does not say: None: as many as its worker has.
    """

    def __init__(self, address: str, client: Client, n_jobs: int | None) -> None:
        self.address = address
        self.n_jobs = n_jobs
        self._client = client
        self._itself = identity()
        self._told: set[str] = set()

    @property
    def dashboard(self) -> str | None:
        """Address of the page on which Dask shows what is going on; None where there is none."""
        services = self._client.scheduler_info(n_workers=1)["services"]
        return str(self._client.dashboard_link) if "dashboard" in services else None

    @property
    def n_workers(self) -> int:
        """How many workers there are now."""
        return int(self._client.scheduler_info(n_workers=1)["n_workers"])

    def check(self) -> None:
        """See that every worker that is there now may work for this process.

        Raises
        ------
        InputErrors
            Names each worker of another toptune, or whose clock is off.
        """
        self._wait_for_workers()
        before_s = time.time()
        try:
            found = self._client.run(identity, on_error="return")
        except Exception as error:
            raise InputError(self._unlike(error)) from error
        after_s = time.time()
        problems = []
        for address, one in found.items():
            if not isinstance(one, Identity):
                problems.append(f"worker {address}: {self._unlike(one)}")
                continue
            ahead_s = max(0.0, one.time_s - after_s) + min(0.0, one.time_s - before_s)
            problem = self._itself.refusal_of(one) or clock_problem(one.place, ahead_s)
            problems += [] if problem is None else [f"worker {address}: {problem}"]
            self._tell_packages(address, one)
        if problems:
            raise InputErrors(problems)

    def device(self, wanted: str) -> str:
        """Say where tasks compute: ``auto`` is a GPU where a worker offers one as a resource.

        Raises
        ------
        InputError
            A GPU is wanted, and no worker has the resource GPU.
        """
        if wanted == "cpu":
            return wanted
        self._wait_for_workers()
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        if any(one["resources"].get("GPU", 0) >= 1 for one in workers):
            return "cuda"
        if wanted == "auto":
            return "cpu"
        raise InputError(
            '`device="cuda"`: no worker offers a GPU: start those that have one with the resource'
            " GPU=1, as docs/cluster.md shows"
        )

    def run(
        self, function: str, shared: object, tasks: Mapping[str, object], *, on_gpu: bool
    ) -> Generator[Done, None, None]:
        """Do tasks on the workers; each is given back when it ends, in no certain order.

        Parameters
        ----------
        function
            ``module:name`` of toptune, which takes `shared` and the task's own argument.
        shared
            Of all tasks; small.
        tasks
            By name: the argument of each; small.
        on_gpu
            A task takes a GPU of its worker for itself.

        Raises
        ------
        RefusedWorkerError
            A worker that came later must not work for this process.
        ToptuneError
            The scheduler is gone and does not come back.
        """
        left = {name: pickle.dumps(own) for name, own in tasks.items()}
        resources = {"GPU": 1} if on_gpu else None
        of_all = pickle.dumps(shared)
        while left:
            futures = {
                name: self._client.submit(
                    work,
                    self._itself, function, of_all, own,
                    pure=False, retries=_RETRIES, resources=resources, key=_key(function, name),
                )
                for name, own in left.items()
            }  # fmt: skip
            try:
                for name, answer in self._ended(futures):
                    if answer.refusal is not None:
                        answer.value()  # such a worker would be given all that is left
                    del left[name]
                    for text in answer.warnings:
                        self._tell(text)
                    yield Done(name, answer)
            finally:
                # Those that were not waited for: what has not begun then never does.
                with suppress(Exception):
                    self._client.cancel(list(futures.values()))
            if left:
                self._come_back()

    def _ended(self, futures: Mapping[str, Future]) -> Iterator[tuple[str, Answer]]:
        """Wait for tasks; ends early where the scheduler forgot them."""
        from distributed import as_completed

        names = {future: name for name, future in futures.items()}
        for future in as_completed(list(futures.values()), loop=self._client.loop):
            if future.status == "finished":
                try:
                    yield names[future], future.result()
                except _lost_errors():
                    return
            elif future.status == "error":
                yield names[future], self._failed(names[future], future.exception())
            else:
                return

    def _failed(self, name: str, error: BaseException | None) -> Answer:
        """Say why a task failed on all workers it was given to."""
        from distributed.scheduler import KilledWorker

        if isinstance(error, ToptuneError):
            return Answer(error=(type(error).__name__, (str(error),)))
        if isinstance(error, KilledWorker):
            text = (
                f"{name}: {error.allowed_failures + 1} workers died while they worked on it, the"
                f" last {error.last_worker.address}: give them more memory, or see their logs"
            )
        else:
            text = f"{name}: {self._unlike(error)}"
        return Answer(error=("ToptuneError", (text,)))

    def _unlike(self, error: BaseException | None) -> str:
        if isinstance(error, ImportError) or "No module named" in str(error):
            return f"a worker or the scheduler lacks this toptune ({error}): install it there"
        return f"failed unexpectedly on a worker ({type(error).__name__}: {error})"

    def _tell_packages(self, address: str, one: Identity) -> None:
        different = self._itself.packages_of(one)
        if different:
            self._tell(
                f"{one.place} (worker {address}) has {', '.join(different)}: results may differ in"
                " rounding"
            )

    def _tell(self, text: str) -> None:
        """Warn of what several workers may say once."""
        if text not in self._told:
            self._told.add(text)
            _LOG.warning("%s", text)

    def _wait_for_workers(self) -> None:
        if not self.n_workers:
            _LOG.warning("waiting for the first worker of %s", self.address)
            self._client.wait_for_workers(1)

    def _come_back(self) -> None:
        """Connect anew to a scheduler that was gone."""
        from distributed import Client

        _LOG.warning("the scheduler %s is gone: waiting for it", self.address)
        with suppress(Exception):
            self._client.close(timeout=1)
        deadline = time.monotonic() + _RETURN_S
        while True:
            try:
                self._client = Client(self.address, timeout=5, set_as_default=False)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ToptuneError(
                        f"the scheduler {self.address} is gone ({error}): start it and its workers,"
                        " and run this again: it goes on where it stopped"
                    ) from None
                time.sleep(0.5)
        _LOG.warning("the scheduler %s is back", self.address)
        self.check()

    def close(self) -> None:
        """Let go of the scheduler."""
        with suppress(Exception):
            self._client.close(timeout=2)


def _key(function: str, name: str) -> str:
    """Name a task on the dashboard; those of a function stand together there."""
    return f"{function.rpartition(':')[2]}-{name}-{time.time_ns()}"


def _lost_errors() -> tuple[type[BaseException], ...]:
    from concurrent.futures import CancelledError

    from distributed.client import FutureCancelledError

    return CancelledError, FutureCancelledError, OSError


@contextmanager
def open_cluster(dask: str | Cluster) -> Iterator[Cluster]:
    """Connect to a scheduler, or start workers on this machine, for a while.

    Parameters
    ----------
    dask
        A scheduler's address, such as ``tcp://10.0.0.1:8786``, or ``local:4`` for four processes of
        this machine, which share its cores. What is open already is used and stays open. TLS and
        other settings are Dask's own (``~/.config/dask``).

    Raises
    ------
    MissingPackagesError
        Dask's distributed is not installed.
    InputError
        The scheduler cannot be reached, or the number of processes is none.
    InputErrors
        Workers that cannot work for this process, each by name.
    """
    if isinstance(dask, Cluster):
        yield dask
        return
    require_dask(dask)
    from distributed import Client

    with ExitStack() as stack:
        n_jobs = None
        where: Any = dask
        if dask.startswith(_LOCAL):
            n = n_processes(dask)
            where = stack.enter_context(_processes(n))
            n_jobs = max(1, usable_cores() // n)
        try:
            client = Client(where, set_as_default=False, timeout=_CONNECT_S)
        except (OSError, TypeError, ValueError) as error:
            raise InputError(
                f"`dask={dask!r}`: no scheduler answers there ({' '.join(str(error).split())})"
            ) from None
        cluster = Cluster(client.scheduler.address, client, n_jobs)
        stack.callback(cluster.close)
        cluster.check()
        yield cluster


def require_dask(dask: str) -> None:
    """Refuse what is no address, and work on a cluster where Dask is not installed."""
    if dask.startswith(_LOCAL):
        n_processes(dask)
    elif ":" not in dask:
        raise InputError(
            f"`dask={dask!r}` is no address of a scheduler, such as tcp://10.0.0.1:8786, and not of"
            f" the form {_LOCAL}4"
        )
    _require_installed()
    if dask.startswith("tls://"):
        from distributed.security import Security

        if Security().get_connection_args("client").get("ssl_context") is None:
            raise InputError(
                f"`dask={dask!r}`: Dask's configuration names no certificates for TLS"
                " (distributed.comm.tls.client, in ~/.config/dask)"
            )


def _require_installed() -> None:
    if find_spec("distributed") is None:
        raise MissingPackagesError(
            "`dask` needs distributed, not installed here: pip install 'toptune[cluster]' (from a"
            " checkout: pip install '.[cluster]')"
        )


def n_processes(dask: str) -> int:
    """Read how many processes ``local:N`` asks for."""
    number = dask.removeprefix(_LOCAL)
    if not (number.isascii() and number.isdigit() and int(number) >= 1):
        raise InputError(f"`dask={dask!r}`: {_LOCAL}N needs a whole number of processes from 1")
    return int(number)


@contextmanager
def _processes(n: int) -> Iterator[Any]:
    """Start workers on this machine, each a process that is started again where it dies."""
    from distributed import LocalCluster

    # On the loopback interface. Threads are toptune's own; for Dask a worker does one task.
    with LocalCluster(
        n_workers=n,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        preload=["toptune.cluster.worker"],
    ) as processes:
        yield processes
