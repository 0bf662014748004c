"""`hydra/launcher=local`: one process per slot, on all visible GPUs or on the CPU.

    python train.py -m table=t1c hydra/launcher=local
    python train.py -m table=t1c hydra/launcher=local hydra.launcher.runs_per_device=3

The number of slots is visible GPUs × runs per GPU; on the CPU, cores ÷ threads per run. A process
sees only its GPU. If a process dies, only its run fails.
"""

import io
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process, resource_tracker
from typing import Any, TextIO

import cloudpickle
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from joblib import cpu_count
from omegaconf import DictConfig, open_dict

from phaseavg.cli import lasting_output
from phaseavg.errors import Interrupted, NotStarted, OutOfTime, ProcessLost, UserError
from phaseavg.signals import StopSignals
from phaseavg.sweep.launch import failed_job
from phaseavg.training.execution import default_threads, pick_device

POLL_SECONDS = 0.2
STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Slot:
    """A worker process that trains one run at a time; restarted if it dies.

    Attributes:
        device: the name of the device.
        threads: the default number of torch threads.
        variables: environment variables of the process.
    """

    device: str
    threads: int
    variables: dict[str, str] = field(default_factory=dict)
    _executor: ProcessPoolExecutor | None = None
    _pid: int | None = None

    def run(self, payload: bytes, number: int, overrides: Sequence[str]) -> JobReturn:
        """Train a job; the job return has the error `ProcessLost` if the process dies."""
        try:
            if self._executor is None:
                self._executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                # The process inherits this mask, as a signal while it starts would kill it. The
                # tracker's start would undo the mask.
                resource_tracker.ensure_running()
                signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
                # Not as its `initializer`: if the process died, sending the payload would block.
                begun = self._executor.submit(begin_worker, self.variables, self.threads, payload)
                self._pid = begun.result()
            return self._executor.submit(train_job, number, overrides).result()
        except BrokenProcessPool as error:
            self.close()
            return failed_job(ProcessLost(f"the process died: {error}"))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it is running."""
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def close(self) -> None:
        """End the process."""
        executor, self._executor, self._pid = self._executor, None, None
        if executor is not None:
            executor.shutdown()


def slots_for(execution: DictConfig, runs_per_device: Any) -> list[Slot]:
    """Return the slots of a sweep, in the order of their use.

    Raises:
        UserError: if `runs_per_device` or `execution.device` is invalid.
    """
    auto = runs_per_device == "auto"
    if not auto and not (type(runs_per_device) is int and runs_per_device > 0):
        raise UserError(
            f"hydra.launcher.runs_per_device={runs_per_device}: must be auto or a positive integer"
        )
    device = pick_device(execution.device)
    if device.type != "cuda":
        threads = execution.threads or default_threads()
        count = max(cpu_count() // threads, 1) if auto else runs_per_device
        return [Slot(str(device), threads) for _ in range(count)]
    if device.index is not None:
        raise UserError(
            f"execution.device={device}: hydra/launcher=local assigns the GPUs; "
            f"use execution.device=cuda and select GPUs with CUDA_VISIBLE_DEVICES={device.index}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    gpus = [name.strip() for name in names][: torch.cuda.device_count()]
    # All GPUs get a first run before any GPU gets a second run.
    order = gpus * (1 if auto else runs_per_device)
    threads = execution.threads or max(cpu_count() // len(order), 1)
    return [Slot(f"GPU {gpu}", threads, {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in order]


def launch(
    jobs: Sequence[Sequence[str]],
    first: int,
    slots: Sequence[Slot],
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
) -> list[JobReturn]:
    """Train jobs, defined by their overrides, with one job per slot at a time.

    Raises:
        Interrupted: after a signal, once all running jobs have saved their state.
    """
    devices = ", ".join(dict.fromkeys(slot.device for slot in slots))
    count, threads = len(slots), slots[0].threads
    print(f"local: parallel runs: {count} on {devices}; threads per run: {threads}", flush=True)
    payload = cloudpickle.dumps((context, task, config, Singleton.get_state()))
    free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)

    def train(number: int, overrides: Sequence[str]) -> JobReturn:
        slot = free.get()
        try:
            if signals.received is not None:
                return failed_job(NotStarted("interrupted before it started"))
            returned = slot.run(payload, number, overrides)
        finally:
            free.put(slot)
        if isinstance(returned._return_value, ProcessLost) and signals.received is not None:
            return failed_job(NotStarted("interrupted while it started"))
        return returned

    with StopSignals() as signals, ThreadPoolExecutor(len(slots)) as pool:
        futures = [pool.submit(train, first + n, job) for n, job in enumerate(jobs)]
        try:
            while wait(futures, timeout=POLL_SECONDS).not_done:
                if signals.received is not None:
                    # Repeat the signal, because runs ignore signals before their first step.
                    for slot in slots:
                        slot.send(signal.SIGTERM)
        except BaseException:  # a second signal
            pool.shutdown(wait=False, cancel_futures=True)
            while wait(futures, timeout=POLL_SECONDS).not_done:
                for slot in slots:
                    slot.send(signal.SIGKILL)
            raise
        finally:
            for slot in slots:
                slot.close()
    if signals.received is not None:
        raise Interrupted(signals.received, "interrupted; rerun the same command to resume")
    return [future.result() for future in futures]


_job_context: tuple[HydraContext, TaskFunction, DictConfig]
_training = False


def begin_worker(variables: dict[str, str], threads: int, payload: bytes) -> int:
    """Initialise a worker process; return its process id."""
    global _job_context
    os.environ.update(variables)
    os.environ["LOKY_MAX_CPU_COUNT"] = str(threads)  # joblib then counts this process's share
    torch.set_num_threads(threads)
    # The parent handles signals. While a run trains, a signal stops the run after its step.
    for number in STOPPING:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    context, task, config, state = cloudpickle.loads(payload)
    setup_globals()
    Singleton.set_state(state)
    _job_context = context, task, config
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return os.getpid()


def _end_with_parent() -> None:
    """Exit after the parent process dies, once the current run has saved its state."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    while _training:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(POLL_SECONDS)
    os._exit(1)


@lasting_output()
def train_job(number: int, overrides: Sequence[str]) -> JobReturn:
    """Train a job in this process, and prefix its output lines with the job name."""
    global _training
    context, task, config = _job_context
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.num = number
        composed.hydra.job.id = f"{composed.hydra.job.name}_{number}"
    HydraConfig.instance().set_config(composed)

    def prefixed(config: DictConfig) -> Any:
        with redirect_stdout(PrefixedOutput(composed.hydra.job.name, sys.stdout)):
            try:
                return task(config)
            except KeyboardInterrupt as error:  # it would end the process
                raise OutOfTime(str(error)) from None

    _training = True
    try:
        returned = run_job(
            task_function=prefixed,
            config=composed,
            hydra_context=context,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        # The configs cannot be pickled, because Hydra imports the launcher plugin twice.
        return JobReturn(status=returned.status, _return_value=returned._return_value)
    finally:
        _training = False


class PrefixedOutput(io.TextIOBase):
    """Standard output of a worker, in complete lines that begin with the job name."""

    def __init__(self, name: str, out: TextIO) -> None:
        self._name = name
        self._out = out
        self._partial = ""

    def write(self, text: str) -> int:
        """Write complete lines; buffer an incomplete last line."""
        *lines, self._partial = f"{self._partial}{text}".split("\n")
        prefixed = [n if n.startswith(self._name) else f"{self._name}: {n}" for n in lines]
        self._out.write("".join(f"{line}\n" for line in prefixed))
        self._out.flush()
        return len(text)
