"""Run the steps of a job: one after the other in this process, or on workers of Ray.

Ray only hands out numbers: which item, which partition. What a step finds it writes to the job's folder, so a worker
that dies is replaced and its step done again, and a run that dies altogether goes on where its files end.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from verify.corpus.plan import Job
from verify.corpus.worker import Worker
from watermark import StillmarkError
from watermark.extras import require

if TYPE_CHECKING:
    import pyarrow as pa


MAP: Final = "map_item"
REDUCE: Final = "reduce_part"

_STORE: Final = 100 << 20  # bytes of Ray's object store: only numbers pass through it


def run_steps(job: Job, step: str, todo: list[int], workers: int, done: Callable[[int], None]) -> None:
    """Do a step of a job for each number in `todo`; `done` is called with how many are.

    Args:
        job: the job; its folder holds the plan.
        step: `map_item` or `reduce_part`.
        todo: the numbers of work items, or of partitions.
        workers: 1: this process; more: so many workers of Ray, which `cluster` has started.
        done: called after each.

    Raises:
        StillmarkError: what the step raises.
    """
    if workers == 1:
        worker = Worker(job)
        for i, number in enumerate(todo, 1):
            getattr(worker, step)(number)
            done(i)
    elif todo:
        for i, answer in enumerate(_by_ray(job, step, todo, workers), 1):
            if answer["error"] is not None:
                raise pickle.loads(answer["error"])
            done(i)


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    """Ray on this machine alone, for as long as the block runs: quiet, on loopback, telling nobody.

    A Ray that runs already in this process is used and left running. With one worker there is none. Of a worker that
    died Ray says so on stdout, which is for results: meanwhile stdout is stderr.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    if workers == 1:
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    require("ray")
    import ray
    import ray.data

    with redirect_stdout(sys.stderr):
        ours = not ray.is_initialized()
        if ours:
            ray.init(
                address="local",
                num_cpus=workers + 1,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_STORE,
                _node_ip_address="127.0.0.1",
            )
        try:
            yield
        finally:
            if ours:
                ray.shutdown()


class _Step:
    """A worker as an actor of Ray Data. Our errors are answers: Ray would wrap them, and try again."""

    def __init__(self, job: Job, step: str, folder: str) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are what runs side by side
        os.chdir(folder)
        self.job, self.step = job, step
        self.worker: Worker | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        (number,) = batch.column("number").to_pylist()
        error = None
        try:
            self.worker = self.worker or Worker(self.job)
            getattr(self.worker, self.step)(number)
        except StillmarkError as failure:
            error = pickle.dumps(failure)
        return pa.table({"number": [number], "error": pa.array([error], pa.binary())})


def _by_ray(job: Job, step: str, todo: list[int], workers: int) -> Iterator[dict[str, Any]]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers = ray.data.from_items([{"number": number} for number in todo], override_num_blocks=len(todo))
    answers = numbers.map_batches(
        _Step,
        fn_constructor_args=(job, step, str(Path.cwd())),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(todo))),
        num_cpus=1,
    )
    yield from answers.iter_rows()
