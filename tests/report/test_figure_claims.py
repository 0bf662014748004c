"""The figure of the differences behind the claims, compared with hand-computed values."""

from pathlib import Path

import pandas as pd
import pytest
from made_records import rows, study_of

from phaseavg.report.figures import write
from phaseavg.report.figures.claims import draw, effects, figure

OURS = {0: 25.0, 1: 25.5, 2: 25.2}
SGD = {0: 26.0, 1: 26.0, 2: 26.0}


@pytest.fixture
def frame() -> pd.DataFrame:
    """Return 80-40-40 of Table 1b for two networks: three seeds and one seed."""
    return rows(
        *(("t1b", "cifar100", "cnn13", "80-40-40-ours", s, error) for s, error in OURS.items()),
        *(("t1b", "cifar100", "cnn13", "80-40-40-sgd", s, error) for s, error in SGD.items()),
        ("t1b", "cifar100", "resnet34", "80-40-40-ours", 0, 20.0),
        ("t1b", "cifar100", "resnet34", "80-40-40-sgd", 0, 21.0),
    )


def test_differences_need_two_seeds_and_include_the_papers(frame: pd.DataFrame) -> None:
    data = effects(study_of(frame))
    assert list(data["pair"]) == ["80-40-40: ours − SGD", "80-40-40: ours − SGD after a BN pass"]
    first = data.iloc[0]
    assert (first["dataset"], first["model"]) == ("cifar100", "cnn13")
    assert first["claim"].startswith("C3: ")
    assert first["values"] == pytest.approx([-1.0, -0.5, -0.8])
    assert first["paper"] == pytest.approx(26.05 - 26.52)
    assert pd.isna(data.iloc[1]["paper"])  # not published after a pass
    study = study_of(frame)
    study.request.common.append("model.width=0.1")
    assert effects(study)["paper"].isna().all()


def test_the_figure_shows_seeds_mean_interval_and_the_papers_value(
    frame: pd.DataFrame,
) -> None:
    data = effects(study_of(frame)).iloc[:1]
    (axes,) = figure(data, "a title").axes
    interval, mean, seeds, paper, _ = axes.lines
    # Mean −0.7667, standard deviation 0.2517 times 4.3027 / √3.
    assert interval.get_xdata() == pytest.approx([-0.76667 - 0.62517, -0.76667 + 0.62517], abs=1e-4)
    assert mean.get_xdata() == pytest.approx([-0.76667], abs=1e-5)
    assert list(seeds.get_xdata()) == pytest.approx([-1.0, -0.5, -0.8])
    assert paper.get_xdata() == pytest.approx([-0.47])


def test_the_numbers_are_written_with_the_figure(frame: pd.DataFrame, tmp_path: Path) -> None:
    files = write("claims", draw(study_of(frame)), tmp_path)
    assert [path.name for path in files] == ["claims.svg", "claims.png", "claims.csv"]
    numbers = pd.read_csv(files[-1])
    assert list(numbers["difference"][:3]) == pytest.approx([-1.0, -0.5, -0.8])
    _, numbers = draw(study_of(frame[frame["seed"] == 0]))
    assert numbers.empty
