"""Every method the paper compares, as a run: against loops written out, and together."""

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import REPOSITORY, TINY, Prompt
from omegaconf import OmegaConf
from reference import alphas
from torch.nn.functional import cross_entropy

import train
from phaseavg.averaging import AtEnd, Averager, Phasewise, recompute_batchnorm
from phaseavg.config import Settings, check
from phaseavg.errors import Diverged, UserError
from phaseavg.optim import Lookahead
from phaseavg.runs.folder import RunFolder
from phaseavg.tracking import Tracking
from phaseavg.training import loop
from phaseavg.training.evaluation import evaluate
from phaseavg.training.loop import train as train_loop
from phaseavg.training.parts import assemble, load_data, new_model
from phaseavg.training.progress import TrainingProgress
from phaseavg.training.step import Step

Compose = Callable[..., Settings]

SEEING_ONLY = (*TINY, "checkpoint_seconds=1000")  # which saves the time of saving

OPTIMIZERS, AVERAGINGS = (
    sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))
    for group in ("optimizer", "averaging")
)
OF_A_PHASE = slice(1, 4, 2)  # of TINY's five epochs, those that end its first two phases


def history_of(settings: Settings) -> list[dict[str, Any]]:
    lines = (settings.run_folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights_of(settings: Settings) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(settings.run_folder / "weights.safetensors")


def in_folder(settings: Settings, name: str) -> Settings:
    return settings.model_copy(update={"runs_dir": settings.runs_dir / name})


PAIRS = [
    (optimizer, averaging)
    for optimizer in OPTIMIZERS
    for averaging in AVERAGINGS
    if averaging == "phasewise" or optimizer in ("sgd", "lookahead")
]
"""All optimizers beside what replaces their weights, all averagings beside SGD and Lookahead.

An average replaces weights and asks the optimizer to go on from there. Of optimizers, Lookahead
alone has weights of its own, so that to the others all averagings are one.
"""


def test_every_optimizer_and_every_averaging_is_in_a_pair() -> None:
    assert [set(column) for column in zip(*PAIRS, strict=True)] == [
        set(OPTIMIZERS),
        set(AVERAGINGS),
    ]


@pytest.mark.parametrize(("optimizer", "averaging"), PAIRS)
def test_every_optimizer_and_every_averaging_learns(
    compose_settings: Compose, optimizer: str, averaging: str
) -> None:
    settings = compose_settings(
        *SEEING_ONLY,
        "model.width=0.125",
        "batch_size=50",
        "schedule.epochs=[3,1,1]",
        "evaluation.every=0",  # but at phase ends
        f"optimizer={optimizer}",
        f"averaging={averaging}",
    )
    result = train.run(settings)
    first, *_, last = history_of(settings)
    assert last["train_loss"] < first["train_loss"] - 0.02
    assert result["test_error"] < 85
    for kind in ("with_bn_pass", "without_bn_pass"):  # of every method, last and best
        assert result[kind]["best_test_error"] <= result[kind]["test_error"]
    averaged = averaging != "none"
    assert ("average_coefficients" in last) == averaged
    if averaged:
        assert sum(last["average_coefficients"]) == pytest.approx(1, abs=1e-9)


def by_hand(
    settings: Settings, new_optimizer: Callable[..., torch.optim.Optimizer], reset: bool = False
) -> tuple[torch.nn.Module, list[float]]:
    """Train TINY's phases without averaging; return the network and the test errors of epochs."""
    data = load_data(settings, torch.device("cpu"))
    model = new_model(settings, data)
    optimizer = new_optimizer(model.parameters())
    step, errors = 0, []
    for epochs, learning_rate in ((2, 0.1), (2, 0.01), (1, 0.001)):
        if reset:
            optimizer = new_optimizer(model.parameters())
        optimizer.param_groups[0]["lr"] = learning_rate
        for _ in range(epochs):
            model.train()
            for images, labels in data.train_batches(step, step + data.steps_per_epoch):
                optimizer.zero_grad()
                cross_entropy(model(images), labels).backward()
                optimizer.step()
                step += 1
            tested = copy.deepcopy(model)
            if isinstance(optimizer, Lookahead):
                state = optimizer.state
                for copied, p in zip(tested.parameters(), model.parameters(), strict=True):
                    copied.data.copy_(state[p]["slow_weights"])
            errors.append(evaluate(tested, data.test_batches()).error)
    return tested, errors


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4)


def lookahead(params: Any) -> Lookahead:
    return Lookahead(sgd(params), k=5, alpha=0.5)


@pytest.mark.parametrize(
    ("overrides", "new_optimizer", "reset"),
    [
        ([], sgd, False),
        (["optimizer_state=reset"], sgd, True),
        (["optimizer=lookahead"], lookahead, False),  # k = 5 does not divide the 8 steps
    ],
)
def test_a_run_without_averaging_is_the_loop_that_everybody_writes(
    compose_settings: Compose, overrides: list[str], new_optimizer: Any, reset: bool
) -> None:
    settings = compose_settings(*SEEING_ONLY, "averaging=none", "weights=final", *overrides)
    result = train.run(settings)
    model, errors = by_hand(settings, new_optimizer, reset)
    assert [line["test_error"] for line in history_of(settings)] == errors
    assert result["test_error"] == errors[-1]
    found = weights_of(settings)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_resetting_the_optimizer_changes_the_second_phase_and_not_the_first(
    compose_settings: Compose,
) -> None:
    runs = [
        compose_settings(*SEEING_ONLY, "averaging=none", f"optimizer_state={state}")
        for state in ("keep", "reset")
    ]
    for settings in runs:
        train.run(settings)
    kept, reset = ([line["train_loss"] for line in history_of(settings)] for settings in runs)
    assert kept[:2] == reset[:2]
    assert kept[2] != reset[2]


def test_lookahead_goes_on_from_the_average_with_both_its_weights(
    compose_settings: Compose,
) -> None:
    """In mid-window: left behind, its slow weights would pull half of the average back."""
    settings = compose_settings(*SEEING_ONLY, "optimizer=lookahead", "schedule.epochs=[1,1,1]")
    data, schedule, state = assemble(settings, torch.device("cpu"))
    replaced = []
    end_phase = state.averager.end_phase

    def noting(model: torch.nn.Module, phase: int) -> bool:
        done = end_phase(model, phase)
        replaced.append([p.detach().clone() for p in model.parameters()])
        return done

    state.averager.end_phase = noting  # type: ignore[method-assign]
    starts = []
    start_phase = state.averager.start_phase

    def looking(model: torch.nn.Module, phase: int) -> None:
        kept = state.optimizer.state
        slow = [kept.get(p, {}).get("slow_weights", p).clone() for p in model.parameters()]
        starts.append((slow, [p.detach().clone() for p in model.parameters()]))
        start_phase(model, phase)

    state.averager.start_phase = looking  # type: ignore[method-assign]
    train_state(state, data, schedule, settings)
    assert len(replaced) == len(starts) == 3
    for average, (slow, fast) in zip(replaced[:2], starts[1:], strict=True):
        for theta, phi, expected in zip(fast, slow, average, strict=True):
            assert torch.equal(theta, expected)
            assert torch.equal(phi, expected)


def train_state(state: Any, data: Any, schedule: Any, settings: Settings) -> None:
    tracking = Tracking(settings.recipe(), settings.record(), [])
    with RunFolder(settings.run_folder) as folder, TrainingProgress(schedule, state) as progress:
        train_loop(state, data, schedule, settings, folder, progress, tracking)


def test_fast_weights_that_are_no_longer_finite_are_seen(compose_settings: Compose) -> None:
    """Lookahead's: the slow ones, which are tested, would hide them until the next window ends."""
    settings = compose_settings(*SEEING_ONLY, "optimizer=lookahead", "averaging=none")
    data, schedule, state = assemble(settings, torch.device("cpu"))
    step = state.optimizer.inner.step

    def overflowing(closure: Any = None) -> Any:
        loss = step(closure)
        if state.step == 7:  # the epoch's last, the third of a window of five
            next(state.model.parameters()).data.fill_(math.inf)
        return loss

    state.optimizer.inner.step = overflowing
    with pytest.raises(Diverged) as diverged:
        train_state(state, data, schedule, settings)
    assert diverged.value.outcome["reason"] == "the weights are no longer finite"
    assert diverged.value.outcome["epoch"] == 1


WATCHED = (
    "+averaging@watch.ours=phasewise",
    "+averaging@watch.strong=phasewise",
    "watch.strong.weights.gamma0=0.99",
    "+averaging@watch.swa=uniform",
    "+averaging@watch.rna=learnt",
    "+averaging@watch.polyak=end",
    "+averaging@watch.last=end",
    "watch.last.window=phase",
)
AS_A_RUN = {
    "ours": ["averaging=phasewise"],
    "strong": ["averaging=phasewise", "averaging.weights.gamma0=0.99"],
    "swa": ["averaging=uniform"],
    "rna": ["averaging=learnt"],
    "polyak": ["averaging=end"],
    "last": ["averaging=end", "averaging.window=phase"],
}
ERRORS = ("test_error", "test_loss", "without_bn_test_error", "coefficients")


def test_what_watching_takes_is_not_booked_as_averaging(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a step takes two seconds, an observation one, and the rest nothing."""
    now = 0

    def taking(seconds: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*arguments)

        return timed

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now, time=lambda: 0))
    monkeypatch.setattr(Step, "__call__", taking(2, Step.__call__))
    for kind in (Averager, Phasewise, AtEnd):
        monkeypatch.setattr(kind, "observe", taking(1, kind.observe))
    settings = compose_settings(*SEEING_ONLY, "averaging=none", *WATCHED)
    train.run(settings)
    for line in history_of(settings):
        assert (line["train_seconds"], line["averaging_seconds"]) == (16, 1)
        assert line["watching_seconds"] == len(AS_A_RUN)


def test_averages_that_watch_one_trajectory_are_those_of_runs_of_their_own(
    compose_settings: Compose,
) -> None:
    alone = compose_settings(*SEEING_ONLY, "averaging=none", "weights=final")
    watching = compose_settings(*SEEING_ONLY, "averaging=none", "weights=final", *WATCHED)
    watching = in_folder(watching, "watching")
    for settings in (alone, watching):
        train.run(settings)

    # The trajectory is none the wiser.
    for name, tensor in weights_of(alone).items():
        assert torch.equal(weights_of(watching)[name], tensor)
    watched = history_of(watching)
    for line, more in zip(history_of(alone), watched, strict=True):
        known = {key: value for key, value in line.items() if "second" not in key}
        assert known.items() <= {k: v for k, v in more.items() if k in known}.items()

    # At the end of the first phase all are what they would have been, and at the end of training
    # those that replace nothing before.
    result = json.loads((watching.run_folder / "result.json").read_text())
    for name, overrides in AS_A_RUN.items():
        own = compose_settings(*SEEING_ONLY, *overrides)
        own_result = train.run(own)
        for epoch in (2, 5) if name in ("polyak", "last") else (2,):
            expected, found = history_of(own)[epoch - 1], watched[epoch - 1]
            present = [key for key in ERRORS if f"average_{key}" in expected]
            assert len(present) in (0, len(ERRORS))
            assert present or name == "last"
            for key in present:
                assert found[f"{name}_{key}"] == expected[f"average_{key}"], (name, epoch, key)
        if name in ("polyak", "last"):
            entry = result["watched"][name]["with_bn_pass"]
            assert entry["test_error"] == own_result["test_error"]
            assert entry["test_loss"] == own_result["test_loss"]
    assert result["watched"].keys() == AS_A_RUN.keys()
    assert result["watched"]["ours"]["with_bn_pass"]["epochs_tested"] == 3
    assert result["watched"]["last"]["with_bn_pass"]["epochs_tested"] == 1


def test_the_coefficients_are_those_of_the_weights(compose_settings: Compose) -> None:
    settings = compose_settings(
        *TINY, "+averaging@watch.swa=uniform", "+averaging@watch.rna=learnt"
    )
    train.run(settings)
    first, second = history_of(settings)[OF_A_PHASE]
    for line in (first, second):
        assert line["average_coefficients"] == pytest.approx(alphas(0.9, 2).tolist(), rel=1e-12)
        assert line["swa_coefficients"] == [0.5, 0.5]
        assert sum(line["rna_coefficients"]) == pytest.approx(1)
        assert line["rna_solved_by"] == "solve"
        assert line["rna_condition"] > 1
    assert first["rna_coefficients"] != second["rna_coefficients"]


def test_what_is_watched_is_looked_at_as_often_as_the_average(compose_settings: Compose) -> None:
    options = ("evaluation.average_every=1", "evaluation.batchnorm_every=1")
    settings = compose_settings(
        *SEEING_ONLY, "averaging=none", "+averaging@watch.swa=uniform", *options
    )
    result = train.run(settings)
    history = history_of(settings)
    assert all("swa_test_error" in line and "bn_test_error" in line for line in history)
    assert ["swa_without_bn_test_error" in line for line in history] == [
        "replaced" in line for line in history
    ]
    assert result["watched"]["swa"]["with_bn_pass"]["epochs_tested"] == 5
    assert result["with_bn_pass"]["epochs_tested"] == 5


def test_the_average_without_a_pass_has_the_statistics_of_the_weights_before_it(
    compose_settings: Compose,
) -> None:
    settings = compose_settings(*SEEING_ONLY, "schedule.epochs=[1]", "schedule.factors=[1]")
    train.run(settings)
    (line,) = history_of(settings)
    # An average of one epoch is that epoch: only the pass tells them apart.
    assert line["average_without_bn_test_error"] == line["test_error"]
    assert line["average_without_bn_test_loss"] == line["test_loss"]
    assert line["average_test_loss"] == line["bn_test_loss"] != line["test_loss"]


@pytest.mark.parametrize("name", ["average", "bn", "SWA", "a.b", "2nd", "x_without_bn_y"])
def test_names_that_records_could_not_tell_apart_are_refused(
    compose_settings: Compose, name: str
) -> None:
    settings = compose_settings(*SEEING_ONLY).model_dump(mode="json")
    watch = {name: {"_target_": "phaseavg.averaging.Phasewise"}}
    with pytest.raises(UserError, match=f"watch.*{name}.* (must be small letters|is a name)"):
        check(OmegaConf.create({**settings, "watch": watch}))


def test_a_run_cannot_begin_to_watch_in_the_middle(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("phaseavg.training.progress.TrainingProgress.epoch", lambda *_: 1 / 0)
        assert prompt(*TINY, "+averaging@watch.swa=uniform")[0] == 1
    assert list(tmp_path.glob("runs/*/checkpoint-*"))
    for changed in ("+averaging@watch.swa=end", "+averaging@watch.other=uniform"):
        status, _, err = prompt(*TINY, changed)
        assert status == 2
        assert f"{changed.partition('=')[0].partition('@')[2]} is not what has been watched" in err
        assert err.count("\n") == 1
    assert prompt(*TINY)[0] == 0  # without it there is nothing to miss
    _, out, _ = prompt(*TINY, "+averaging@watch.swa=uniform")
    assert "finished before, without such an average as watch.swa: " in out


def test_a_snapshot_that_cannot_be_written_is_told_in_one_line_and_made_up_for(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, left = os.fsync, 3

    def full(number: int) -> None:
        nonlocal left
        if "/.snapshot-" in str(Path(f"/proc/self/fd/{number}").resolve()):
            left -= 1
            if left == 0:
                raise OSError(28, "No space left on device")
        real(number)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        status, _, err = prompt(*TINY, "averaging=learnt", "averaging.weights.rho=0.1")
    assert status == 1
    assert err.count("\n") == 1
    assert "/snapshots/averaging/snapshot-0002-" in err
    assert "No space left on device; once that is mended, the same command goes on" in err
    assert not list(tmp_path.rglob("*.part"))
    status, out, _ = prompt(*TINY, "averaging=learnt", "averaging.weights.rho=0.1")
    assert status == 0
    assert "from step 15" in out  # one before the epoch's end, where it could not be kept


def test_singular_equations_are_told_and_recorded(
    compose_settings: Compose, capfd: pytest.CaptureFixture[str]
) -> None:
    # Without a learning rate to speak of no epoch differs from the one before.
    overrides = ("averaging=learnt", "optimizer.lr=1e-300", "optimizer.weight_decay=0")
    settings = compose_settings(*SEEING_ONLY, *overrides)
    train.run(settings)
    assert history_of(settings)[1]["average_solved_by"] == "uniform"
    assert history_of(settings)[1]["average_condition"] is None
    said = capfd.readouterr().out
    assert (
        "average: the equations of the learnt weights are singular at the end of epoch 2; the "
        "weights are uniform" in said
    )


def test_watched_averages_after_a_batchnorm_pass_are_the_loops_own(
    compose_settings: Compose,
) -> None:
    """The average of two epochs, by hand from two runs that end where it looks."""
    options = ("averaging=none", "weights=final", "schedule.factors=[1]", "evaluation.every=0")
    one, two = (
        compose_settings(*SEEING_ONLY, *options, f"schedule.epochs=[{epochs}]", *more)
        for epochs, more in ((1, ()), (2, ("+averaging@watch.swa=uniform",)))
    )
    for settings in (one, two):
        train.run(settings)
    data = load_data(two, torch.device("cpu"))
    model = new_model(two, data)
    model.load_state_dict(weights_of(two))
    earlier = weights_of(one)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_((parameter.double() + earlier[name].double()) / 2)
    last = history_of(two)[-1]
    without = evaluate(model, data.test_batches())
    assert last["swa_without_bn_test_loss"] == pytest.approx(without.loss, rel=1e-5)
    recompute_batchnorm(model, data.batchnorm_batches(2))
    assert last["swa_test_loss"] == pytest.approx(
        evaluate(model, data.test_batches()).loss, rel=1e-5
    )
