"""`hydra/launcher=local`: one process per slot, on all visible GPUs or on the cores of the CPU.

    python train.py -m table=t1c hydra/launcher=local
    python train.py -m table=t1c hydra/launcher=local hydra.launcher.runs_per_device=3

Slots = visible GPUs × runs per GPU; on the CPU, cores ÷ threads of a run. A process sees its own
GPU alone, and ends its own run alone if it dies.
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
from multiprocessing import get_context, parent_process
from typing import Any, TextIO

import cloudpickle
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from joblib import cpu_count
from omegaconf import DictConfig, open_dict

from phaseavg.errors import Interrupted, NotStarted, OutOfTime, ProcessLost, UserError
from phaseavg.sweep.launch import failed
from phaseavg.training.execution import default_threads, pick_device
from phaseavg.training.signals import StopSignals

POLL_SECONDS = 0.2


@dataclass
class Slot:
    """A worker process that trains one run at a time, started anew if it died.

    Attributes:
        device: of its runs, in words.
        threads: of torch, unless a run sets them.
        variables: of its environment.
    """

    device: str
    threads: int
    variables: dict[str, str] = field(default_factory=dict)
    _executor: ProcessPoolExecutor | None = None
    _pid: int | None = None

    def run(self, payload: bytes, number: int, overrides: Sequence[str]) -> JobReturn:
        """Train a job; return `ProcessLost` if its process died."""
        try:
            if self._executor is None:
                self._executor = ProcessPoolExecutor(
                    1,
                    mp_context=get_context("spawn"),
                    initializer=begin_worker,
                    initargs=(self.variables, self.threads, payload),
                )
                self._pid = self._executor.submit(os.getpid).result()
            return self._executor.submit(train_job, number, overrides).result()
        except BrokenProcessPool as error:
            self.close()
            return failed(ProcessLost(f"its process was ended by the system: {error}"))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def close(self) -> None:
        """End the process."""
        executor, self._executor, self._pid = self._executor, None, None
        if executor is not None:
            executor.shutdown()


def slots_for(execution: DictConfig, runs_per_device: Any) -> list[Slot]:
    """Return the slots of a sweep, in the order in which runs take them.

    Raises:
        UserError: if the number of runs per device, or the device of the execution, is wrong.
    """
    auto = runs_per_device == "auto"
    if not auto and not (type(runs_per_device) is int and runs_per_device > 0):
        raise UserError(
            f"hydra.launcher.runs_per_device={runs_per_device}: choices: auto, or a number from 1 "
            "on"
        )
    device = pick_device(execution.device)
    if device.type != "cuda":
        threads = execution.threads or default_threads()
        count = max(cpu_count() // threads, 1) if auto else runs_per_device
        return [Slot(str(device), threads) for _ in range(count)]
    if device.index is not None:
        raise UserError(
            f"execution.device={device}: hydra/launcher=local gives each run a GPU of its own; "
            f"choose execution.device=cuda, and the GPUs by CUDA_VISIBLE_DEVICES={device.index}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    gpus = [name.strip() for name in names][: torch.cuda.device_count()]
    # Each GPU's first run comes before any GPU's second.
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
    """Train jobs, given by their overrides, one per slot at a time.

    Raises:
        Interrupted: after a signal, once all runs in training have saved their state.
    """
    devices = ", ".join(dict.fromkeys(slot.device for slot in slots))
    count, threads = len(slots), slots[0].threads
    print(f"local: runs at a time: {count} on {devices}; threads of each: {threads}", flush=True)
    payload = cloudpickle.dumps((context, task, config, Singleton.get_state()))
    free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)

    def train(number: int, overrides: Sequence[str]) -> JobReturn:
        slot = free.get()
        try:
            if signals.received is not None:
                return failed(NotStarted("interrupted before it started"))
            returned = slot.run(payload, number, overrides)
        finally:
            free.put(slot)
        if isinstance(returned._return_value, ProcessLost) and signals.received is not None:
            return failed(NotStarted("interrupted while it started"))
        return returned

    with StopSignals() as signals, ThreadPoolExecutor(len(slots)) as pool:
        futures = [pool.submit(train, first + n, job) for n, job in enumerate(jobs)]
        try:
            while wait(futures, timeout=POLL_SECONDS).not_done:
                if signals.received is not None:
                    # Again and again: a signal before a run's first step has no effect.
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


_given: tuple[HydraContext, TaskFunction, DictConfig]
_training = False


def begin_worker(variables: dict[str, str], threads: int, payload: bytes) -> None:
    """Begin a process that trains runs."""
    global _given
    os.environ.update(variables)
    torch.set_num_threads(threads)
    # The parent answers signals; those that reach a run in training end it after its step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    context, task, config, state = cloudpickle.loads(payload)
    setup_globals()
    Singleton.set_state(state)
    _given = context, task, config
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process once its parent has died, after its run has saved its state."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    while _training:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(POLL_SECONDS)
    os._exit(1)


def train_job(number: int, overrides: Sequence[str]) -> JobReturn:
    """Train a job in this process, and begin each line that it prints with its name."""
    global _training
    context, task, config = _given
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.num = number
        composed.hydra.job.id = f"{composed.hydra.job.name}_{number}"
    HydraConfig.instance().set_config(composed)

    def named(config: DictConfig) -> Any:
        with redirect_stdout(Named(composed.hydra.job.name, sys.stdout)):
            try:
                return task(config)
            except KeyboardInterrupt as error:  # which would end the process
                raise OutOfTime(str(error)) from None

    _training = True
    try:
        returned = run_job(
            task_function=named,
            config=composed,
            hydra_context=context,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        # Its configs cannot be pickled: Hydra has imported the launcher's plugin twice.
        return JobReturn(status=returned.status, _return_value=returned._return_value)
    finally:
        _training = False


class Named(io.TextIOBase):
    """Standard output of one of several processes, in whole lines that begin with its name."""

    def __init__(self, name: str, out: TextIO) -> None:
        self._name = name
        self._out = out
        self._begun = ""

    def write(self, text: str) -> int:
        """Write whole lines; keep the rest until its line ends."""
        *lines, self._begun = f"{self._begun}{text}".split("\n")
        named = [n if n.startswith(self._name) else f"{self._name}: {n}" for n in lines]
        self._out.write("".join(f"{line}\n" for line in named))
        self._out.flush()
        return len(text)
