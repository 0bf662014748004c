"""Compare captured and replayed steps with steps launched operation by operation."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch
from conftest import REPOSITORY, TINY, Compose, also_slow, needs_gpu
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from phaseavg.averaging import Averager
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.errors import UserError
from phaseavg.training import loop
from phaseavg.training.execution import prepare
from phaseavg.training.optimizers import (
    base_optimizer,
    learning_rates,
    load_state,
    make_capturable,
    new_optimizer,
    set_learning_rate,
)
from phaseavg.training.parts import load_data
from phaseavg.training.state import TrainingState
from phaseavg.training.step import WARM_UP, GraphedStep, Step

Results = tuple[Tensor, Tensor]

OPTIMIZERS = sorted(path.stem for path in (REPOSITORY / "conf/optimizer").glob("*.yaml"))


def tensors_of(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Log(TorchDispatchMode):
    """Logs each operation with inputs and outputs, and the initial content of external memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number was read back from the device")
        for tensor in tensors_of([arguments, options]):
            if memory_of(tensor) not in self._seen:
                self._seen.add(memory_of(tensor))
                tensor = tensor.detach()
                self.before.append((tensor, tensor.clone()))
        results = function(*arguments, **(options or {}))
        self._seen.update(map(memory_of, tensors_of(results)))
        self.operations.append((function, arguments, options or {}, results))
        return results


class Recording:
    """A CUDA graph simulated on the CPU.

    Capturing changes only Python objects. A replay repeats the operations on the same memory, but
    not the Python code between them.
    """

    instances: ClassVar[list["Recording"]] = []

    def __init__(self) -> None:
        self.replays = 0
        self.instances.append(self)

    def warm_up(self, function: Callable[[], Results]) -> Results:
        return function()

    def record(self, function: Callable[[], Results]) -> Results:
        self._log = Log()
        with torch.random.fork_rng(devices=[]), self._log:
            results = function()
        with torch.no_grad():
            for tensor, before in self._log.before:
                tensor.copy_(before)
        return results

    def replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():  # the dispatch level of the capture
            for function, arguments, options, results in self._log.operations:
                again = function(*arguments, **options)
                for old, new in zip(tensors_of(results), tensors_of(again), strict=True):
                    if memory_of(old) != memory_of(new):  # otherwise a view or an in-place write
                        old.copy_(new)


@pytest.fixture(autouse=True)
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    instances: list[Recording] = []
    monkeypatch.setattr(Recording, "instances", instances)
    return instances


class LaunchedStep(Step):
    """A `GraphedStep` that captures no step."""

    def __init__(self, state: TrainingState, data: DataSet, settings: Settings) -> None:
        super().__init__(state, data, settings)
        make_capturable(state.optimizer, data.device)


def graphed(state: TrainingState, data: DataSet, settings: Settings) -> GraphedStep:
    return GraphedStep(state, data, settings, Recording)


def network(dropout: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(144, 10),
    )  # fmt: skip


def trained(
    settings: Settings, new: Callable[..., Step], steps: int, dropout: float = 0.0
) -> tuple[TrainingState, list[float]]:
    """Train a small network with a changing learning rate; return the state and the losses."""
    data = load_data(settings, torch.device(settings.execution.device))
    model = network(dropout).to(data.device).train()
    optimizer = new_optimizer(settings, model)
    averager = Averager(model, [1])
    state = TrainingState(model, optimizer, averager, data.steps_per_epoch, data.train_size)
    step, losses = new(state, data, settings), []
    for number, drawn in enumerate(step.draws(0, steps)):
        set_learning_rate(optimizer, 0.9**number)
        torch.manual_seed(number + isinstance(step, GraphedStep))  # which dropout must ignore
        step(*drawn)
        losses.append(state.losses[number % data.steps_per_epoch].item())
    return state, losses


def assert_resuming_changes_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a run with the same run interrupted in the middle of a window and of an epoch."""
    uninterrupted = train.run(settings)
    cut = settings.model_copy(update={"runs_dir": settings.runs_dir / "cut"})

    def interrupted(self: Any, step: int, error: Any) -> None:
        if step == 13:
            raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(loop.TrainingProgress, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(cut)
    assert train.run(cut)["test_loss"] == uninterrupted["test_loss"]
    one, other = (s.run_folder / "weights.safetensors" for s in (settings, cut))
    assert one.read_bytes() == other.read_bytes()


def all_tensors(state: TrainingState) -> list[Tensor]:
    saved = state.state_dict()
    return list(tensors_of([saved["model"], saved["optimizer"], saved["losses"], saved["wrong"]]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replayed_steps_equal_launched_steps_bit_by_bit(
    compose_settings: Compose, recordings: list[Recording], optimizer: str
) -> None:
    settings = compose_settings(*TINY, f"optimizer={optimizer}", "execution.device=cpu")
    steps = 19  # two epochs of 8 steps, each with a smaller last batch, and 3 more steps
    launched, losses = trained(settings, LaunchedStep, steps, dropout=0.5)
    replayed, same_losses = trained(settings, graphed, steps, dropout=0.5)
    assert recordings[-1].replays == steps - 2 - WARM_UP
    assert losses == same_losses
    assert len(set(losses)) == steps
    ours, others = all_tensors(replayed), all_tensors(launched)
    assert len(ours) == len(others) > 10
    assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("optimizer", ["adabound", "lookahead"])  # the others are torch's
def test_the_captured_update_equals_the_plain_update_up_to_rounding(
    compose_settings: Compose, optimizer: str
) -> None:
    settings = compose_settings(*TINY, f"optimizer={optimizer}", "execution.device=cpu")
    plain, losses = trained(settings, Step, 12)
    replayed, others = trained(settings, graphed, 12)
    assert losses == pytest.approx(others, rel=1e-3)
    for a, b in zip(plain.model.parameters(), replayed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_a_capture_error_shows_its_cause_and_out_of_memory_passes_through(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = compose_settings(*TINY, "execution.device=cpu")

    def record(self: Any, function: Any) -> Results:
        try:
            raise RuntimeError("the reason")
        finally:
            raise RuntimeError("there was an error before")  # as torch ends a failed capture

    monkeypatch.setattr(Recording, "record", record)
    with pytest.raises(UserError, match="cannot be captured: the reason; choices: false"):
        trained(settings, graphed, 5)

    monkeypatch.setattr(Recording, "record", Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        trained(settings, graphed, 5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loaded_state_gets_the_memory_layout_of_the_weights(
    compose_settings: Compose, optimizer: str
) -> None:
    settings = compose_settings(*TINY, f"optimizer={optimizer}", "execution.device=cpu")
    state, _ = trained(settings, Step, 2)
    model = network(0.0).to(memory_format=torch.channels_last)
    other = new_optimizer(settings, model)
    load_state(other, state.optimizer.state_dict())
    ours, theirs = base_optimizer(other).state, base_optimizer(state.optimizer).state
    compared = 0
    for p, q in zip(model.parameters(), state.model.parameters(), strict=True):
        for name, value in ours[p].items():
            assert torch.equal(value, theirs[q][name])
            if value.shape == p.shape:
                assert value.stride() == p.stride()
                compared += 1
    assert compared >= 6


def test_the_recorded_learning_rate_is_exact(compose_settings: Compose) -> None:
    settings = compose_settings(*TINY, "execution.device=cpu")
    state, _ = trained(settings, graphed, 5)
    assert learning_rates(state.optimizer, 0.9**4) == [0.1 * 0.9**4]  # to the last digit
    plain = new_optimizer(settings, network(0.0))
    load_state(plain, state.optimizer.state_dict())
    assert learning_rates(plain, 0.9**4) == [0.1 * 0.9**4]
    set_learning_rate(plain, 1.0)
    assert plain.param_groups[0]["lr"] == 0.1


def test_an_optimizer_that_cannot_be_captured_is_rejected(compose_settings: Compose) -> None:
    settings = compose_settings(*TINY, "execution.device=cpu")
    settings = settings.model_copy(update={"optimizer": {"_target_": "torch.optim.Adafactor"}})
    with pytest.raises(UserError, match="graph=true: Adafactor has no fused or capturable impl"):
        trained(settings, graphed, 1)


def test_an_optimizer_that_needs_a_closure_is_rejected(compose_settings: Compose) -> None:
    part = {"_target_": "torch.optim.LBFGS"}
    settings = compose_settings(*TINY).model_copy(update={"optimizer": part})
    with pytest.raises(UserError, match=r"optimizer=torch.optim.LBFGS: its step needs a closure"):
        new_optimizer(settings, nn.Linear(1, 1))


@pytest.mark.parametrize(
    "overrides",
    [[], *also_slow(["optimizer=lookahead"], ["optimizer=adam", "optimizer_state=reset"])],
)
def test_an_interrupted_run_of_replayed_steps_ends_bit_identical(
    compose_settings: Compose,
    monkeypatch: pytest.MonkeyPatch,
    recordings: list[Recording],
    overrides: list[str],
) -> None:
    monkeypatch.setattr(loop, "new_step", graphed)
    settings = compose_settings(*TINY, "save_weights=true", "share.enabled=false", *overrides)
    assert_resuming_changes_nothing(settings, monkeypatch)
    # An uninterrupted, an interrupted and a resumed run, with a new optimizer in each phase.
    anew = "optimizer_state=reset" in overrides
    assert len([r for r in recordings if r.replays > 0]) == (6 if anew else 3)


@pytest.mark.parametrize("first", [True, False])
def test_a_run_can_switch_between_launched_and_replayed_steps(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    settings = compose_settings(*TINY, "optimizer=adam", "share.enabled=false")
    uninterrupted = train.run(settings.model_copy(update={"runs_dir": settings.runs_dir / "whole"}))
    monkeypatch.setattr(loop, "new_step", graphed if first else Step)
    with monkeypatch.context() as once:
        once.setattr(loop.TrainingProgress, "epoch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.run(settings)
    monkeypatch.setattr(loop, "new_step", Step if first else graphed)
    switched = train.run(settings)
    assert switched["test_loss"] == pytest.approx(uninterrupted["test_loss"], rel=1e-5)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_cuda_graph_equals_launched_steps_bit_by_bit(
    compose_settings: Compose, optimizer: str, precision: str
) -> None:
    overrides = (*TINY, f"optimizer={optimizer}", f"execution.precision={precision}")
    settings, _ = prepare(compose_settings(*overrides, "execution.device=cuda"))
    launched, losses = trained(settings, LaunchedStep, 19, dropout=0.5)
    replayed, same_losses = trained(settings, GraphedStep, 19, dropout=0.5)
    assert losses == same_losses
    pairs = zip(all_tensors(replayed), all_tensors(launched), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@needs_gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_interrupted_run_of_cuda_graphs_ends_bit_identical(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    overrides = ("save_weights=true", "share.enabled=false", f"optimizer={optimizer}")
    on_gpu = ("execution.device=cuda", "execution.graph=true")
    settings = compose_settings(*TINY, *overrides, *on_gpu)
    assert_resuming_changes_nothing(settings, monkeypatch)
