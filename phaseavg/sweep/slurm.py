"""`hydra/launcher=slurm`: a Slurm job per run, submitted by submitit.

    python train.py -m table=t1a hydra/launcher=slurm hydra.launcher.partition=gpu

Assumes of the file system that submitting host and nodes share: `runs_dir` and `submitit_folder`
are the same folders everywhere, a rename is atomic, a new file is seen everywhere within
`SEEN_AFTER_SECONDS`, and `flock` holds between nodes (NFS since version 4, Lustre with `-o flock`).

Which jobs are still in the queue is asked of `squeue`, so that no accounting (`sacct`) is needed.
"""

import subprocess
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf, open_dict
from submitit import AutoExecutor, Job

from phaseavg.cli import say
from phaseavg.config import Settings, check
from phaseavg.errors import NotStarted, OutOfTime, ProcessLost, UserError
from phaseavg.sweep.launch import failed
from phaseavg.sweep.rates import step_saved

POLL_SECONDS = 5
SEEN_AFTER_SECONDS = 60

FAULTS = ("FAILED", "OUT_OF_MEMORY", "BOOT_FAIL")
"""States of a job whose run failed; after any other state the run counts as interrupted."""


@dataclass
class Submitted:
    """A run and its job, and since when the job has left the queue without a result."""

    settings: Settings
    job: Job[JobReturn]
    gone_since: float | None = None


def launch(launcher: SlurmLauncher, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Submit a job per run and wait until each has a result or has left the queue.

    If Slurm refuses a job, for example because the user may have no more, that one and those after
    it are not started; the others go on.

    Args:
        launcher: submitit's own, which a job calls to train its run.
        jobs: overrides of each.
        first: index of the first one.

    Raises:
        UserError: if no job could be submitted.
    """
    submitted: list[Submitted] = []
    returned: dict[int, JobReturn] = {}
    try:
        try:
            submit(launcher, jobs, first, submitted)
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            if not submitted:
                raise UserError(f"hydra/launcher=slurm: no job was submitted: {reason}") from error
            rest = len(jobs) - len(submitted)
            say(f"{rest} runs were not submitted ({reason}); rerun the same command to resume")
        while len(returned) < len(submitted):
            queued = jobs_in_queue()
            for number, one in enumerate(submitted):
                if number not in returned and (outcome := ended(one, queued)):
                    returned[number] = outcome
            if len(returned) < len(submitted):
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        left = [s.job.job_id for n, s in enumerate(submitted) if n not in returned]
        if left:
            say(f"these Slurm jobs go on; to end them: scancel {' '.join(left)}")
        raise
    refused = [failed(NotStarted("not submitted"))] * (len(jobs) - len(submitted))
    return [*(returned[number] for number in range(len(submitted))), *refused]


def submit(
    launcher: SlurmLauncher,
    jobs: Sequence[Sequence[str]],
    first: int,
    submitted: list[Submitted],
) -> None:
    """Submit a job per run, each under the run's name, and add it to those submitted."""
    executor = executor_of(launcher.params)
    for number, overrides in enumerate(jobs, start=first):
        settings = settings_of(launcher, overrides)
        executor.update_parameters(name=settings.run_id)
        arguments = (list(overrides), "hydra.sweep.dir", number, f"job {number}")
        job = executor.submit(launcher, *arguments, Singleton.get_state())
        submitted.append(Submitted(settings, job))
        print(f"{settings.run_id}: Slurm job {job.job_id}, log {job.paths.stdout}", flush=True)


def executor_of(options: Mapping[str, Any]) -> AutoExecutor:
    """Return an executor with the options of `hydra/launcher=submitit_slurm`."""
    general = OmegaConf.structured(BaseQueueConf).keys()
    executor = AutoExecutor(
        folder=options["submitit_folder"],
        cluster="slurm",
        slurm_max_num_timeout=options["max_num_timeout"],
    )
    others = options.keys() - {"submitit_folder", "max_num_timeout", "name"}
    executor.update_parameters(
        **{name if name in general else f"slurm_{name}": options[name] for name in others}
    )
    return executor


def settings_of(launcher: SlurmLauncher, overrides: Sequence[str]) -> Settings:
    """Return the settings of the run that a job trains."""
    config = launcher.hydra_context.config_loader.load_sweep_config(
        launcher.config, list(overrides)
    )
    with open_dict(config):
        del config["hydra"]
    return check(config)


def _answer(*command: str) -> str | None:
    """Return what a command of Slurm prints; None if Slurm cannot answer now."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def jobs_in_queue() -> list[str] | None:
    """Return the ids of the user's jobs in the queue; None if Slurm cannot answer now."""
    ids = _answer("squeue", "--me", "--noheader", "--format=%A")
    return None if ids is None else ids.split()


def state_of(job_id: str) -> str:
    """Return the last state of a job that has left the queue, as long as Slurm remembers it."""
    words = (_answer("scontrol", "--oneliner", "show", "job", job_id) or "").split()
    states = [word.partition("=")[2] for word in words if word.startswith("JobState=")]
    return states[0] if states else "UNKNOWN"


def ended(submitted: Submitted, queued: Container[str] | None) -> JobReturn | None:
    """Return the outcome of a job, given the jobs in the queue; None if it is not over."""
    run_id, job = submitted.settings.run_id, submitted.job
    if job.paths.result_pickle.exists():
        try:
            outcome = job.result()
        except Exception as error:  # of submitit, for example that a module is missing on the node
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            outcome = failed(ProcessLost(f"{reason}; log: {job.paths.stderr}"))
        if outcome.status is JobStatus.FAILED and isinstance(outcome._return_value, OutOfTime):
            say(f"{run_id}: {outcome._return_value}")
        return outcome
    if queued is None or job.job_id in queued:
        submitted.gone_since = None
        return None
    submitted.gone_since = submitted.gone_since or time.monotonic()
    if time.monotonic() - submitted.gone_since < SEEN_AFTER_SECONDS:
        return None
    state, step = state_of(job.job_id), step_saved(submitted.settings.run_folder)
    about = f"its Slurm job {job.job_id} ended without a result (state {state})"
    if state in FAULTS:
        return failed(ProcessLost(f"{about}; log: {job.paths.stderr}"))
    saved = f"interrupted, saved after step {step:,}" if step else "interrupted, nothing saved"
    say(f"{run_id}: {saved}: {about}; rerun the same command to resume")
    return failed(OutOfTime(f"{saved}: {about}"))
