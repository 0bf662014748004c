"""`hydra/launcher=local`: one process per slot, on all visible GPUs or on the cores of the CPU.

    python train.py -m table=t1c hydra/launcher=local
    python train.py -m table=t1c hydra/launcher=local hydra.launcher.runs_per_device=3

Slots = visible GPUs × runs per GPU; on the CPU, cores ÷ threads of a run. A process sees its own
GPU alone. A run has the numbers that it has by itself, and a process that dies ends its run alone.
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

from phaseavg.cli import unfailing_output
from phaseavg.errors import Interrupted, JobFailed, NotStarted, OutOfTime, ProcessLost, UserError
from phaseavg.sweep.launch import failed
from phaseavg.training.execution import own_threads, pick_device
from phaseavg.training.signals import StopSignals

POLL_SECONDS = 0.2


@dataclass
class Slot:
    """A worker process that trains one run at a time, started anew if it died.

    Attributes:
        device: that its runs are trained on, for the user.
        threads: of torch, where a run does not set them.
        variables: of its environment.
    """

    device: str
    threads: int
    variables: dict[str, str] = field(default_factory=dict)
    _executor: ProcessPoolExecutor | None = None
    _pid: int | None = None

    def run(self, payload: bytes, number: int, overrides: Sequence[str]) -> JobReturn:
        """Train a job; a job whose process died returns `ProcessLost`."""
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
        except Exception as error:  # for example a result that cannot be pickled
            return failed(JobFailed(repr(error)))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if there is one."""
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

    Args:
        execution: options of the runs, of which `device` and `threads` count.
        runs_per_device: a number, or `auto`.

    Raises:
        UserError: if the number or the device is wrong.
    """
    if runs_per_device != "auto" and (
        not isinstance(runs_per_device, int)
        or isinstance(runs_per_device, bool)
        or runs_per_device < 1
    ):
        raise UserError(
            f"hydra.launcher.runs_per_device={runs_per_device}: choices: auto, or a number from 1 "
            "on"
        )
    device = pick_device(execution.device)
    if device.type != "cuda":
        threads = execution.threads or own_threads()
        fitting = max(cpu_count() // threads, 1) if device.type == "cpu" else 1
        count = fitting if runs_per_device == "auto" else runs_per_device
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
    order = gpus * (1 if runs_per_device == "auto" else runs_per_device)
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
    """Train jobs, one per slot at a time.

    Args:
        jobs: overrides of each.
        first: index of the first one.
        slots: to train them in.
        context: of Hydra.
        task: trains a job.
        config: of the sweep.

    Raises:
        Interrupted: after a signal, once all runs in training have saved their state.
    """
    devices = ", ".join(dict.fromkeys(slot.device for slot in slots))
    runs = "1 run" if len(slots) == 1 else f"{len(slots)} runs"
    threads = "1 thread" if slots[0].threads == 1 else f"{slots[0].threads} threads"
    print(f"local: {runs} at a time on {devices}, {threads} each", flush=True)
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
        error = returned._return_value
        if isinstance(error, ProcessLost) and signals.received is not None:
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


_given: tuple[HydraContext, TaskFunction, DictConfig] | None = None
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
    """End this process once its parent has died, after what it trains has saved its state."""
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
    if _given is None:
        raise RuntimeError("begin_worker was not called")
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
        with unfailing_output():
            return run_job(
                task_function=named,
                config=composed,
                hydra_context=context,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
    finally:
        _training = False


class Named(io.TextIOBase):
    """Standard output of one of several processes, in whole lines that begin with a name.

    Args:
        name: that no other process has.
        out: where the lines go.
    """

    def __init__(self, name: str, out: TextIO) -> None:
        self._name = name
        self._out = out
        self._begun = ""

    def write(self, text: str) -> int:
        """Write the lines that are whole; keep the rest until it is."""
        *lines, self._begun = f"{self._begun}{text}".split("\n")
        named = [n if n.startswith(self._name) else f"{self._name}: {n}" for n in lines]
        self._out.write("".join(f"{line}\n" for line in named))
        self._out.flush()
        return len(text)
