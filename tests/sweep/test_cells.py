"""Cells of tables, and their selection."""

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd
import pytest
from conftest import REPOSITORY
from made_cells import CONF, NETWORKS, TABLES, request_for
from omegaconf import DictConfig

from phaseavg.errors import UserError
from phaseavg.report.cells import CELL, cell_key, read_paper
from phaseavg.sweep.cells import (
    Run,
    Table,
    cell_runs,
    read_table,
    study_name,
    table_cells,
    unique_runs,
)
from phaseavg.sweep.composing import Compose, cached, composing


@pytest.fixture
def composed() -> Iterator[Compose]:
    with composing(CONF) as (_, compose), cached(compose, [CONF]) as from_cache:
        yield from_cache


def test_the_294_published_cells_are_our_cells_one_to_one(composed) -> None:
    request = request_for(composed, f"table={','.join(TABLES)}")
    keys = [cell_key(cell) for cell in request.cells]
    published = pd.read_csv(REPOSITORY / "results/paper.csv", dtype=str)[CELL]
    assert len(keys) == len(set(keys)) == 294
    assert sorted(keys) == sorted(published.itertuples(index=False, name=None))
    assert Counter(cell.table for cell in request.cells) == {
        **{"t1a": 24, "t1b": 24, "t1c": 16, "t1d": 8},
        **{"t2": 90, "t3": 96, "t4": 36},
    }
    # Rows differ in nothing else, so what holds for the cells of one network holds for all.
    assert all(len(row) == 2 for table in request.tables.values() for row in table.rows)


READINGS = {  # columns of the tables beside the paper's, and the paper's with the same runs
    "phase-wise": ("t1c", "phase-wise"),
    "end-of-training": ("t1c", "at-the-end"),
    "learnt-1e-5": ("t1a", "learnt"),
    "lookahead-0.5": ("t1c", "every-k"),
    "60-30-30-0.9": ("t1b", "60-30-30-ours"),
    "80-40-40-0.5": ("t1a", "gamma0-0.5"),
    **dict.fromkeys(
        ["optimizer-reset", "end-of-phase", "learnt-1e-2", "lookahead-0.8", "60-30-30-0.5"]
    ),
}


def test_our_own_tables_use_the_papers_defaults(composed, all_runs: dict[str, Run]) -> None:
    columns = f"column={','.join(READINGS)}"
    request = request_for(composed, "table=ablations,gamma0", columns, "model=cnn13", "seed=0")
    runs = unique_runs(cell_runs(request.cells, request.seeds, composed))
    found = {}
    for run_id, run in runs.items():
        paper_tables = all_runs[run_id].cells if run_id in all_runs else []
        for cell in run.cells:
            found[cell.column] = {(c.table, c.column) for c in paper_tables}
    assert found.keys() == READINGS.keys()
    for column, cell in READINGS.items():
        assert cell in found[column] if cell else not found[column], column


def test_a_tenth_has_ten_seeds_and_full_size_the_papers_three(composed) -> None:
    for scale, seeds in (("full", [0, 1, 2]), ("tenth", [*range(10)])):
        request = request_for(composed, f"scale={scale}", "table=t1c", "model=cnn13")
        assert request.seeds == {"t1c": seeds}


def test_the_baseline_of_a_column_is_in_the_table(composed) -> None:
    def other(overrides: Sequence[str]) -> DictConfig:
        config = composed(overrides)
        config.table.baseline = {"learnt": "gamma0-1"}
        return config

    with pytest.raises(UserError, match=r"table=t1a: table\.baseline.*gamma0-1 is not a column"):
        read_table("t1a", (), other)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "table=t1a: table.title: is missing"),
        ({"title": "a", "baselin": {}}, "table.baselin: there is no such key; .*mean baseline"),
    ],
)
def test_the_keys_of_a_table_are_checked(composed, keys: dict, message: str) -> None:
    def other(overrides: Sequence[str]) -> DictConfig:
        config = composed(overrides)
        config.table = {"rows": [[]], "columns": {"a": []}, **keys}
        return config

    with pytest.raises(UserError, match=message):
        read_table("t1a", (), other)


def test_the_published_numbers_are_the_papers() -> None:
    paper = read_paper()
    expected = {
        ("t1a", "cifar100", "wrn28_10", "gamma0-0.95"): (18.25, 0.10),
        ("t1b", "cifar100", "cnn13", "100-50-50-ours"): (25.15, 0.07),
        ("t1c", "cifar100", "resnet34", "every-k"): (22.12, 0.66),
        ("t1d", "cifar100", "densenet121", "cosine"): (20.20, 0.27),
        ("t2", "svhn", "resnet34", "adabound"): (3.00, 0.08),
        ("t3", "cifar10", "densenet121", "sgd-orig"): (15.90, 1.60),
        ("t4", "svhn", "cnn13", "amsgrad"): (3.46, 0.07),
    }
    for key, numbers in expected.items():
        assert tuple(paper.loc[key]) == numbers
    assert paper.loc[("t2", "imagenet", "vgg16", "ours"), "error_mean"] == 24.67
    imagenet = paper.index.get_level_values("dataset") == "imagenet"
    assert paper["error_std"][imagenet].isna().all()  # one run
    assert paper["error_std"][~imagenet].notna().all()


def test_equal_cells_of_several_tables_have_equal_runs(composed, all_runs: dict[str, Run]) -> None:
    runs = all_runs
    ids: dict[tuple[str, ...], set[str]] = {}
    asked, of_table_1 = 0, 0
    for run_id, run in runs.items():
        for cell in run.cells:
            ids.setdefault(cell_key(cell), set()).add(run_id)
            epochs = run.epochs
            asked += epochs * (cell.model == "cnn13")
            of_table_1 += epochs * (cell.table.startswith("t1") and cell.model == "cnn13")
    assert all(len(found) == 3 for found in ids.values())
    assert len(ids) == 35 + 17 + 17 + 6
    assert 4 * asked == 109_440  # of all CIFAR and SVHN cells, with three seeds
    assert of_table_1 == 3 * 2_880

    def cell(table: str, column: str) -> frozenset[str]:
        return frozenset(ids[table, "cifar100", "cnn13", column])

    sgd = {cell("t1b", "80-40-40-sgd"), cell("t1c", "no"), cell("t2", "sgd")}
    ours = {cell("t1a", "gamma0-0.9"), cell("t1b", "80-40-40-ours"), cell("t1c", "phase-wise")}
    assert len(sgd) == 1
    assert len(ours | {cell("t2", "ours")}) == 1
    assert cell("t1c", "every-k") == cell("t2", "lookahead")
    found = {
        network: {i for key in ids if key[2] == network for i in ids[key]} for network in NETWORKS
    }
    assert len(found["cnn13"]) == 3 * 63
    assert len(found["resnet50"]) == 3 * 6
    assert 4 * 63 + 3 * 6 == 270  # runs with one seed of all cells
    for run in list(runs.values())[::100]:  # a run is made by its overrides alone
        again = composed(run.overrides)
        assert again.seed == run.settings.seed
        assert again.optimizer._target_ == run.settings.optimizer["_target_"]


def test_cells_are_selected(composed) -> None:
    for arguments, count in (
        (("table=t1a,t1c,t2", "model=cnn13", "dataset=cifar100"), 16),
        (("table=t1a", "column=learnt,gamma0-0.9", "model=cnn13,resnet34"), 4),
        (("table=t1a,t1d", "column=cosine"), 4),
    ):
        assert len(request_for(composed, *arguments).cells) == count


TINY = Table(
    title="two",
    rows=[["dataset=digits", "model=cnn13_digits"]],
    columns={"a": ["averaging=none"], "b": ["averaging=none"], "c": []},
)


def test_equal_cells_are_one_run(composed) -> None:
    cells = table_cells("tiny", TINY, ["optimizer=adam"])
    assert [cell.column for cell in cells] == ["a", "b", "c"]
    runs = unique_runs(cell_runs(cells, {"tiny": [3]}, composed))
    (first, second) = runs.values()
    assert [cell.column for cell in first.cells] == ["a", "b"]
    assert first.overrides == [
        *("optimizer=adam", "dataset=digits", "model=cnn13_digits", "averaging=none", "seed=3")
    ]
    assert (second.settings.seed, second.settings.averaging["_target_"][-9:]) == (3, "Phasewise")
    with pytest.raises(UserError, match="seed='x'"):
        unique_runs(cell_runs(cells, {"tiny": ["x"]}, composed))


def test_seeds_are_replaced_and_deduplicated_and_duplicate_rows_rejected(composed) -> None:
    assert request_for(composed, "table=t1d").seeds == {"t1d": [0, 1, 2]}
    assert request_for(composed, "table=t1d", "seed=range(7,9)").seeds == {"t1d": [7, 8]}
    assert request_for(composed, "table=t1d", "seed=1,1").seeds == {"t1d": [1]}
    twice = TINY.model_copy(update={"rows": [*TINY.rows, [*TINY.rows[0], "model.width=0.2"]]})
    with pytest.raises(UserError, match="duplicate data set and network"):
        table_cells("twice", twice)
    half = TINY.model_copy(update={"rows": [["dataset=digits"]]})
    with pytest.raises(UserError, match="must set dataset and model"):
        table_cells("half", half)
    seeded = TINY.model_copy(update={"columns": {"a": ["seed=3"]}})
    with pytest.raises(UserError, match=r"table=own: table\.columns\.a: cannot set seed"):
        table_cells("own", seeded)
    with pytest.raises(UserError, match=r"\+\+averaging\.weights\.gamma0=0\.5: table t1a already"):
        request_for(composed, "table=t1a", "++averaging.weights.gamma0=0.5")


def test_a_scale_keeps_the_cells_and_scales_their_runs(composed) -> None:
    narrowed = ("table=t1a,t3", "column=learnt,sgd-ours", "dataset=cifar100,cifar10", "seed=0")
    full, tenth, digits = (
        request_for(composed, *narrowed, f"scale={scale}") for scale in ("full", "tenth", "digits")
    )
    assert [*map(cell_key, full.cells)] == [*map(cell_key, tenth.cells)]
    assert [*map(cell_key, full.cells)] == [*map(cell_key, digits.cells)]
    for request, fraction, batch_size, widths, lengths in (
        (full, 1.0, 128, {1.0}, {160, 80}),
        (tenth, 0.1, 16, {0.125, 0.25, 0.2}, {160, 80}),
        (digits, None, 128, {0.05, 0.125, 0.25}, {16, 8}),
    ):
        runs = unique_runs(cell_runs(request.cells, request.seeds, composed)).values()
        assert {run.settings.dataset.get("train_fraction", fraction) for run in runs} == {fraction}
        assert {run.settings.batch_size for run in runs} == {batch_size}
        assert {run.settings.model["width"] for run in runs} == widths
        assert {run.epochs for run in runs} == lengths
        for run in runs:
            assert run.settings.averaging["weights"].get("gamma0", 0.9) == 0.9
            assert run.settings.optimizer["lr"] == 0.1
    assert study_name(["table=t1a", "scale=tenth", "preset=none"]) == "tenth"
    assert study_name(["table=t1a"]) == study_name(["scale=full"]) == "full"


def test_cells_with_one_run_id_and_different_settings_are_rejected(composed) -> None:
    columns = {"a": ["averaging=none"], "b": ["averaging=none", "execution.precision=bf16"]}
    cells = table_cells("tiny", TINY.model_copy(update={"columns": columns}))
    with pytest.raises(UserError, match=r"^execution: the cells tiny .* a and tiny .* b give"):
        unique_runs(cell_runs(cells, {"tiny": [0]}, composed))
