"""Say before a sweep that it would take days on a CPU."""

import json
import time
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.sweep.order import Job
from phaseavg.sweep.progress import epochs_done
from phaseavg.training.execution import pick_device
from phaseavg.training.parts import load_data, new_model
from phaseavg.training.progress import SLOW_DAYS

SIZE, REPEATS = 1024, 5  # of the timed matrix products


def cpu_notice(jobs: Sequence[Job]) -> str | None:
    """Return a notice if the jobs would take days on this machine's CPU, else None.

    The days are rough: the operations of training at the rate of a matrix product in float32.

    Args:
        jobs: the jobs of a sweep, whose data sets are present.
    """
    try:
        if not jobs or pick_device(jobs[0].run.settings.execution.device).type != "cpu":
            return None
        operations, rate = training_operations(jobs), operations_per_second()
    except Exception:  # in a user's own part, for example; the run itself reports it
        return None
    days = operations / rate / 86400
    if days < SLOW_DAYS:
        return None
    epochs = sum(job.run.epochs - epochs_done(job) for job in jobs)
    return (
        f"{epochs:,} epochs take roughly {days:,.0f} days on this CPU ({operations:.1e} "
        f"operations at {rate:.1e} per second); a GPU or scale=tenth is faster (docs/reproduce.md)"
    )


def training_operations(jobs: Sequence[Job]) -> int:
    """Return the number of floating-point operations of the jobs, excluding evaluation."""
    by_data: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_data[json.dumps(job.run.settings.dataset, sort_keys=True)].append(job)
    total = 0
    for members in by_data.values():
        data = load_data(members[0].run.settings, torch.device("cpu"))
        images: dict[str, int] = defaultdict(int)
        settings = {}
        for job in members:
            model = json.dumps(job.run.settings.model, sort_keys=True)
            settings[model] = job.run.settings
            images[model] += (job.run.epochs - epochs_done(job)) * data.train_size
        total += sum(n * operations_per_image(settings[model], data) for model, n in images.items())
    return total


def operations_per_image(settings: Settings, data: DataSet) -> int:
    """Return the operations per training image: a forward pass, and two backward."""
    model = new_model(settings, data).eval()
    image = torch.zeros(1, data.channels, data.image_size, data.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return 3 * counter.get_total_flops()


def operations_per_second() -> float:
    """Return the rate of the fastest of a few matrix products, in float32 with all threads."""
    matrix = torch.ones(SIZE, SIZE)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / min(seconds)
