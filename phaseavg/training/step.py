"""One optimizer update, run operation by operation or replayed as a CUDA graph."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from phaseavg import processes
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.data.interface import Draw
from phaseavg.errors import UserError
from phaseavg.randomness import seed_for
from phaseavg.training.execution import autocast
from phaseavg.training.optimizers import after_replay, base_optimizer, make_capturable
from phaseavg.training.state import TrainingState

WARM_UP = 3  # steps before the captured step, in which libraries select kernels

COMPILE_MODES = {True: "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""The mode of torch.compile by `execution.compile`; only `execution.graph` uses CUDA graphs."""

Results = tuple[Tensor, Tensor]
"""A batch's mean loss and number of errors: scalars on the device."""


class Step:
    """Runs the forward pass, backward pass and update; loss and errors stay on the device.

    Args:
        state: the training state.
        data: the data set.
        settings: the run's settings.
    """

    def __init__(self, state: TrainingState, data: DataSet, settings: Settings) -> None:
        self.state, self.settings, self.data = state, settings, data
        self._forward: Callable[[Tensor], Tensor] = state.model
        if processes.count() > 1:
            self._forward = DistributedDataParallel(state.model)
        self._stream = "dropout" if processes.rank() == 0 else f"dropout/{processes.rank()}"
        # torch.manual_seed also formats a stack trace for CUDA, which takes 0.16 ms.
        on_cpu = data.device.type == "cpu"
        self._set_seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
        if mode := COMPILE_MODES.get(settings.execution.compile):
            # The last batch of an epoch is smaller. A graph per batch size is faster.
            self._forward = torch.compile(self._forward, mode=mode, dynamic=False)
        # Images, or the random draws from which `images` makes them (interface.DataSet).
        self.draws: Callable[[int, int], Iterator[Draw]] = data.train_batches
        self._images: Callable[[Tensor], Tensor] = lambda images: images
        if hasattr(data, "draws"):
            self.draws, self._images = data.draws, data.images

    def __call__(self, drawn: Tensor, labels: Tensor) -> None:
        """Run one step on a batch from `draws`."""
        state = self.state
        position = state.step % state.steps_per_epoch
        self._set_seed(seed_for(self.settings.seed, self._stream, state.step))
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
        (loss if processes.count() == 1 else self._weighted(loss, len(labels))).backward()
        optimizer.step()
        return loss.detach(), count_wrong(logits, labels)

    def _weighted(self, loss: Tensor, images: int) -> Tensor:
        """Weight the mean loss of this process's share of a batch by its number of images.

        Torch averages the gradients over processes, whose shares may differ by one image.
        """
        position = self.state.step % self.state.steps_per_epoch
        left = self.data.train_size - position * self.data.batch_size
        return loss * (images * processes.count() / min(self.data.batch_size, left))


def count_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of misclassified images, as a scalar on the device."""
    return (logits.detach().argmax(1) != labels).sum()


class CudaGraph:
    """Captures the GPU operations of a function, and replays them on the same memory."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # One stream for all, since the allocator reuses freed memory only on its stream.
        self._stream = torch.cuda.Stream()

    def warm_up(self, function: Callable[[], Results]) -> Results:
        """Run the function on the capture stream."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = function()
        current.wait_stream(self._stream)
        return results

    def record(self, function: Callable[[], Results]) -> Results:
        """Capture the function without running it; return the tensors for its results."""
        mode = "thread_local"  # other threads may use the GPU, for example pin memory
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode=mode):
            return function()

    def replay(self) -> None:
        """Launch the captured operations."""
        self._graph.replay()


class GraphedStep(Step):
    """A step that is captured once as a CUDA graph and then replayed.

    The graph includes image augmentation, the forward and backward pass, and the update; it reads
    the learning rate from the device. The first steps and an epoch's last, smaller batch run
    without the graph. A new optimizer is captured again. Restore the state before constructing
    this step: the graph keeps the memory addresses of the captured tensors.
    """

    def __init__(
        self,
        state: TrainingState,
        data: DataSet,
        settings: Settings,
        new_graph: Callable[[], CudaGraph] = CudaGraph,
    ) -> None:
        super().__init__(state, data, settings)
        self._new_graph = new_graph
        self._begin()

    def _begin(self) -> None:
        self._optimizer = self.state.optimizer
        make_capturable(self._optimizer, self.data.device)
        self._graph = self._new_graph()
        self._warm = 0
        self._inputs: tuple[Tensor, Tensor] | None = None

    def _update(self, drawn: Tensor, labels: Tensor) -> Results:
        optimizer = self.state.optimizer
        if optimizer is not self._optimizer:
            self._begin()
        is_full = len(labels) == self.data.batch_size
        if not is_full or self._warm < WARM_UP:
            self._warm += is_full
            return self._graph.warm_up(lambda: self._launch(drawn, labels, optimizer))
        if self._inputs is None:
            self._inputs = drawn.clone(), labels.clone()
            self._results = self._capture(*self._inputs, base_optimizer(optimizer))
        for captured, new in zip(self._inputs, (drawn, labels), strict=True):
            captured.copy_(new)
        self._graph.replay()
        after_replay(optimizer)
        return self._results

    def _capture(self, drawn: Tensor, labels: Tensor, optimizer: Optimizer) -> Results:
        try:
            return self._graph.record(lambda: self._launch(drawn, labels, optimizer))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause: BaseException = error  # torch's last error only refers to the first error
            while cause.__context__ is not None:
                cause = cause.__context__
            raise UserError(
                f"execution.graph=true: a step of model={self.settings.model['_target_']} with "
                f"optimizer={self.settings.optimizer['_target_']} cannot be captured: "
                f"{' '.join(str(cause).split())}; choices: false"
            ) from error


def new_step(state: TrainingState, data: DataSet, settings: Settings) -> Step:
    """Return the step for `execution.graph`."""
    kind = GraphedStep if settings.execution.graph else Step
    return kind(state, data, settings)
