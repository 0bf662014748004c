"""Mistakes in a user's own files of options: one line with file and line."""

from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, Prompt

from phaseavg.errors import UserError
from phaseavg.options import FileConfigSource
from phaseavg.report.study import composing

BOMB = b"a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n"

MISTAKES = {
    "syntax": (b"a: [1, 2\nb: 3\n", ", line 2, column 2: did not find expected ',' or ']'"),
    "tab": (b"a: x\n\tb: 3\n", ", line 2, column 1: found a tab character"),
    "twice": (b"a: 1\nb: 2\na: 3\n", ", line 3, column 1: found duplicate key a"),
    "list": (b"# of mine\n- a\n", ", line 2, column 1: must be a mapping of keys to values"),
    "text": (b"hello\n", ", line 1, column 1: must be a mapping of keys to values"),
    "two documents": (b"a: 1\n---\nb: 2\n", ", line 2, column 1: "),
    "key": (b"? [1, 2]\n: 3\n", ", line 1, column 3: found unhashable key"),
    "tag": (b"a: !!python/name:os.system\n", ", line 1, column 4: could not determine"),
    "letters": (b"a: 1\nb: \xff\n", ", line 2: is not UTF-8"),
    "control": (b"a: 1\nb: \x00\n", ", line 2: is not UTF-8, or has a character"),
    "header": (b"# @package\na: 1\n", ": Expected header format: KEY VALUE, got '@package'"),
    "interpolation": (b"a: ${b\n", ": no viable alternative at input '${b'"),
    "nested": (b"a: " + 900 * b"[" + 900 * b"]", ": is nested too deeply"),
    "aliases": (BOMB, ", line 2, column 8: *a: aliases are not read"),
    "own alias": (b"a: &a [*a]\n", ", line 1, column 8: *a: aliases are not read"),
    "defaults": (b"defaults: 3\n", ": defaults=3: must be a list of names"),
    "default": (b"defaults: [a, 3]\n", ": defaults=['a', 3]: must be a list of names"),
    "group": (b"defaults: [{a: {b: c}}]\n", ": defaults=[{'a': {'b': 'c'}}]: must be a list"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_the_file_and_the_line(tmp_path: Path, mistake: str) -> None:
    content, told = MISTAKES[mistake]
    path = tmp_path / "schedule" / "mine.yaml"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        FileConfigSource("mine", f"file://{tmp_path}").load_config("schedule/mine")
    assert str(caught.value).startswith(f"{path}{told}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"# nothing yet\n", b"defaults: [_self_, {/model: null}, {override a: b}]\n"]
)
def test_what_hydra_takes_is_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    FileConfigSource("mine", f"file://{tmp_path}").load_config("mine")


PROMPTED = {
    "schedule": (b"epochs: [1\n", "schedule/mine.yaml, line 2, column 1: "),
    "model": (b"defaults: [mine]\n", "defaults: files of options include each other"),
    "optimizer": (b"lr: ${optimizer.b}\nb: ${optimizer.lr}\n", "optimizer.lr: Recursive"),
    "averaging": (b"window: ${nope:3}\n", "averaging.window: Unsupported interpolation type nope"),
    "dataset": (b"folder: ${nope.b}\n", "dataset.folder: Interpolation key 'nope.b' not found"),
}


@pytest.mark.parametrize("group", PROMPTED)
def test_at_the_prompt_a_mistake_gets_one_line(prompt: Prompt, tmp_path: Path, group: str) -> None:
    content, told = PROMPTED[group]
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_bytes(content)
    here = f"--config-dir={tmp_path}"
    status, out, err = prompt("preset=none", "dry_run=true", f"{group}=mine", here)
    assert (status, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1, err


TABLE = "title: mine\nrows: [[dataset=digits, model=cnn13_digits]]\ncolumns: {{a: [{}]}}\n"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("a=[1", "table/mine.yaml, line 3, column 17: "),
        ('"seed=[1"', "table=mine: seed=[1: is not an override"),
        ('"averaging=none,uniform"', "table=mine: averaging=none,uniform: must have one value"),
    ],
)
def test_a_mistake_in_a_table_gets_one_line(
    prompt: Prompt, tmp_path: Path, override: str, told: str
) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "mine.yaml").write_text(TABLE.format(override))
    status, _, err = prompt("-m", *TINY[:1], "table=mine", "plan=true", f"--config-dir={tmp_path}")
    assert status == 2
    assert told in err
    assert err.count("\n") == 1, err


def test_reports_tell_it_as_the_prompt_does(tmp_path: Path) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_text("defaults: [mine]\n")
    with (
        pytest.raises(UserError, match="include each other"),
        composing(REPOSITORY / "conf", tmp_path) as (_, compose),
    ):
        compose(["schedule=mine"])
