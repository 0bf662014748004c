"""One update of the network: launched operation by operation, or replayed as one CUDA graph."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.data.interface import Draw
from phaseavg.errors import UserError
from phaseavg.randomness import seed_for
from phaseavg.training.execution import autocast
from phaseavg.training.optimizers import after_replay, make_recordable, recordable_part
from phaseavg.training.state import TrainingState

WARM_UP = 3  # steps before the recorded one, in which libraries choose and prepare kernels

COMPILE_MODES = {True: "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""torch.compile's mode for each `execution.compile`; `execution.graph` makes the CUDA graphs."""

Results = tuple[Tensor, Tensor]
"""A batch's mean loss and number of errors: scalars on the device."""


class Step:
    """Forward and backward pass and update on one batch; loss and errors stay on the device.

    Args:
        state: the run.
        data: its data set.
        settings: of the run.
    """

    def __init__(self, state: TrainingState, data: DataSet, settings: Settings) -> None:
        self.state, self.settings, self.data = state, settings, data
        self._forward: Callable[[Tensor], Tensor] = state.model
        if mode := COMPILE_MODES.get(settings.execution.compile):
            # An epoch's last batch is smaller. A graph per size is faster than one for both.
            self._forward = torch.compile(state.model, mode=mode, dynamic=False)
        # As images come, or as what they are made from (interface.DataSet).
        self.draws: Callable[[int, int], Iterator[Draw]] = getattr(
            data, "draws", data.train_batches
        )
        self._images: Callable[[Tensor], Tensor] = getattr(data, "images", lambda images: images)

    def __call__(self, drawn: Tensor, labels: Tensor) -> None:
        """Take one step on a batch from `draws`."""
        state = self.state
        position = state.step % state.steps_per_epoch
        torch.manual_seed(seed_for(self.settings.seed, "dropout", state.step))
        loss, wrong = self._update(drawn, labels)
        state.losses[position] = loss
        state.wrong[position] = wrong
        state.sizes[position] = len(labels)
        state.step += 1

    def _update(self, drawn: Tensor, labels: Tensor) -> Results:
        return self._launch(drawn, labels, self.state.optimizer)

    def _launch(self, drawn: Tensor, labels: Tensor, optimizer: Optimizer) -> Results:
        images = self._images(drawn)
        with autocast(images.device, self.settings.execution.precision):
            logits = self._forward(images)
            loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), count_wrong(logits, labels)


def count_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of misclassified images, a scalar on the device."""
    return (logits.detach().argmax(1) != labels).sum()


class CudaGraph:
    """Records what a function launches on an NVIDIA GPU, and repeats it on the same memory."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # One for all: memory that is freed on a stream is kept for that stream.
        self._stream = torch.cuda.Stream()

    def warm_up(self, function: Callable[[], Results]) -> Results:
        """Run on a stream that is not the default one, as recording does."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = function()
        current.wait_stream(self._stream)
        return results

    def record(self, function: Callable[[], Results]) -> Results:
        """Record the function without running it; return where its results will be."""
        mode = "thread_local"  # other threads may do anything, such as pin the next batches
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode=mode):
            return function()

    def replay(self) -> None:
        """Launch all that was recorded at once."""
        self._graph.replay()


class GraphedStep(Step):
    """The same step, recorded once and replayed from then on: a single launch.

    The graph holds all that is done on the device: gathering and augmenting images, forward and
    backward pass, and the update, with a learning rate that is read from the device. The first
    steps and an epoch's last, smaller batch are launched one by one. A new optimizer is recorded
    anew. Restore the state before: what is loaded later is other memory than was recorded.
    """

    def __init__(
        self,
        state: TrainingState,
        data: DataSet,
        settings: Settings,
        recorder: Callable[[], CudaGraph] = CudaGraph,
    ) -> None:
        super().__init__(state, data, settings)
        self._new_recorder = recorder
        self._begin()

    def _begin(self) -> None:
        self._optimizer = self.state.optimizer
        make_recordable(self._optimizer, self.data.device)
        self._recorder = self._new_recorder()
        self._warm = 0
        self._inputs: tuple[Tensor, Tensor] | None = None

    def _update(self, drawn: Tensor, labels: Tensor) -> Results:
        optimizer = self.state.optimizer
        if optimizer is not self._optimizer:
            self._begin()
        whole = len(labels) == self.data.batch_size
        if not whole or self._warm < WARM_UP:
            self._warm += whole
            return self._recorder.warm_up(lambda: self._launch(drawn, labels, optimizer))
        if self._inputs is None:
            self._inputs = drawn.clone(), labels.clone()
            self._results = self._recorded(*self._inputs, recordable_part(optimizer))
        for recorded, new in zip(self._inputs, (drawn, labels), strict=True):
            recorded.copy_(new)
        self._recorder.replay()
        after_replay(optimizer)
        return self._results

    def _recorded(self, drawn: Tensor, labels: Tensor, optimizer: Optimizer) -> Results:
        try:
            return self._recorder.record(lambda: self._launch(drawn, labels, optimizer))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause: BaseException = error  # torch's last word is that there was an error before
            while cause.__context__ is not None:
                cause = cause.__context__
            raise UserError(
                f"execution.graph=true: a step of model={self.settings.model['_target_']} with "
                f"optimizer={self.settings.optimizer['_target_']} cannot be recorded: "
                f"{' '.join(str(cause).split())}; choices: false"
            ) from error


def new_step(state: TrainingState, data: DataSet, settings: Settings) -> Step:
    """Return the step that the settings ask for."""
    kind = GraphedStep if settings.execution.graph else Step
    return kind(state, data, settings)
