"""Averages of saved weights, against numpy and against averages made during training."""

import json
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Compose, Prompt, assert_one_line, history_of, weights_of
from safetensors import safe_open

from phaseavg.errors import UserError
from phaseavg.training import posthoc
from phaseavg.training.weight_files import find_weights, open_weights

EPOCHS = 4
PHASES = (f"schedule.epochs=[2,{EPOCHS}]", "schedule.factors=[1,0.5]")
BATCHNORM = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")


def states(count: int = 3) -> list[dict[str, torch.Tensor]]:
    """Return random state dicts, with BatchNorm statistics, an integer and half precision."""
    return [
        {
            "layer.weight": torch.randn(3, 5),
            "scale": torch.randn(()),
            "half": torch.randn(300, 300).bfloat16(),
            "bn.running_mean": torch.randn(4),
            "bn.running_var": torch.rand(4),
            "bn.num_batches_tracked": torch.tensor(seed),
            "complex": torch.randn(4, dtype=torch.complex64),
            "mask": torch.tensor([0.0, -torch.inf]),
            "int8": torch.arange(6, dtype=torch.int8).view(2, 3).t(),
        }
        for seed in range(count)
    ]


def contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in state.items()}


def write_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(contiguous(state), path.with_suffix(".safetensors"))


def write_checkpoint(path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"state_dict": state, "epoch": 3}, path.with_suffix(".ckpt"))


def write_shards(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.mkdir()
    shards = {"a.safetensors": list(state)[:2], "b.safetensors": list(state)[2:]}
    for shard, names in shards.items():
        part = contiguous({name: state[name] for name in names})
        safetensors.torch.save_file(part, path / shard)
    owners = {name: shard for shard, names in shards.items() for name in names}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owners}))


def write_state_dict(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def write_timm(path: Path, state: dict[str, torch.Tensor]) -> None:
    content = {"state_dict": state, "args": Namespace(lr=0.1), "optimizer": {"lr": 0.1}}
    torch.save(content, f"{path}.pth.tar")


def write_legacy(path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, path.with_suffix(".pth"), _use_new_zipfile_serialization=False)


def write_hugging_face(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.mkdir()
    safetensors.torch.save_file(contiguous(state), path / "model.safetensors")


WRITERS = [
    *(write_safetensors, write_checkpoint, write_shards, write_state_dict, write_hugging_face),
    *(write_timm, write_legacy),
]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["checkpoint-10.pth", "checkpoint-9.pth", "last.pth", "model_best.pth"], [1, 0]),
        (["epoch=0-step=5.ckpt", "epoch=1-step=10.ckpt", "last.ckpt"], [0, 1]),
        (["first.pt", "second.pt"], [0, 1]),
        (["checkpoint-5", "checkpoint-15", "", "training_args.bin"], [0, 1]),
        (["checkpoint-5", "checkpoint-15", "best", "final"], [0, 1]),
        (["last-v1.ckpt", "epoch=1.ckpt", "epoch=0.ckpt", "recovery-10-3.ckpt"], [2, 1]),
        (["net50_e10.pth", "net50_e2.pth", "net50_best.pth", "net50_Last.pth"], [1, 0]),
        (["best-1.pt", "best-2.pt"], [0, 1]),
        (["²1.pt", "²2.pt"], [0, 1]),
    ],
)
def test_last_and_best_copies_of_a_checkpoint_are_left_out(
    tmp_path: Path, names: list[str], found: list[int]
) -> None:
    for name in names:
        path = tmp_path / name
        path = path if path.suffix else path / "model.safetensors"  # "": the output folder itself
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert find_weights([tmp_path]) == [tmp_path / names[number] for number in found]


@pytest.mark.parametrize("write", WRITERS)
def test_averages_of_files_match_numpy_in_every_format(
    tmp_path: Path, write: Callable[[Path, dict[str, torch.Tensor]], object]
) -> None:
    saved = states(12)
    for number, state in enumerate(saved):
        write(tmp_path / f"checkpoint-{number}", state)
    paths = find_weights([tmp_path])
    assert [int(path.name.split("-")[1].split(".")[0]) for path in paths] == list(range(12))
    files = [open_weights(path) for path in paths]
    names = ("uniform", "last=2", "blend=0.3")
    alphas = [posthoc.coefficients_of(name, files, None) for name in names]
    averages = posthoc.average_files(files, alphas)
    for alpha, average in zip(alphas, averages, strict=True):
        assert average.keys() == saved[0].keys()
        for name in ("layer.weight", "scale", "complex"):
            stacked = np.stack([state[name].numpy() for state in saved])
            assert average[name].dtype == saved[0][name].dtype
            expected = np.tensordot(alpha, stacked, 1)
            np.testing.assert_allclose(average[name], expected, rtol=1e-6, atol=1e-7)
        halves = torch.stack([state["half"].double() for state in saved])
        wanted = torch.tensordot(torch.tensor(alpha, dtype=torch.float64), halves, 1)
        assert torch.equal(average["half"], wanted.bfloat16())
        for name in (*BATCHNORM, "int8", "mask"):
            assert torch.equal(average[name], saved[-1][name])
        path = tmp_path / "average.safetensors"
        posthoc.write_average(path, average, {})
        (tmp_path / "plain").touch()
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
        with pytest.raises(UserError, match=r"cannot write average\.safetensors"):
            posthoc.write_average(path, {"a": average["complex"].to(torch.complex128)}, {})


@pytest.mark.parametrize(
    ("spec", "overrides"),
    [
        ("exponential=0.8", ["averaging.weights.gamma0=0.8"]),
        ("uniform", ["averaging/weights=uniform"]),
        ("tail=0.5", ["averaging/weights=tail", "averaging.weights.fraction=0.5"]),
        ("half_life=0.3", ["averaging/weights=half_life", "averaging.weights.fraction=0.3"]),
        ("from_decay=cosine", ["averaging/weights=from_decay", "averaging.weights.curve=cosine"]),
        ("power=3", ["averaging/weights=power", "averaging.weights.gamma=3"]),
        ("blend=0.25", ["averaging/weights=blend", "averaging.weights.amount=0.25"]),
        ("rna=1e-2", ["averaging/weights=rna", "averaging.weights.rho=1e-2"]),
        ("bema", ["averaging/weights=bema"]),
    ],
)
def test_an_average_of_a_runs_weights_is_the_one_made_during_training(
    trained: Compose, script: Prompt, tmp_path: Path, spec: str, overrides: list[str]
) -> None:
    plain = trained(*PHASES, "averaging=none", "save_trajectory=epochs")
    averaged = trained(*PHASES, "averaging=end", "averaging.window=phase", *overrides)
    arguments = (plain.run_folder, "--average", spec, "--output", ".", "--figure")
    assert script("average", *arguments)[0] == 0
    (path,) = tmp_path.glob("*.safetensors")
    expected = weights_of(averaged)
    with safe_open(path, "pt") as file:
        texts = file.metadata()
        assert texts.pop("format") == "pt"
        metadata = {name: json.loads(text) for name, text in texts.items()}
        for name, tensor in expected.items():
            torch.testing.assert_close(file.get_tensor(name), tensor, rtol=1e-5, atol=1e-6)
    assert metadata["average"] == spec
    assert metadata["files"] == [f"step-{8 * epoch:09d}.pt" for epoch in range(2, 7)]
    recorded = history_of(averaged)[-1]["average"]
    assert metadata["coefficients"][1:] == pytest.approx(recorded["coefficients"], rel=1e-9)
    table = (tmp_path / "averages.csv").read_text().splitlines()
    columns = dict(zip(table[0].split(","), table[1].split(","), strict=True))
    assert float(columns["test_error"]) == pytest.approx(recorded["error"], abs=100 / 797 + 1e-9)
    assert float(columns["test_loss"]) == pytest.approx(recorded["loss"], rel=1e-4)
    ages = [a * age for a, age in zip(recorded["coefficients"], (3, 2, 1, 0), strict=True)]
    assert float(columns["mean_age"]) - sum(ages) == pytest.approx(
        4 * metadata["coefficients"][0], abs=1e-9
    )


def test_a_first_phase_is_averaged_on_request(trained: Compose, script: Prompt) -> None:
    plain = trained(*PHASES, "averaging=none", "save_trajectory=epochs")
    assert script("average", plain.run_folder, "--phase", "1")[0] == 0
    with safe_open("averages/uniform.safetensors", "pt") as file:
        assert json.loads(file.metadata()["coefficients"]) == [0, 0.5, 0.5]


def test_the_start_of_a_phase_is_unknown_if_an_average_replaced_the_weights(
    trained: Compose, script: Prompt
) -> None:
    settings = trained(*PHASES, "averaging=phasewise", "save_trajectory=epochs")
    arguments = ("average", settings.run_folder, "--output", ".", "--average")
    status, _, err = script(*arguments, "bema")
    assert status == 2
    assert "--average=bema: the phase started from an average" in err
    assert script(*arguments, "uniform")[0] == 0
    with safe_open("uniform.safetensors", "pt") as file:
        assert json.loads(file.metadata()["coefficients"]) == pytest.approx([1 / EPOCHS] * EPOCHS)
    assert script(*arguments, "bema", "--phase", "1")[0] == 0


def test_power_averages_are_combined_into_another(script: Prompt, tmp_path: Path) -> None:
    paths = [write_state_dict(tmp_path / str(n), state) for n, state in enumerate(states(3))]
    stored = ("--stored", "10:7", "20:7", "20:17")
    status, out, _ = script("average", *paths, "--average", "power=17", *stored, "--output", "out")
    assert (status, "mean_age" in out) == (0, False)
    found = safetensors.torch.load_file("out/power-17.safetensors")
    # The third average is the wanted one.
    torch.testing.assert_close(found["layer.weight"], torch.load(paths[2])["layer.weight"])


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("executed"),)


TWO = ["a.pt", "a.pt"]
POWER = ["--average=power=3", "--stored"]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, ["nowhere"], "nowhere: no weights found; choices: files *.safetensors"),
        (None, ["."], "a.pt: the only file; an average needs two or more"),
        (None, [".", "--phase", "1"], ".: --figure and --phase need a run folder"),
        (None, [*TWO, "--average", "tali=1"], "--average=tali=1: unknown; choices: exponential"),
        (None, [*TWO, "--average", "tail=2"], "--average=tail=2: fraction=2.0 must be above 0"),
        (None, [*TWO, "--average", "tail=x"], "--average=tail=x: could not convert string"),
        (None, [*TWO, "--average", "last=9"], "must be between 1 and 2, the number of files"),
        (None, [*TWO, "--average", "rna=nan"], "rho=nan must be finite"),
        (None, [*TWO, "--average", "rna=-1"], "rho=-1.0 must be finite"),
        (None, [*TWO, "--average", "uniform=3"], "--average=uniform=3: takes no value"),
        (None, [*TWO, "--output", "/proc/nowhere"], "--output=/proc/nowhere: cannot write"),
        (None, [*TWO, "--stored", "1:2"], "--stored: 1 values for 2 files"),
        (None, [*TWO, "--average", "uniform="], "--average=uniform=: takes no value"),
        (None, [*TWO, "--average", "tail="], "--average=tail=: has no value"),
        (None, [*TWO, "--stored", "1:2", "2:2"], "--stored: needs --average power=γ, not last"),
        (None, [*TWO, *POWER, "1-2", "2:2"], "--stored 1-2 2:2: must be T:GAMMA for each file"),
        (None, [*TWO, *POWER, "1:2", "1:2"], "average power=3: two stored averages have the same"),
        (None, [*TWO, *POWER, "1:1e308", "2:2"], "average power=3: a gamma is too large"),
        (None, [*TWO, "--output", "."], "--output=.: contains the weights; choose another"),
        (None, ["in/a.pt", "in/a.pt", "--output", "in"], "--output=in: contains the weights"),
        ({"layer.weight": torch.ones(2)}, ["."], "file 1 of 2: bn.num_batches_tracked is missing"),
        (b"PK\3\4" + bytes(96), ["."], "b.pt: no readable weights"),
        (states(1)[0] | {"scale": torch.tensor(1j)}, ["."], "1 of 2: scale is missing, or has"),
        ({"weight": torch.tensor([torch.inf])}, ["b.pt", "b.pt", "--average=rna"], "not finite"),
        ({"epoch": 3}, ["."], "b.pt: epoch: must be a name with a dense tensor; save"),
        ({"weight": torch.ones(2).to_sparse()}, ["."], "b.pt: weight: must be a name with a dense"),
        ({"a": Malicious()}, ["."], "b.pt: contains a "),
        (pickle.dumps({"a": Malicious()}, protocol=2), ["."], "b.pt: contains a "),
        (b"version https://git-lfs.github.com/spec/v1\n", ["."], "b.pt: is not a file of torch"),
        (None, ["a.pt", "in/b"], "b: no readable weights (KeyError: 'weight_map')"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    script: Prompt,
    tmp_path: Path,
    content: bytes | dict[str, Any] | None,
    arguments: list[str],
    message: str,
) -> None:
    """In a folder with a.pt and, of some content, b.pt; others are below `in`."""
    write_state_dict(tmp_path / "a", states(1)[0])
    if isinstance(content, bytes):
        (tmp_path / "b.pt").write_bytes(content)
    elif content:
        torch.save(content, tmp_path / "b.pt")
    (tmp_path / "in/b").mkdir(parents=True)
    (tmp_path / "in/a.pt").symlink_to(tmp_path / "a.pt")
    (tmp_path / "in/b/model.safetensors.index.json").write_text("{}")
    before = set(tmp_path.iterdir())
    assert_one_line(script("average", *arguments), message, "average.py")
    assert set(tmp_path.iterdir()) == before


def test_a_run_without_its_trajectory_says_how_to_train_it(
    trained: Compose, script: Prompt
) -> None:
    settings = trained(*PHASES, "averaging=none")
    for phase, message in (("1", "train the phase to its end with save"), ("9", "--phase=9: must")):
        output = script("average", settings.run_folder, "--phase", phase)
        assert_one_line(output, message, "average.py")
