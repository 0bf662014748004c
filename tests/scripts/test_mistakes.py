"""A mistake on a script's command line gives one line on stderr, status 2 and no files."""

from pathlib import Path

import pytest
from conftest import REPOSITORY, Prompt, assert_one_line

NOWHERE = "/proc/nowhere"
"""A folder that cannot be created."""
RECORDS = REPOSITORY / "results/demo/records"

CELL = "scale=digits table=t1a model=cnn13 column=learnt seed=0"

MISTAKES = [
    ("compare.py nowhere", "nowhere: is neither a folder nor an override, such as table=t1a"),
    ("compare.py .", ".: no run has ended; rerun its command"),
    ("compare.py scale=digits", "table: is missing; choices: "),
    (f"compare.py {CELL} runs_dir=a records_dir=a", f"{CELL} runs_dir=a records_dir=a: no run has"),
    ("evaluate.py nowhere", "nowhere/config.yaml: "),
    ("figures.py fig6 optimizer.lr=[1", "no viable alternative"),
    ("tables.py table=t1a --config-dir nowhere", "--config-dir=nowhere: there is no such folder"),
    ("figures.py fig7", "fig7: is not a figure; choices: fig1, fig2, fig3, fig4"),
    ("records.py nowhere", "nowhere: contains no ended run"),
    ("records.py --records nowhere", "--records=nowhere: contains no record; choose a folder"),
    ("report.py --runs nowhere", "--runs=nowhere: folder not found"),
    (
        "tables.py table=t1a column=x",
        "column=x: table=t1a has no such column; choices: ",
    ),
    ("tables.py table=t1a model.widht=1", "model.widht: there is no such key; choices: width"),
    ("tables.py table=t1a --claims", "--claims: needs table=all; table=t1b is missing"),
    ("tables.py table=t1a batch_size=64", "batch_size=64: changes the results; select a folder"),
    (
        "wandb_dashboard.py table=9 --dry-run",
        "table=9: there is no such option; choices: ",
    ),
    (f"compare.py {next(RECORDS.iterdir())} --output {NOWHERE}/a", NOWHERE),
    (f"figures.py fig6 --output {NOWHERE}", NOWHERE),
    (f"records.py {RECORDS} --records {NOWHERE}", NOWHERE),
    (f"tables.py {CELL} --output {NOWHERE}", NOWHERE),
]


@pytest.mark.parametrize(("typed", "message"), MISTAKES)
def test_a_mistake_is_reported_in_one_line(
    script: Prompt, tmp_path: Path, typed: str, message: str
) -> None:
    name, *arguments = typed.split()
    assert_one_line(script(name.removesuffix(".py"), *arguments), message, name)
    assert not list(tmp_path.iterdir())
