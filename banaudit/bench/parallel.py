"""Several processes at one list of work: a small network leaves most of a GPU idle, and most cores of a machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(work: Callable[[Item], Result], items: Iterable[Item], jobs: int = 1) -> Iterator[tuple[Item, Result]]:
    """Every item with what work made of it, as soon as it is made.

    Args:
        work: With several jobs it has to be picklable, as have the items.
        items: In the order in which they are begun.
        jobs: Processes that share the cores; with one the work is done here.

    Raises:
        Exception: The first that an item raised; what was not begun by then never is.
    """
    if jobs == 1:
        for item in items:
            yield item, work(item)
        return
    # A fresh interpreter each: one that has used threads or a GPU cannot be forked.
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        waiting = {pool.submit(work, item): item for item in items}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
