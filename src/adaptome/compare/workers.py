"""Where the runs of a comparison are carried out: here one after another, in processes of this machine, or on a Ray cluster.

All three take a function with arguments that can be pickled and give `concurrent.futures.Future`s. Runs are written to the
recipe's folder: machines of a cluster have to see it under the same path.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, Protocol

import torch

from adaptome.core.errors import MissingExtraError


class Workers(Protocol):
    """Takes work; `lanes` of it are done at once."""

    lanes: int

    def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
        """Begins a piece of work."""


class Here:
    """One after another, in this process: what is submitted is done when `submit` returns, and its error is raised there."""

    lanes = 1

    def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
        """Does it."""
        future: Future[Any] = Future()
        future.set_result(function(*given))
        return future


class Processes:
    """Processes of this machine; with GPUs each keeps to one of them, else they share the cores."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        context = multiprocessing.get_context("spawn")
        places = context.Queue()
        gpus = torch.cuda.device_count()
        for lane in range(lanes):
            places.put(lane % gpus if gpus else None)
        threads = max(1, (os.cpu_count() or 1) // lanes)
        self.pool = ProcessPoolExecutor(lanes, context, initializer=_begin, initargs=(places, threads))

    def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
        """Hands it to the next process that is free."""
        return self.pool.submit(function, *given)

    def end(self) -> None:
        """Ends the processes; what they are in goes on from its last checkpoint another time."""
        for process in list((self.pool._processes or {}).values()):
            process.terminate()
        self.pool.shutdown(wait=False, cancel_futures=True)


def _begin(places: Any, threads: int) -> None:
    """At the start of a process: its GPU, its share of the cores, and that it ends with its parent, however that ends."""
    gpu = places.get()
    if gpu is not None:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = shown.split(",")[gpu] if shown else str(gpu)
    else:
        torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (connection.wait([sentinel]), os._exit(1)), daemon=True).start()


class Cluster:
    """A Ray cluster; every run takes `cpus` cores and, where the cluster has GPUs, one of them.

    Args:
        address: of a running cluster ("host:port", "ray://host:port", "auto"), or "local" to start one on this machine.
        lanes: runs at once; None for as many as the cluster has room for.
    """

    def __init__(self, address: str, lanes: int | None = None, cpus: int = 1) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise MissingExtraError("ray", "ray") from None
        self.ray: Any = ray
        self.owned = not ray.is_initialized()
        if self.owned:
            local: dict[str, Any] = {
                "num_cpus": (lanes or os.cpu_count() or 1) * cpus,
                "include_dashboard": False,
            }
            ray.init(address=address, log_to_driver=False, **(local if address == "local" else {}))
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        self.lanes = lanes or max(1, gpus or int(there.get("CPU", 1)) // cpus)
        self.needs: dict[str, Any] = {"num_cpus": cpus, "num_gpus": 1 if gpus else 0}

    def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
        """Hands it to the cluster."""
        place = os.getcwd()
        task = self.ray.remote(**self.needs)(_at)
        future: Future[Any] = task.remote(place, function, given).future()
        return future

    def end(self) -> None:
        """Leaves the cluster, and stops one that was started here."""
        if self.owned:
            self.ray.shutdown()


def _at(place: str, function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    """In the folder that the command was begun in: a recipe's paths may be relative."""
    os.chdir(place)
    return function(*given)


@contextmanager
def workers(jobs: int = 1, ray: str | None = None) -> Iterator[Workers]:
    """What a comparison's runs are handed to.

    Args:
        jobs: at once; 0 for one on each GPU (or one where there is none), and on a cluster for what it has room for.
        ray: address of a Ray cluster, or "local".

    Raises:
        MissingExtraError: ray is not installed.
    """
    if ray is not None:
        cluster = Cluster(ray, jobs if jobs > 1 else None)
        try:
            yield cluster
        finally:
            cluster.end()
        return
    lanes = jobs or max(1, torch.cuda.device_count())
    if lanes == 1:
        yield Here()
        return
    pool = Processes(lanes)
    try:
        yield pool
    finally:
        pool.end()
