"""Figures 1 to 3: every number is compared with an independent computation."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, Prompt, history_of

import train
from phaseavg.averaging import recompute_batchnorm
from phaseavg.errors import UserError
from phaseavg.report.figures import FIGURES, Inputs, RunFigure, fig1, fig2, fig3, losses, write
from phaseavg.report.figures.trajectory import TrajectoryRun, compose_run
from phaseavg.training.execution import prepare
from phaseavg.training.parts import load_data, new_model
from phaseavg.training.trajectory import read_weights_after

STEPS, PHASES = 8, ((1, 5), (6, 8), (9, 9))
SHORT = ("schedule.epochs=[5,3,1]", "evaluation.batchnorm_every=1", "save_trajectory=steps")


def described(folder: Path, *more: str) -> TrajectoryRun:
    where = (f"runs_dir={folder}", f"records_dir={folder}")
    return compose_run([*TINY, *SHORT, *where, *more], ())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryRun:
    """Return a trained run with all snapshots."""
    found = described(tmp_path_factory.mktemp("runs"))
    train.run(found.settings)
    return found


RUN_FIGURES = {name: figure for name, figure in FIGURES.items() if isinstance(figure, RunFigure)}


def numbers(name: str, run: TrajectoryRun, folder: Path) -> pd.DataFrame:
    """Return the numbers of a figure; measure missing points."""
    return RUN_FIGURES[name].numbers(run, folder / f"{name}-{run.name}.csv")


def written(name: str, run: TrajectoryRun, folder: Path) -> list[Path]:
    """Draw a figure of a run and write it."""
    drawn = RUN_FIGURES[name].draw(numbers(name, run, folder))
    return write(f"{name}-{run.name}", drawn, folder)


def recorded_by(run: TrajectoryRun) -> pd.DataFrame:
    return pd.json_normalize(history_of(run.settings))


def last_weights(run: TrajectoryRun, epoch: int) -> np.ndarray:
    state = read_weights_after(run.weights_folder, epoch * STEPS)
    (name,) = [n for n, t in state.items() if n.endswith(".weight") and t.ndim == 2]
    return state[name].double().numpy().ravel()


def test_principal_components_match_the_covariance(run: TrajectoryRun, tmp_path: Path) -> None:
    found = numbers("fig1", run, tmp_path)
    for first, last in PHASES[:2]:
        weights = np.stack([last_weights(run, epoch) for epoch in range(first, last + 1)])
        centred = weights - weights.mean(0)
        values, vectors = np.linalg.eigh(centred @ centred.T)  # Gram matrix
        rows = found[found["epoch"].between(first, last)]
        for number in (1, 2):
            own = rows[f"pc{number}"].to_numpy()
            expected = vectors[:, -number] * np.sqrt(values[-number])
            sign = np.sign(own @ expected)  # arbitrary
            np.testing.assert_allclose(own, sign * expected, rtol=1e-9, atol=1e-12)
            share = values[-number] / values.sum()
            np.testing.assert_allclose(rows[f"pc{number}_share"], share, rtol=1e-9)


def test_delays_are_distances_within_the_phase(run: TrajectoryRun, tmp_path: Path) -> None:
    found = numbers("fig1", run, tmp_path).set_index("epoch")
    for first, last in PHASES[:2]:
        for epoch in range(first, last + 1):
            now = last_weights(run, epoch)
            before = np.sqrt(((now - last_weights(run, epoch - 1)) ** 2).sum())
            assert found.loc[epoch, "delay1"] == pytest.approx(before, rel=1e-12)
            if epoch == first:  # the epoch t − 2 is in another phase
                assert np.isnan(found.loc[epoch, "delay2"])
            else:
                earlier = np.sqrt(((now - last_weights(run, epoch - 2)) ** 2).sum())
                assert found.loc[epoch, "delay2"] == pytest.approx(earlier, rel=1e-12)


def test_losses_match_the_record(run: TrajectoryRun, tmp_path: Path) -> None:
    data = numbers("fig1", run, tmp_path)
    recorded = recorded_by(run)
    columns = {"train_loss": "train.loss", "test_loss": "weights.loss", "phase": "phase"}
    for column, key in columns.items():
        assert data[column].tolist() == recorded[key].tolist()
    assert data["pc1"].notna().tolist() == [True] * 8 + [False]  # one epoch has no plane
    picture, _ = fig1.draw(data)
    assert picture.axes[0].lines[0].get_ydata().tolist() == recorded["train.loss"].tolist()


def test_losses_at_segment_ends_match_the_record(run: TrajectoryRun, tmp_path: Path) -> None:
    found = numbers("fig2", run, tmp_path)
    recorded = recorded_by(run).set_index("step")["bn.loss"]
    ends = found[found["fraction"].isin((0.0, 1.0))]
    steps = ends["second"].tolist()
    assert steps == [STEPS * epoch for epoch in (1, 2, 4, 5)]  # quarters of 5, rounded
    assert ends["test_loss"].tolist() == recorded.loc[steps].tolist()  # bit by bit
    picture, _ = fig2.draw(found)
    (line, _), _ = (axes.lines for axes in picture.axes)
    assert line.get_xdata().tolist() == pytest.approx(np.linspace(0, 3, 31))
    assert line.get_ydata().tolist() == found["train_loss"].tolist()


def test_anchors_and_intervals_match_the_paper(tmp_path: Path) -> None:
    phase = described(tmp_path, "schedule.epochs=[80]", "schedule.factors=[1]").schedule.phases[0]
    assert fig2.anchors(phase) == [1, 20, 40, 60, 80]
    points = fig2.choose_points(phase, 391)
    assert len(points) == len(set(points)) == 41
    found = [(point.second - point.first) / 391 for point in fig3.choose_points(phase, 391)]
    epochs = [1, 2, 4, 8, 16, 32, 64, 79]
    assert found == [0, *(n / 391 for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)), *epochs]


def test_the_interval_of_one_epoch_is_the_average_of_two(
    run: TrajectoryRun, tmp_path: Path
) -> None:
    found = numbers("fig3", run, tmp_path)
    assert found["interval_epochs"].tolist() == [0, 1 / 8, 2 / 8, 4 / 8, 1, 2, 4]
    row = found[found["interval_epochs"] == 1].iloc[0]
    assert (row["first"], row["second"], row["fraction"]) == (32, 40, 0.5)
    recorded = recorded_by(run)
    alone = recorded.loc[recorded["epoch"] == 5, "bn.loss"].item()
    assert found["test_loss"].iloc[0] == alone


def count_measured(monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> list[Any]:
    """Return a list of the measured points; interrupt after `most` points."""
    taken: list[Any] = []
    weights = losses.Point.weights

    def counted(point: losses.Point, folder: Path) -> Any:
        if len(taken) == most:
            raise KeyboardInterrupt
        taken.append(point)
        return weights(point, folder)

    monkeypatch.setattr(losses.Point, "weights", counted)
    return taken


def test_interrupted_measurements_resume(
    run: TrajectoryRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        count_measured(patch, most=3)
        with pytest.raises(KeyboardInterrupt):
            numbers("fig3", run, tmp_path)
    rest = count_measured(monkeypatch)
    written("fig3", run, tmp_path)
    assert len(rest) == 4
    rest.clear()
    again = numbers("fig3", run, tmp_path)
    assert not rest
    whole = numbers("fig3", run, tmp_path / "anew")
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"))


@pytest.mark.slow
def test_without_the_run_saved_measurements_are_drawn(run: TrajectoryRun, tmp_path: Path) -> None:
    gone = described(tmp_path / "gone")
    shutil.copytree(run.settings.run_folder, gone.settings.run_folder)
    figures = tmp_path / "figures"
    for name in ("fig1", "fig3"):
        written(name, gone, figures)
    made = {path.name: path.read_bytes() for path in figures.iterdir()}
    assert len(made) == 6
    shutil.rmtree(gone.settings.run_folder)
    for name in ("fig1", "fig3"):
        written(name, described(tmp_path / "gone"), figures)
    assert {path.name: path.read_bytes() for path in figures.iterdir()} == made


@pytest.mark.parametrize("name", RUN_FIGURES)
def test_an_unfinished_run_is_drawn(
    name: str, run: TrajectoryRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = described(tmp_path)
    shutil.copytree(run.settings.run_folder, half.settings.run_folder)
    lines = (half.settings.run_folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half.settings.run_folder / "metrics.jsonl").write_text("".join(lines[:4]))
    (half.settings.run_folder / "result.json").unlink()
    for path in half.weights_folder.iterdir():
        if int(path.stem.partition("-")[2]) > 4 * STEPS:
            path.unlink()
    inputs = Inputs(half.overrides, tmp_path)
    if name == "fig1":
        ((full_name, (_, data)),) = RUN_FIGURES[name].drawings(name, inputs)
        assert full_name == "fig1-digits-cnn13_digits"
        assert data["pc1"].notna().tolist() == [True] * 4
        assert "4 of 9 epochs; run python train.py " in capsys.readouterr().out
    else:
        assert numbers(name, described(tmp_path), tmp_path).empty
        assert "snapshots are not in" in capsys.readouterr().out


def test_weights_of_the_last_layer_alone_count_as_missing(
    run: TrajectoryRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = described(tmp_path)
    shutil.copytree(run.settings.run_folder, other.settings.run_folder)
    path = other.settings.run_folder / "result.json"
    result = json.loads(path.read_text()) | {"save_trajectory": "last_layer"}
    path.write_text(json.dumps(result))
    assert numbers("fig3", other, tmp_path).empty
    assert "rerun=true" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fig1", "fig3"])
def test_a_figure_of_another_run_is_protected(
    name: str, run: TrajectoryRun, tmp_path: Path
) -> None:
    written(name, run, tmp_path)
    before = (tmp_path / f"{name}-{run.name}.csv").read_bytes()
    with pytest.raises(UserError, match=f"{name}-digits-cnn13_digits is from another run"):
        numbers(name, described(tmp_path / "none", "seed=7"), tmp_path)
    trained: list[Any] = []
    inputs = Inputs([*TINY, *SHORT, "seed=7", f"runs_dir={tmp_path}"], tmp_path, trained.append)
    with pytest.raises(UserError, match="is from another run"):
        list(RUN_FIGURES[name].drawings(name, inputs))
    assert not trained
    assert (tmp_path / f"{name}-{run.name}.csv").read_bytes() == before


def test_a_damaged_file_is_reported_and_not_overwritten(run: TrajectoryRun, tmp_path: Path) -> None:
    path = tmp_path / f"fig3-{run.name}.csv"
    for content in ("run_id,first\n", "\0", ""):
        path.write_text(content)
        with pytest.raises(UserError, match=r"fig3-.*csv: damaged; remove it"):
            numbers("fig3", run, tmp_path)
        assert path.read_text() == content


def test_points_with_changed_weights_are_measured_again(
    run: TrajectoryRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"fig3-{run.name}.csv"
    before = numbers("fig3", run, tmp_path)
    frame = pd.read_csv(path)
    frame.loc[2, ["weights", "test_loss"]] = ["1-2", 7.0]
    frame.to_csv(path, index=False)
    taken = count_measured(monkeypatch)
    after = numbers("fig3", run, tmp_path)
    assert len(taken) == 1
    assert after["test_loss"].tolist() == before["test_loss"].tolist()


def test_losses_halfway_match_the_recorded_average(tmp_path: Path) -> None:
    """The uniform average of two epochs is halfway between them."""
    two = ("schedule.epochs=[2]", "schedule.factors=[1]", "+averaging@observers.half=uniform")
    found = described(tmp_path, *two)
    train.run(found.settings)
    row = numbers("fig3", found, tmp_path).iloc[-1]
    assert row["interval_epochs"] == 1
    last = recorded_by(found).iloc[-1]
    assert row["test_loss"] == pytest.approx(last["observers.half.loss"], rel=1e-6)
    assert row["test_error"] == pytest.approx(last["observers.half.error"], abs=0.13)  # an image
    # Compute the training loss with a plain loop over the pass's images.
    settings, device = prepare(found.settings)
    data = load_data(settings, device)
    model = new_model(settings, data)
    model.load_state_dict(losses.Point(8, 16, 0.5).weights(found.weights_folder))
    recompute_batchnorm(model, data.batchnorm_batches(2))
    model.eval()
    total = 0.0
    with torch.no_grad():
        for images, labels in data.batchnorm_batches(2):
            logits = model(images).double()
            total -= logits.log_softmax(1)[range(len(labels)), labels].sum().item()
    assert row["train_loss"] == pytest.approx(total / data.train_size, rel=1e-6)
    assert row["train_loss"] != pytest.approx(row["test_loss"], rel=1e-5)


def test_run_defaults_match_the_paper(tmp_path: Path) -> None:
    def of(name: str, *overrides: str) -> TrajectoryRun:
        return compose_run(overrides, RUN_FIGURES[name].overrides)

    first, second = of("fig1"), of("fig2")
    assert first.name == second.name == "cifar100-wrn28_10"
    assert first.schedule.epochs == [80, 40, 40]
    assert second.schedule.epochs == [80]
    assert (first.settings.save_trajectory, second.settings.save_trajectory) == (
        "last_layer",
        "steps",
    )
    assert of("fig3").settings.run_id == second.settings.run_id
    assert first.settings.averaging["_target_"].endswith("NoAveraging")
    small = of("fig2", "scale=digits", "model=cnn13", "schedule=60-30-30")
    assert small.name == "cifar100-cnn13"
    assert small.schedule.epochs == [6, 3, 3]
    with pytest.raises(UserError, match="nosuch"):
        of("fig1", "model=nosuch")


def test_a_figure_that_cannot_be_drawn_does_not_stop_the_others(
    script: Prompt, tmp_path: Path
) -> None:
    status, _, err = script("figures", "fig4", "fig1", "fig6", "preset=demo", "averaging=none")
    assert status == 2
    assert "fig1-digits-cnn13_digits: no saved run" in err
    assert (tmp_path / "results/figures/demo/fig6.svg").exists()
    assert not (tmp_path / "results/figures/demo/fig1-digits-cnn13_digits.svg").exists()


@pytest.mark.slow
def test_the_script_trains_the_missing_run_and_draws_it(script: Prompt, tmp_path: Path) -> None:
    short = (*TINY, "schedule.epochs=[3]", "schedule.factors=[1]")
    status, out, err = script("figures", "fig1", "fig4", *short, "--train")
    assert (status, err) == (0, "")
    assert "epochs of" in out
    made = {path.name for path in (tmp_path / "results/figures/demo").iterdir()}
    kinds = ("csv", "png", "svg")
    names = ("fig1-digits-cnn13_digits", "fig4")
    assert made == {f"{name}.{kind}" for name in names for kind in kinds}
    (weights,) = (tmp_path / "runs/trajectories").glob("*/trajectory")
    assert len(list(weights.iterdir())) == 4
