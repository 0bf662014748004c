"""Saving the weights of a trajectory during training."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import victims as victim
from conftest import (
    TINY,
    Compose,
    Prompt,
    assert_same_weights,
    history_of,
    in_a_victim,
    untimed,
    weights_of,
)
from torch import nn

import train
from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.training.execution import pick_device
from phaseavg.training.parts import assemble, load_data, new_model
from phaseavg.training.trajectory import (
    TrajectoryWriter,
    read_last_weight,
    read_weights_after,
    weights_path,
    weights_to_save,
)

STEPS = 8  # per epoch of TINY, which has phases of 2, 2 and 1 epochs
ENDS = [STEPS * epoch for epoch in range(6)]


def folder_of(settings: Settings) -> Path:
    return settings.run_folder / "trajectory"


def saved_steps(settings: Settings) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in folder_of(settings).iterdir())


def test_the_weights_of_every_epoch_are_saved(
    trained: Compose,
) -> None:
    settings = trained("averaging=none", "save_trajectory=epochs")
    assert saved_steps(settings) == ENDS
    first = new_model(settings, load_data(settings, pick_device("cpu"))).state_dict()
    for step, expected in ((0, first), (ENDS[-1], weights_of(settings))):
        assert_same_weights(read_weights_after(folder_of(settings), step), expected)


def test_saving_weights_changes_nothing(trained: Compose) -> None:
    plain, keeping = trained("averaging=none"), trained("averaging=none", "save_trajectory=epochs")
    assert plain.run_id == keeping.run_id
    assert_same_weights(weights_of(plain), weights_of(keeping))
    assert untimed(history_of(plain)) == untimed(history_of(keeping))
    assert not folder_of(plain).exists()


def test_last_layer_saves_a_subset_of_the_weights(trained: Compose) -> None:
    alone = trained("averaging=none", "save_trajectory=last_layer")
    complete = trained("averaging=none", "save_trajectory=epochs")
    assert saved_steps(alone) == ENDS
    for step in ENDS:
        actual = read_weights_after(folder_of(alone), step)
        everything = read_weights_after(folder_of(complete), step)
        assert {name.rpartition(".")[2] for name in actual} == {"weight", "bias"}
        assert_same_weights(actual, {name: everything[name] for name in actual})
        weight = read_last_weight(folder_of(complete), step)
        assert weight.shape[0] == 10
        assert torch.equal(weight, read_last_weight(folder_of(alone), step))


def test_steps_saves_single_steps_before_phase_ends(trained: Compose) -> None:
    settings = trained("averaging=none", "save_trajectory=steps")
    before = [end - back for end in (16, 32, 40) for back in (1, 2, 4)]
    assert saved_steps(settings) == sorted([*ENDS, *before])


def test_weights_at_a_phase_end_are_saved_before_the_average_replaces_them(
    trained: Compose,
) -> None:
    plain = trained("averaging=none", "save_trajectory=epochs")
    averaged = trained("averaging=phasewise", "save_trajectory=epochs")
    end = 16  # the first phase's last step
    assert_same_weights(*(read_weights_after(folder_of(s), end) for s in (averaged, plain)))
    after = [read_weights_after(folder_of(s), end + STEPS) for s in (averaged, plain)]
    assert any(not torch.equal(after[0][name], tensor) for name, tensor in after[1].items())


def test_the_slow_weights_of_lookahead_are_saved(
    trained: Compose,
) -> None:
    settings = trained("averaging=none", "optimizer=lookahead", "save_trajectory=epochs")
    live = trained(
        "averaging=none", "optimizer=lookahead", "schedule.epochs=[2]", "schedule.factors=[1]"
    )
    saved = read_weights_after(folder_of(settings), 16)  # not a multiple of k = 5
    assert_same_weights(saved, weights_of(live))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "count"), [("stepped", 16), ("stepped", 12), ("replacing step", 2)]
)
def test_a_killed_run_ends_with_the_same_trajectory(
    event: str,
    count: int,
    victims: Any,
    trained: Compose,
    compose_settings: Compose,
) -> None:
    settings = compose_settings(*TINY, "averaging=none", "save_trajectory=steps")
    in_a_victim(victims, victim.train_and_die_at, settings, event, count)
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    expected = trained("averaging=none", "save_trajectory=steps")
    assert saved_steps(settings) == saved_steps(expected)
    for path in folder_of(expected).iterdir():
        assert (folder_of(settings) / path.name).read_bytes() == path.read_bytes()


def test_a_run_without_saved_weights_cannot_resume_with_a_trajectory(
    victims: Any, compose_settings: Compose
) -> None:
    settings = compose_settings(*TINY, "averaging=none")
    in_a_victim(victims, victim.train_and_die_at, settings, "stepped", 12)
    with pytest.raises(UserError, match=r"save_trajectory=epochs: .* step 0"):
        train.run(settings.model_copy(update={"save_trajectory": "epochs"}))


@pytest.mark.slow
def test_a_run_that_saves_its_trajectory_trains_all_epochs_itself(prompt: Prompt) -> None:
    here = (*TINY, "runs_dir=r", "records_dir=r")
    assert prompt("-m", *here, "averaging=none,phasewise")[0] == 0
    shutil.rmtree(next(Path("r").glob("*noaveraging*")))
    status, out, _ = prompt(*here, "averaging=none", "save_trajectory=last_layer")
    assert status == 0
    assert "from step 0;" in out
    assert len(list(Path("r").glob("*/trajectory/*"))) == len(ENDS)


@pytest.mark.slow
def test_a_finished_run_without_its_trajectory_is_reported(prompt: Prompt) -> None:
    here = (*TINY, "averaging=none", "runs_dir=r", "records_dir=r", "share=false")
    assert prompt(*here, "save_trajectory=last_layer")[0] == 0
    assert "finished before: " in prompt(*here, "save_trajectory=last_layer")[1]
    assert "without save_trajectory=epochs" in prompt(*here, "save_trajectory=epochs")[1]
    (result,) = Path("r").glob("*/result.json")
    result.write_text(result.read_text().replace('"last_layer"', '"steps"'))
    assert "finished before: " in prompt(*here, "save_trajectory=epochs")[1]
    shutil.rmtree(next(Path("r").glob("*/trajectory")))
    assert "without save_trajectory=last_layer" in prompt(*here, "save_trajectory=last_layer")[1]
    assert prompt(*here, "save_trajectory=epochs", "rerun=true")[0] == 0
    assert len(list(Path("r").glob("*/trajectory/*"))) == len(ENDS)


def test_weights_that_cannot_be_saved_or_read_are_rejected(
    compose_settings: Compose,
) -> None:
    convolution = nn.Conv2d(1, 10, 3)
    with pytest.raises(UserError, match="no linear layer"):
        weights_to_save(convolution, "last_layer")
    settings = compose_settings(*TINY, "save_trajectory=epochs")
    _, schedule, state = assemble(settings, torch.device("cpu"))
    state.model = convolution
    TrajectoryWriter(settings, schedule, state).begin()
    assert read_last_weight(folder_of(settings), 0) is None
    path = weights_path(folder_of(settings), 0)
    path.write_bytes(path.read_bytes()[:-8])
    for step in (0, 1):
        with pytest.raises(UserError, match="missing or damaged"):
            read_weights_after(folder_of(settings), step)
