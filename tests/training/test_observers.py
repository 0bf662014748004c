"""Observers: averages that are evaluated during a run but never applied."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from conftest import (
    TINY,
    Compose,
    Prompt,
    assert_one_line,
    assert_same_weights,
    history_of,
    result_of,
    untimed,
    weights_of,
)
from torch import nn
from training.test_methods import UNSAVED

import train
from phaseavg.averaging import Averager
from phaseavg.training import loop
from phaseavg.training import state as state_module
from phaseavg.training.step import Step

OBSERVERS = (
    "+averaging@observers.ours=phasewise",
    "+averaging@observers.strong=phasewise",
    "observers.strong.weights.gamma0=0.99",
    "+averaging@observers.swa=uniform",
    "+averaging@observers.rna=rna",
    "+averaging@observers.polyak=end",
    "+averaging@observers.last=end",
    "observers.last.window=phase",
)
AS_A_RUN = {
    "ours": ["averaging=phasewise"],
    "strong": ["averaging=phasewise", "averaging.weights.gamma0=0.99"],
    "swa": ["averaging=uniform"],
    "rna": ["averaging=rna"],
    "polyak": ["averaging=end"],
    "last": ["averaging=end", "averaging.window=phase"],
}


Seconds = Callable[..., list[dict[str, float]]]


@pytest.fixture
def seconds_of(compose_settings: Compose, monkeypatch: pytest.MonkeyPatch) -> Seconds:
    """Return a function that trains a run, and returns the seconds of each epoch by kind.

    Uses a fake clock: a step takes two seconds, an average one second, and a BatchNorm pass
    `batchnorm` seconds; all else none.
    """
    now = 0

    def taking(seconds: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*arguments, **options)

        return timed

    def spent(*overrides: str, batchnorm: int = 0) -> list[dict[str, float]]:
        recompute = taking(batchnorm, loop.recompute_batchnorm)
        monkeypatch.setattr(loop, "recompute_batchnorm", recompute)
        settings = compose_settings(*UNSAVED, *overrides)
        train.run(settings)
        kinds = [line["seconds"].items() for line in history_of(settings)]
        return [{kind: seconds for kind, seconds in of_epoch if seconds} for of_epoch in kinds]

    monkeypatch.setattr(state_module, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(Step, "__call__", taking(2, Step.__call__))
    monkeypatch.setattr(Averager, "epoch_end", taking(1, Averager.epoch_end))
    return spent


def test_seconds_on_observers_do_not_count_as_averaging(seconds_of: Seconds) -> None:
    expected = {"train": 16, "averaging": 1, "observers": len(AS_A_RUN)}
    assert seconds_of("averaging=none", *OBSERVERS) == [expected] * 5


def test_the_batchnorm_pass_of_an_average_that_replaces_the_weights_counts_as_averaging(
    seconds_of: Seconds,
) -> None:
    within = {"train": 16, "averaging": 1}
    end = {"train": 16, "averaging": 1 + 3, "evaluation": 3}  # the weights are tested with a pass
    assert seconds_of("averaging=phasewise", batchnorm=3) == [within, end, within, end, end]


@pytest.mark.slow
def test_an_observer_equals_the_average_of_a_separate_run_and_changes_nothing(
    compose_settings: Compose,
) -> None:
    plain = compose_settings(*UNSAVED, "averaging=none", "save_weights=true")
    observed = compose_settings(*UNSAVED, "averaging=none", "save_weights=true", *OBSERVERS)
    observed = observed.model_copy(update={"runs_dir": observed.runs_dir / "observed"})
    for settings in (plain, observed):
        train.run(settings)
    history = history_of(observed)
    observers = [untimed(line.pop("observers")) for line in history]
    assert untimed(history) == untimed(history_of(plain))
    assert_same_weights(weights_of(observed), weights_of(plain))

    # At the first phase end all observers equal the average of their runs. At the end of training,
    # only observers of runs that replace no weights before the end do.
    result = result_of(observed)
    assert result["observers"].keys() == AS_A_RUN.keys()
    for name, overrides in AS_A_RUN.items():
        separate = compose_settings(*UNSAVED, *overrides)
        separate_result = train.run(separate)
        at_end = separate.averaging["_target_"].endswith("AtEnd")
        for epoch in (2, 5) if at_end else (2,):
            expected = history_of(separate)[epoch - 1].get("average", {})
            assert expected or (name, epoch) == ("last", 2)  # its window starts later
            assert observers[epoch - 1][name] == expected, (name, epoch)
        actual = result["observers"][name]["with_bn_pass"]
        assert actual["epochs_tested"] == (1 if name == "last" else 3)
        if at_end:
            assert actual["test_error"] == separate_result["test_error"]


def test_observers_are_evaluated_as_often_as_the_average(compose_settings: Compose) -> None:
    options = ("evaluation.average_every=1", "evaluation.batchnorm_every=1")
    observer = "+averaging@observers.swa=uniform"
    settings = compose_settings(*UNSAVED, "averaging=none", observer, *options)
    result = train.run(settings)
    for line in history_of(settings):
        swa = line["observers"]["swa"]
        assert "error" in swa
        assert "error" in line["bn"]
        assert ("without_bn" in swa) == ("coefficients" in swa) == ("replaced" in line)
    assert result["observers"]["swa"]["with_bn_pass"]["epochs_tested"] == 5
    assert result["with_bn_pass"]["epochs_tested"] == 5


class PartlyFrozen(nn.Sequential):
    """A network with a BatchNorm layer that always stays in eval mode."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        pixels = in_channels * image_size**2
        frozen = nn.BatchNorm1d(8)
        super().__init__(nn.Flatten(), nn.Linear(pixels, 8), frozen, nn.Linear(8, num_classes))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self[2].eval()
        return self


OWN = ("~model.width", "~model.pools", f"model._target_={__name__}.PartlyFrozen")


@pytest.mark.parametrize("network", [(), OWN], ids=["", "partly frozen"])
def test_an_observer_equals_the_average_that_replaces_the_weights(
    compose_settings: Compose, network: Sequence[str]
) -> None:
    ours = ("averaging=phasewise", "averaging/weights=bema")  # which uses a phase's first weights
    same = ("+averaging@observers.same=phasewise", "averaging/weights@observers.same.weights=bema")
    settings = compose_settings(*UNSAVED, *network, *ours, *same)
    train.run(settings)
    ends = [line for line in untimed(history_of(settings)) if "replaced" in line]
    assert len(ends) == 3
    for line in ends:
        assert line["observers"]["same"] == line["average"]


@pytest.mark.slow
def test_a_started_run_rejects_changed_observers(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("phaseavg.training.progress.TrainingProgress.epoch", lambda *_: 1 / 0)
        assert prompt(*TINY, "+averaging@observers.swa=uniform")[0] == 1
    assert list(tmp_path.glob("runs/*/checkpoint-*"))
    for changed in ("+averaging@observers.swa=end", "+averaging@observers.other=uniform"):
        assert_one_line(prompt(*TINY, changed), changed.partition("=")[0].partition("@")[2])
    assert prompt(*TINY)[0] == 0  # a run may resume without its observers
    _, out, _ = prompt(*TINY, "+averaging@observers.swa=uniform")
    assert "finished before" in out
    assert "without observers.swa" in out
