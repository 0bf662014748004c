"""Recomputation of BatchNorm statistics."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from reference import recompute
from torch import nn

from phaseavg.averaging import recompute_batchnorm


class Failing(nn.Module):
    """Identity that raises at the second call."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2:
            raise ArithmeticError("in mid-pass")
        return x


def make_batches(*sizes, shape=(3,), seed=0):
    random = np.random.default_rng(seed)
    scale = random.uniform(0.5, 2, shape[:1])  # batches that differ in mean and spread
    return [
        torch.from_numpy(
            random.normal(k, 1 + k, (size, *shape)) * scale.reshape(-1, *[1] * (len(shape) - 1))
        )
        for k, size in enumerate(sizes)
    ]


def two_layers():
    """Return BatchNorm, linear, BatchNorm in float64, with random parameters and statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    with torch.no_grad():
        for tensor in (*model[0].parameters(), *model[0].buffers(), *model[2].buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(1, 2)
    return model


def mixed_model():
    """Return a model with modules in different modes and BatchNorms with different momenta."""
    model = nn.Sequential(
        nn.BatchNorm1d(3),
        nn.Dropout(0.5),
        nn.Linear(3, 3),
        nn.BatchNorm1d(3, momentum=None),
        nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.ReLU()),
    ).double()
    model[3].eval()
    model[4].eval()
    model[4][0].train()
    return model


def modes_and_momenta(model):
    return [(module.training, getattr(module, "momentum", "none")) for module in model.modules()]


def assert_same_state(model, state):
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_statistics_are_batch_means_weighted_by_batch_size():
    model, expected, batches = two_layers(), two_layers(), make_batches(7, 7, 3)
    recompute_batchnorm(model, batches)
    recompute(expected, [(batch, None) for batch in batches])
    for one, other in zip(model.buffers(), expected.buffers(), strict=True):
        if one.ndim:
            np.testing.assert_allclose(one, other, rtol=1e-12)
        else:
            assert one == 3  # num_batches_tracked


def test_image_statistics_cover_all_pixels_and_ignore_empty_batches():
    sizes = [5, 2]
    batches = make_batches(*sizes, shape=(3, 4, 4))
    layer = nn.BatchNorm2d(3, affine=False).double()
    recompute_batchnorm(layer, [torch.empty(0, 3, 4, 4).double(), *batches])
    pixels = [batch.movedim(1, -1).reshape(-1, 3).numpy() for batch in batches]
    mean = np.average([x.mean(0) for x in pixels], axis=0, weights=sizes)
    variance = np.average([x.var(0, ddof=1) for x in pixels], axis=0, weights=sizes)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, variance, rtol=1e-12)


@pytest.mark.parametrize("value", [5.0, float("inf"), float("nan")])
def test_old_statistics_do_not_matter(value):
    batches = make_batches(4, 3)
    used, fresh = two_layers(), two_layers()
    for layer in (used[0], used[2]):  # as after a training that diverged
        layer.running_mean.fill_(value)
        layer.running_var.fill_(value)
        layer.num_batches_tracked.fill_(99)
    for layer in (fresh[0], fresh[2]):
        layer.reset_running_stats()
    recompute_batchnorm(used, batches)
    recompute_batchnorm(fresh, batches)
    assert_same_state(used, fresh.state_dict())


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_random_state_modes_and_momenta_are_restored(train, fails):
    model = mixed_model() if train else mixed_model().eval()
    if fails:
        model.append(Failing())
    before = modes_and_momenta(model)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    # The batches consume the global random state, as loaders of torch do.
    with pytest.raises(ArithmeticError) if fails else nullcontext():
        recompute_batchnorm(model, (torch.randn(5, 3).double() for _ in range(3)))
    assert torch.equal(torch.get_rng_state(), state)
    assert modes_and_momenta(model) == before


def test_dropout_is_off_for_a_model_in_train_mode():
    layer = nn.BatchNorm1d(3).double()
    model = nn.Sequential(nn.Dropout(0.5), layer).train()
    (batch,) = make_batches(50)
    recompute_batchnorm(model, [batch])
    np.testing.assert_allclose(layer.running_mean, batch.mean(0), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, batch.var(0), rtol=1e-12)


def test_parameters_and_gradients_are_unchanged():
    model = two_layers()
    before = copy.deepcopy(list(model.parameters()))
    graphs = []
    model.register_forward_hook(lambda *args: graphs.append(args[-1].grad_fn))
    recompute_batchnorm(model, make_batches(4, 4))
    assert graphs == [None, None]  # a graph of activations would only cost memory
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("wrap", "wrap_batch"),
    [
        (nn.DataParallel, lambda x: (x, torch.zeros(len(x)))),
        (torch.compile, lambda x: [x, torch.zeros(len(x)), "more"]),
    ],
)
def test_wrapped_models_and_sequences_that_start_with_a_tensor_are_accepted(wrap, wrap_batch):
    batches = make_batches(4, 3)
    plain, wrapped = two_layers(), two_layers()
    recompute_batchnorm(plain, batches)
    recompute_batchnorm(wrap(wrapped), map(wrap_batch, batches))
    assert_same_state(wrapped, plain.state_dict())


OTHER = "neither a tensor nor a sequence .* pass forward=lambda"


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "batches: at least one"),
        ([torch.empty(0, 3).double()], ValueError, "batches: at least one"),
        ([*make_batches(4), {"left": torch.zeros(3)}], TypeError, OTHER),
        ([*make_batches(4), []], TypeError, OTHER),
        ([*make_batches(4), ("no", torch.zeros(3))], TypeError, OTHER),
    ],
)
def test_missing_or_invalid_batches_raise_and_change_nothing(batches, error, message):
    model = two_layers()
    before, modes = copy.deepcopy(model.state_dict()), modes_and_momenta(model)
    with pytest.raises(error, match=message):
        recompute_batchnorm(model, batches)
    assert_same_state(model, before)
    assert modes_and_momenta(model) == modes


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.BatchNorm1d(3, track_running_stats=False)])
def test_batches_are_not_read_for_a_model_without_statistics(layer):
    model = nn.Sequential(nn.Linear(3, 3), layer)
    read = []
    recompute_batchnorm(model, (read.append(k) for k in range(3)))
    assert read == []


def test_a_long_half_precision_pass_is_accurate_to_buffer_precision():
    # Running averages in bfloat16 would stop moving once an update is below half a digit.
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(3).to(torch.bfloat16)
    batches = [batch.to(torch.bfloat16) for batch in make_batches(*[16] * 400)]
    for k, batch in enumerate(batches):
        batch.copy_(torch.randn(16, 3) * 2 + 1 + k / 400)
    recompute_batchnorm(layer, batches)
    mean = np.mean([batch.double().mean(0).numpy() for batch in batches], axis=0)
    variance = np.mean([batch.double().var(0).numpy() for batch in batches], axis=0)
    np.testing.assert_allclose(layer.running_mean.double(), mean, rtol=2**-8)
    np.testing.assert_allclose(layer.running_var.double(), variance, rtol=2**-8)


def test_frozen_layers_keep_their_statistics():
    model = two_layers().train()
    model[0].eval()
    before = copy.deepcopy(model[0].state_dict())
    recompute_batchnorm(model, make_batches(6, 5))
    assert_same_state(model[0], before)
    assert model[2].num_batches_tracked == 2
    model.eval()  # then nothing says that it is frozen
    recompute_batchnorm(model, make_batches(6, 5))
    assert model[0].num_batches_tracked == 2


def test_forward_handles_batches_of_any_type():
    left, right = make_batches(4, 3), make_batches(4, 3, seed=1)
    model, plain = (nn.BatchNorm1d(3).double() for _ in range(2))
    batches = [{"left": x, "right": y} for x, y in zip(left, right, strict=True)]
    recompute_batchnorm(model, batches, lambda norm, b: norm(input=b["left"] + b["right"]))
    recompute_batchnorm(plain, [x + y for x, y in zip(left, right, strict=True)])
    assert_same_state(model, plain.state_dict())


def test_an_unused_layer_keeps_its_statistics_and_a_shared_layer_counts_each_call():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()

        def forward(self, x):
            return self.used(x), self.used(2 * x)

    model = Net()
    model.unused.running_mean.fill_(5)
    batches = make_batches(4, 2)
    with pytest.warns(UserWarning, match="keep their statistics: unused; .* pass forward="):
        recompute_batchnorm(model, batches)
    assert model.unused.running_mean.tolist() == [5, 5, 5]
    expected = 1.5 * torch.cat(batches).mean(0)
    np.testing.assert_allclose(model.used.running_mean, expected, rtol=1e-12)


def test_a_lazy_layer_that_was_never_called_changes_nothing():
    model, plain = two_layers(), two_layers()
    model.unused = nn.LazyBatchNorm1d(affine=False)
    model.forward = lambda x: nn.Sequential.forward(model[:3], x)
    batches = make_batches(4, 3)
    recompute_batchnorm(model, batches)
    recompute_batchnorm(plain, batches)
    assert_same_state(model[:3], plain.state_dict())


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_layers_of_torchscript_are_rejected():
    model = two_layers()
    with pytest.raises(TypeError, match="TorchScript's; pass the model that was scripted"):
        recompute_batchnorm(nn.Sequential(torch.jit.script(model)), make_batches(4))


def test_instance_norms_with_running_statistics_are_recomputed():
    layer = nn.InstanceNorm2d(3, track_running_stats=True).double()
    batches = make_batches(5, 2, shape=(3, 4, 4))
    recompute_batchnorm(layer, batches)
    images = torch.cat(batches).flatten(2)
    np.testing.assert_allclose(layer.running_mean, images.mean(2).mean(0), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, images.var(2).mean(0), rtol=1e-12)


def test_statistics_of_a_network_in_half_precision_stay_finite():
    """256 images with a variance of 400 give sums above 65,504."""
    layer = nn.BatchNorm1d(1).half()
    images = 20 * torch.randn(256, 1)
    recompute_batchnorm(layer, [images.half()])
    assert layer.running_var.item() == pytest.approx(images.var().item(), rel=1e-3)


def test_a_synchronised_layer_keeps_what_a_subclass_adds():
    """As timm's SyncBatchNormAct, which includes the activation."""

    class Activated(nn.SyncBatchNorm):
        def forward(self, inputs):
            return super().forward(inputs).relu()

    model = nn.Sequential(Activated(3), nn.BatchNorm1d(3)).double()
    expected = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3)).double()
    batches = [torch.randn(5, 3, dtype=torch.float64)]
    for one in (model, expected):
        recompute_batchnorm(one, batches)
    assert torch.equal(model[1].running_mean, expected[2].running_mean)
    assert torch.equal(model[1].running_var, expected[2].running_var)


def test_synchronised_layers_use_their_own_batches(tmp_path):
    """Without this they would wait for the batches of other processes, and need a GPU."""
    expected, model = two_layers(), nn.SyncBatchNorm.convert_sync_batchnorm(two_layers())
    batches = make_batches(6, 5)
    recompute_batchnorm(expected, batches)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        with pytest.raises(ValueError, match="GPU"):
            model.train()(batches[0])
        recompute_batchnorm(model, batches)
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(model.buffers(), expected.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_layer_whose_train_keeps_it_in_eval_mode_is_frozen():
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    model = nn.Sequential(nn.BatchNorm1d(2), Frozen(2))
    model[1].running_mean.fill_(0.3)
    with pytest.warns(UserWarning, match="statistics: 1;"):
        recompute_batchnorm(model.eval(), [torch.randn(4, 2)])
    assert torch.equal(model[1].running_mean, torch.full((2,), 0.3))
