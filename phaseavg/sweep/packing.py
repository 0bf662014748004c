"""Several runs at a time on one device: processes side by side, by Hydra's joblib launcher.

    python train.py -m table=t1c hydra/launcher=packed
    python train.py -m table=t1c hydra/launcher=packed hydra.launcher.runs_at_once=4

A run's numbers are those of the run alone: its process has as many threads as that would have. On
CUDA the processes share the card by NVIDIA's Multi-Process Service (here always in full, for `mps`
is also what torch calls Apple's GPUs), or by time slices where there is none.
"""

import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from joblib import cpu_count
from joblib.externals.loky import get_reusable_executor
from omegaconf import DictConfig

from phaseavg.cli import unfailing_output
from phaseavg.errors import Interrupted, OutOfTime, UserError
from phaseavg.runs.provenance import REPOSITORY
from phaseavg.sweep.service import MPS_CONTROL, card, multi_process_service
from phaseavg.training.execution import own_threads, pick_device
from phaseavg.training.signals import StopSignals

MEASURED = REPOSITORY / "benchmarks/results/gpu-packing.json"
"""What `make bench-gpu` has measured: on which GPU, and in its `rounds` a row for each network and
number of runs at once (`network`, `runs`), with the images/s of all of them together
(`images_per_second`), the peak of a run's memory (`peak_memory_bytes`), and whether they had the
Multi-Process Service (`service`)."""

NOT_MEASURED = 2
"""Runs at once on a GPU of which nothing is known."""

CONTEXT_BYTES = 1 << 30
"""What a process takes of a GPU beside its tensors: libraries, and the allocator's reserve."""

DECIDING = ("dataset", "model", "preset", "execution.device", "execution.threads")
"""Overrides that decide what a job needs."""


@dataclass(frozen=True)
class Needs:
    """What a job needs.

    Attributes:
        network: as the config group calls it.
        device: as torch calls it.
        threads: of torch.
    """

    network: str
    device: str
    threads: int

    @property
    def on_cuda(self) -> bool:
        """Whether it is trained on an NVIDIA GPU."""
        return self.device.startswith("cuda")


def checked(runs_at_once: Any) -> int | None:
    """Return the number of runs at once; None for auto.

    Raises:
        UserError: if it is neither.
    """
    if runs_at_once == "auto":
        return None
    if not isinstance(runs_at_once, int) or isinstance(runs_at_once, bool) or runs_at_once < 1:
        raise UserError(
            f"hydra.launcher.runs_at_once={runs_at_once}: choices: auto, or a number from 1 on"
        )
    return runs_at_once


def launch(
    jobs: Sequence[Sequence[str]],
    first: int,
    at_once: int | None,
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
) -> Sequence[JobReturn]:
    """Train jobs, several at a time.

    Args:
        jobs: overrides of each.
        first: index of the first one.
        at_once: how many; None for as many as is best.
        context: of Hydra.
        task: trains a job.
        config: of the sweep.

    Raises:
        Interrupted: after a signal, once all that were in training have saved their state.
    """
    needs = needs_of(jobs, context, config)
    if at_once is None:
        at_once, why = best(needs)
    else:
        why = "as runs_at_once says"
    print(f"packed: {at_once} {'run' if at_once == 1 else 'runs'} at once, {why}", flush=True)
    # A single job, too, has a process of its own: it may be one that ends it.
    at_once = min(at_once, max(len(jobs), 2))

    launcher = JoblibLauncher(
        n_jobs=at_once, batch_size=1, initializer=begin_worker, initargs=(own_threads(),)
    )
    if at_once == 1:  # which joblib trains in this process, as the basic launcher does
        launcher.setup(hydra_context=context, task_function=task, config=config)
        return launcher.launch(jobs, first)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="phaseavg-")))
        for device in sorted({need.device for need in needs if need.on_cuda})[:1]:
            stack.enter_context(multi_process_service(device, folder))
        # What they have opened on the card, and under which service, is of this launch alone.
        stack.callback(lambda: get_reusable_executor(reuse=True).shutdown(wait=True))
        packed = Packed(task, folder / "stop")
        launcher.setup(hydra_context=context, task_function=packed, config=config)
        signals = stack.enter_context(StopSignals(then=packed.stop.touch))
        returned = launcher.launch(jobs, first)
    if signals.received is not None:
        raise Interrupted(signals.received, "interrupted; rerun the same command to resume")
    return returned


def needs_of(
    jobs: Sequence[Sequence[str]], context: HydraContext, config: DictConfig
) -> list[Needs]:
    """Return the different things that jobs need.

    Raises:
        UserError: if a device is not there.
    """
    deciding = {
        tuple(o for o in job if o.partition("=")[0].lstrip("+") in DECIDING) for job in jobs
    }
    found = {}
    for overrides in sorted(deciding):
        composed = context.config_loader.load_sweep_config(config, list(overrides))
        execution = composed.execution
        needs = Needs(
            network=composed.hydra.runtime.choices["model"],
            device=str(pick_device(execution.device)),
            threads=execution.threads or own_threads(),
        )
        found[needs] = None
    return list(found)


def best(needs: Sequence[Needs]) -> tuple[int, str]:
    """Return how many runs to train at once, the least that is best for one of them, and why.

    Args:
        needs: of the runs.
    """
    gpus = {need.device: card(need.device) for need in needs if need.on_cuda}
    packing = measured(MEASURED)
    found, names, unknown = [], set(), set()
    for need in needs:
        if need.on_cuda:
            gpu = gpus[need.device]
            names.add(gpu.name)
            number = fastest(packing.get(gpu.name, []), need.network, gpu.free)
            if number is None:
                unknown.add(need.network)
            found.append(number or NOT_MEASURED)
        elif need.device == "cpu":
            names.add(f"{cpu_count()} cores, threads of a run: {need.threads}")
            found.append(max(cpu_count() // need.threads, 1))
        else:
            names.add(need.device)
            found.append(1)
    why = f"for {' and '.join(sorted(names))}"
    if unknown:
        networks = ", ".join(sorted(unknown))
        why += f"; {networks} not measured there, which make bench-gpu does"
    return min(found), why


def measured(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what was measured, by the name of the GPU; nothing if there is no such file."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    return {content["machine"]["device_name"]: content["rounds"]["packing"]}


def fastest(packing: Sequence[Mapping[str, Any]], network: str, free: int) -> int | None:
    """Return with how many runs of a network at once most images are trained in a second.

    Args:
        packing: what was measured on the GPU.
        network: as the config group calls it.
        free: bytes of the GPU's memory, into which all have to fit.

    Returns:
        The number, 1 if not even one run fits, None if the network was not measured.
    """
    rows = [row for row in packing if row["network"] == network]
    service = shutil.which(MPS_CONTROL) is not None
    rows = [row for row in rows if row["service"] == service] or rows
    if not rows:
        return None
    fitting = [r for r in rows if r["runs"] * (r["peak_memory_bytes"] + CONTEXT_BYTES) <= free]
    return max(fitting, key=lambda row: row["images_per_second"])["runs"] if fitting else 1


def begin_worker(threads: int) -> None:
    """Begin a process that trains runs.

    joblib would give it a share of the cores, with which a run's last bits would be others. Signals
    are its parent's to answer; those that reach it in training end that after the step.

    Args:
        threads: of torch, where a run does not say how many.
    """
    torch.set_num_threads(threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # which processes that it starts do not inherit


@dataclass(frozen=True)
class Packed:
    """Trains a job in a process beside others.

    Args:
        task: trains a job.
        stop: a file that is there once no job may begin, and those in training have to stop.
    """

    task: TaskFunction
    stop: Path

    def __call__(self, config: DictConfig) -> Any:
        """Train a job, and name it in each line that it prints."""
        if self.stop.exists():
            raise OutOfTime("interrupted, and not begun")
        name = HydraConfig.get().job.name
        with (
            unfailing_output(),
            redirect_stdout(Named(name, sys.stdout)),
            signalled(self.stop),
        ):
            try:
                return self.task(config)
            except KeyboardInterrupt as error:  # which would end the process
                raise OutOfTime(str(error)) from None


@contextmanager
def signalled(stop: Path) -> Iterator[None]:
    """While entered, send this process SIGTERM for as long as a file is there.

    Again and again, for it is of no effect before the training begins, or after it has been noted.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            if stop.exists():
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
