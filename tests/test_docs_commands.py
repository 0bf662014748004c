"""The shell commands in README and docs exist, and their overrides make valid runs."""

import re
import shlex
from collections.abc import Iterator

import pytest
from _pytest.mark import ParameterSet
from conftest import REPOSITORY
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from phaseavg.config import check
from phaseavg.report.study import without_hydra
from phaseavg.sweep.cells import cell_runs, read_request, unique_runs
from phaseavg.sweep.composing import composing

PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]

NOT_CHECKED = {"pip", "export", "nvidia-cuda-mps-control", "wandb"}
"""Programs that are not this project's."""


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield page and words of each command in a block of shell code, without placeholders."""
    for page in sorted(PAGES):
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "torchrun":  # it starts Python with the script
                    words = ["python", *words[words.index("train.py") :]]
                if words:
                    yield page.name, [w for w in words if "…" not in w and "<" not in w]


def of_program(*names: str) -> list[ParameterSet]:
    """Return the different commands of a program, with the words after its name."""
    found = {
        shlex.join(words): pytest.param(words[len(names) :], id=f"{page}: {shlex.join(words)}")
        for page, words in commands()
        if [w for w in words if "=" not in w or w.startswith("-")][: len(names)] == list(names)
    }
    return list(found.values())


def test_every_command_is_checked_or_not_this_projects() -> None:
    programs = {words[0] for _, words in commands()}
    assert programs <= {"python", "make", "PYTHONPATH=mine", *NOT_CHECKED}
    scripts = {words[1] for _, words in commands() if words[0] == "python"}
    assert all(name == "-m" or (REPOSITORY / name).is_file() for name in scripts)


# Those of docs/own.md are run with its files, in test_docs.py.
TRAIN = [
    command
    for command in of_program("python", "train.py")
    if not {"--config-dir", "--help"} & {*command.values[0]}
]


@pytest.mark.parametrize("words", TRAIN)
def test_overrides_make_valid_runs(words: list[str]) -> None:
    overrides = without_hydra([word for word in words if word != "-m"])
    with composing(REPOSITORY / "conf") as (options, compose):
        if "-m" not in words:
            assert check(compose(overrides)).run_id
            return
        request = read_request(overrides, options, compose)
        if request.tables:
            first = request.cells[0]
            runs = unique_runs(cell_runs([first], request.seeds, compose))
            assert len(runs) == len(request.seeds[first.table])
            return
        parsed = OverridesParser.create().parse_overrides(request.common)
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        assert len({check(compose(list(job))).run_id for job in (jobs[0], jobs[-1])}) == 2


@pytest.mark.parametrize("words", of_program("make"))
def test_targets_are_in_the_makefile(words: list[str]) -> None:
    rules = re.findall(r"^([a-z0-9 -]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    assert {word for word in words if "=" not in word} <= targets


@pytest.mark.parametrize("words", [w for w in of_program("python") if "scripts/" in w.id])
def test_options_are_those_of_the_script(words: list[str]) -> None:
    source = (REPOSITORY / words[0]).read_text() + (REPOSITORY / "phaseavg/cli.py").read_text()
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in source, option
