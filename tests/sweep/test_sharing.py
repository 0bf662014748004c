"""What runs have in common is trained once, and no bit of any of them differs for it."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import victims as victim
from conftest import TINY, Prompt

from phaseavg.errors import UserError
from phaseavg.runs.files import write_atomically
from phaseavg.runs.store import Store
from phaseavg.training.sharing import Course

AVERAGINGS = "averaging=none,phasewise,rna,end"
SHORT = (*TINY, "checkpoint_seconds=1000", "weights=final", "batch_size=250")
TIMES = ("seconds", "_second")
SAVING = "saving_seconds"  # only in lines of epochs in which a checkpoint was due


def outcomes(folder: Path) -> dict[str, Any]:
    """Return weights and metrics of all runs below a folder, but for how long what took."""
    found = {}
    for path in folder.glob("*/result.json"):
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        metrics = [
            {k: ... if k.endswith(TIMES) else v for k, v in json.loads(line).items() if k != SAVING}
            for line in lines
        ]
        result = json.loads(path.read_text())
        timing = (*TIMES, "peak_memory_bytes", "provenance", "inherited")
        result = {k: v for k, v in result.items() if not k.endswith(timing)}
        weights = safetensors.torch.load_file(path.parent / "weights.safetensors")
        found[path.parent.name] = (weights, metrics, result)
    return found


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for run_id, (weights, metrics, result) in expected.items():
        for name, tensor in weights.items():
            assert torch.equal(found[run_id][0][name], tensor), (run_id, name)
        assert found[run_id][1:] == (metrics, result), run_id


def inherited(folder: Path) -> dict[str, int]:
    """Return by averaging how many epochs the runs below a folder have inherited."""
    results = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/result.json")}
    return {name.split("-")[3]: r["inherited"]["epochs"] for name, r in results.items()}


def trained(results: list[Any]) -> tuple[int, list[tuple[int, int]]]:
    """Return how many epochs runs have trained alone, and the shared ones, each segment once."""
    segments = {s["prefix"]: s for r in results for s in r["inherited"]["segments"]}
    alone = sum(r["epochs"] - r["inherited"]["epochs"] for r in results)
    return alone, sorted((s["first_epoch"], s["last_epoch"]) for s in segments.values())


EVERYTHING = {"atend": 5, "noaveraging": 5}
PHASE = {"phasewise": 2, "phasewise_rna": 2}
PHASE_RNA = {"phasewise_rna": 2}
FAMILIES = [
    (f"{AVERAGINGS} optimizer=sgd", EVERYTHING | PHASE),
    # Whose state has Adam's in it; with learning rates step by step.
    (
        f"{AVERAGINGS} optimizer=amsgrad optimizer_state=reset schedule=decayed "
        "schedule.shape.per=step schedule.epochs=[2,2,1]",
        EVERYTHING | PHASE,
    ),
    (f"{AVERAGINGS} optimizer=adabound", EVERYTHING | PHASE),
    (f"{AVERAGINGS} optimizer=lookahead", EVERYTHING | PHASE),
    # Learning rates epoch by epoch, and one phase: all is shared, and the average over the phase is
    # the one over the training.
    (f"{AVERAGINGS} schedule=cosine schedule.epochs=[3]", dict.fromkeys(EVERYTHING | PHASE, 3)),
    # What is looked at on the way is looked at on the shared trajectory.
    (
        "averaging=none,uniform,phasewise evaluation.average_every=1 evaluation.batchnorm_every=2 "
        "batchnorm_batches=3 +averaging@watch.swa=uniform",
        {"noaveraging": 2, "phasewise": 2, "phasewise_uniform": 2},
    ),
    # Two that part by their own weights: the trajectory keeps the snapshots of one for itself.
    ("averaging=rna averaging.weights.rho=1e-5,1e-2 checkpoint_seconds=0", PHASE_RNA),
    # A window that opens on the way.
    ("averaging=end averaging.window=phase,training", {"atend": 5}),
]


@pytest.mark.parametrize(("family", "epochs"), FAMILIES)
def test_a_run_that_shares_is_the_run_alone_bit_by_bit(
    prompt: Prompt, tmp_path: Path, family: str, epochs: dict[str, int]
) -> None:
    command = ("-m", *SHORT, *family.split())
    status, out, err = prompt(*command)
    assert (status, err) == (0, "")
    assert "shared trajectory 1 of 1: " in out
    status, out, err = prompt(*command, "runs_dir=alone", "share=false")
    assert (status, err) == (0, "")
    assert "shared" not in out
    assert_equal(outcomes(tmp_path / "runs"), outcomes(tmp_path / "alone"))
    assert inherited(tmp_path / "runs") == epochs
    assert set(inherited(tmp_path / "alone").values()) == {0}
    assert not (tmp_path / "alone/shared").exists()


def test_runs_of_other_lengths_part_at_every_branch_point(prompt: Prompt, tmp_path: Path) -> None:
    """Each length has its own window from the same trajectory, which goes on to the longest."""
    lengths = "schedule.epochs=[1,1],[2,1],[4,1]"
    command = ("-m", *SHORT, "schedule.factors=[1,0.1]", lengths, "averaging=none,phasewise,rna")
    status, out, err = prompt(*command)
    assert (status, err) == (0, "")
    assert "leaves its state after epoch 1, 2, 4\n" in out
    prompt(*command, "runs_dir=alone", "share=false")
    assert_equal(outcomes(tmp_path / "runs"), outcomes(tmp_path / "alone"))
    results = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/result.json")]
    assert sorted(r["inherited"]["epochs"] for r in results) == [1] * 3 + [2] * 3 + [4] * 3
    assert trained(results) == (9 * 1, [(1, 1), (2, 2), (3, 4)])
    for result in results:
        assert 0 < result["inherited"]["seconds"] < result["seconds"]
    longest = max(results, key=lambda r: r["inherited"]["seconds"])
    # The trajectory has carried the averages of all, a run counts its own alone.
    assert (
        sum(s["seconds"] for s in longest["inherited"]["segments"])
        > longest["inherited"]["seconds"]
    )


def test_what_replaced_the_weights_is_shared_from_there_on(prompt: Prompt, tmp_path: Path) -> None:
    """Two phase-wise runs of which the last phase alone differs."""
    command = ("-m", *SHORT, "schedule.epochs=[1,2,1],[1,2,2]", "averaging=phasewise,rna")
    status, _, err = prompt(*command)
    assert (status, err) == (0, "")
    prompt(*command, "runs_dir=alone", "share=false")
    assert_equal(outcomes(tmp_path / "runs"), outcomes(tmp_path / "alone"))
    results = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/result.json")]
    # The last phase's epochs are the same, too, until the shorter one ends.
    assert [r["inherited"]["epochs"] for r in results] == [4] * 4
    # All four have the first epoch in common, though no run leaves there.
    assert trained(results) == (2 * 1, [(1, 1), (2, 4), (2, 4)])


KILLS = [("stepped", 16), ("left", 1), ("left", 2), ("stepped", 17)]


@pytest.mark.parametrize(("event", "count"), KILLS)
def test_a_shared_trajectory_that_was_killed_goes_on(
    victims: Any, prompt: Prompt, tmp_path: Path, event: str, count: int, undisturbed: Any
) -> None:
    """At a branch point, with a state left half, after it: each time by SIGKILL.

    In mid-epoch one is killed below, where four processes wait for it.
    """
    command = KILLED
    folder = tmp_path / "killed"
    folder.mkdir()
    process = victims.Process(target=victim.sweep_and_die, args=(folder, command, event, count))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not list(folder.glob("runs/*/result.json"))
    process = victims.Process(target=victim.sweep_and_die, args=(folder, command, "never", 0))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert_equal(outcomes(folder / "runs"), undisturbed)
    assert len((folder / "steps").read_bytes()) <= DIFFERENT_STEPS + 1  # at most one was lost
    results = [json.loads(p.read_text()) for p in folder.glob("runs/*/result.json")]
    for result in results:
        assert all(segment["seconds"] > 0 for segment in result["inherited"]["segments"])
        assert 0 < result["inherited"]["seconds"] < result["seconds"]


OTHERS = [  # its first epochs were tested otherwise; it is longer than the whole run
    ((), ("evaluation.every=2",), 12),
    (
        ("schedule.factors=[1,0.1]", "schedule.epochs=[6,1]"),
        ("schedule.factors=[1,0.1]", "schedule.epochs=[2,1]"),
        40,
    ),
]


@pytest.mark.parametrize(("before", "after", "step"), OTHERS)
def test_a_checkpoint_of_another_trajectory_is_not_gone_on_from(
    victims: Any,
    prompt: Prompt,
    tmp_path: Path,
    before: tuple[str, ...],
    after: tuple[str, ...],
    step: int,
) -> None:
    command = ("-m", *TINY, "weights=final", "averaging=none,phasewise")
    killed = (tmp_path, (*command, *before), "stepped", step)
    process = victims.Process(target=victim.sweep_and_die, args=killed)
    process.start()
    process.join()
    status, out, err = prompt(*command, *after)
    assert (status, err) == (0, "")
    assert "its checkpoint is of another trajectory; it begins anew" in out
    prompt(*command, *after, "runs_dir=alone", "share=false")
    assert_equal(outcomes(tmp_path / "runs"), outcomes(tmp_path / "alone"))


def test_what_cannot_begin_alike_is_left_to_itself(prompt: Prompt, tmp_path: Path) -> None:
    """A run whose config makes none fails alone, as it does without sharing."""
    status, _, err = prompt("-m", *SHORT, "schedule.epochs=[1,1],[1,1,1]", "averaging=none")
    assert status == 1
    assert "factors=[1.0, 0.1, 0.01] must have one entry for each of epochs=[1, 1]" in err
    assert "sweep: 1 finished, 0 there already, 1 failed" in err.splitlines()[-1]


def test_rounds_of_a_budget_carry_for_each_other(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has time for one run alone, and its trajectory carries the other's average."""
    from phaseavg.sweep.rates import Rates

    monkeypatch.setattr(Rates, "__call__", lambda *_: 10_000.0)
    status, out, _ = prompt("-m", *SHORT, "averaging=phasewise,rna", "budget=25h")
    assert status == 0
    assert "next are 1 of them" in out
    assert "carries 2 averages" in out
    assert inherited(tmp_path / "runs") == PHASE


KILLED = (
    "-m",
    *TINY,
    "weights=final",
    "schedule.factors=[1,0.1]",
    "schedule.epochs=[1,1],[2,1]",
    "averaging=none,rna",
)
DIFFERENT_STEPS = 8 * (2 + 4)


@pytest.fixture(scope="module")
def undisturbed(victims: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the outcomes of the sweep that is killed, trained alone and in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = (*KILLED, "share=false", "checkpoint_seconds=1000")
    process = victims.Process(target=victim.sweep_in_a_group, args=(folder, command))
    process.start()
    process.join()
    assert process.exitcode == 0
    return outcomes(folder / "runs")


def test_four_processes_train_nothing_twice_even_if_one_dies(
    victims: Any, tmp_path: Path, undisturbed: Any
) -> None:
    """One stops in the middle of what the three others wait for, and dies; another takes over."""
    arguments = (tmp_path, KILLED, "stepped", 10, signal.SIGSTOP)
    first = victims.Process(target=victim.sweep_and_die, args=arguments)
    first.start()
    while not (steps := tmp_path / "steps").exists() or len(steps.read_bytes()) < 10:
        first.join(0.05)
        assert first.exitcode is None
    arguments = (tmp_path, KILLED, "never", 0)
    others = [victims.Process(target=victim.sweep_and_die, args=arguments) for _ in range(3)]
    for process in others:
        process.start()
    waiting = "another process is training this; waiting for it"
    while (tmp_path / "said").read_text().count(waiting) < len(others):
        others[0].join(0.05)
        assert [process.exitcode for process in others] == [None] * len(others)
    first.kill()
    for process in (first, *others):
        process.join()
    assert first.exitcode == -signal.SIGKILL
    assert {process.exitcode for process in others} <= {0, 1}  # 1: a run was another one's
    assert_equal(outcomes(tmp_path / "runs"), undisturbed)
    assert len(steps.read_bytes()) == DIFFERENT_STEPS + 1  # the last one of the first was not saved


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def of_another_run(path: Path) -> None:
    other = next(p for p in path.parents[1].glob("*/*.pt") if p.parent != path.parent)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [flip, truncate, of_another_run])
def test_a_damaged_state_is_set_aside_and_trained_again(
    prompt: Prompt, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    command = ("-m", *SHORT, "averaging=none,rna")
    prompt(*command)
    expected = outcomes(tmp_path / "runs")
    states = {
        json.loads(p.read_text())["epoch"]: p.with_suffix(".pt")
        for p in tmp_path.glob("runs/shared/*/*-*.json")
        if p.parent.name != "trajectories"
    }
    assert sorted(states) == [2]
    if damage is of_another_run:
        prompt(*command, "seed=1")
    damage(states[2])
    for path in tmp_path.glob("runs/*seed0*/result.json"):
        path.unlink()
    status, out, err = prompt(*command)
    assert (status, err) == (0, "")
    assert f"{states[2].relative_to(tmp_path)} is damaged" in out
    assert states[2].with_name(f"{states[2].name}.damaged").exists()
    found = outcomes(tmp_path / "runs")
    assert_equal({i: found[i] for i in expected}, expected)
    assert inherited(tmp_path / "runs") == {"noaveraging": 2, "phasewise_rna": 2}


def test_a_state_that_is_lost_is_trained_again_though_later_ones_are_there(
    prompt: Prompt, tmp_path: Path
) -> None:
    lengths = ("schedule.factors=[1,0.1]", "schedule.epochs=[1,1],[3,1]")
    command = ("-m", *SHORT, *lengths, "averaging=none,rna")
    prompt(*command)
    expected = outcomes(tmp_path / "runs")
    (first,) = (
        path
        for path in tmp_path.glob("runs/shared/*/*-*.json")
        if json.loads(path.read_text()).get("epoch") == 1
    )
    first.with_suffix(".pt").unlink()
    for path in tmp_path.glob("runs/*/result.json"):
        path.unlink()
    status, out, err = prompt(*command)
    assert (status, err) == (0, "")
    assert "epochs of 4 steps, from step 0; carries" in out
    assert_equal(outcomes(tmp_path / "runs"), expected)
    results = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/result.json")]
    assert sorted(r["inherited"]["epochs"] for r in results) == [1, 1, 3, 3]


def test_a_single_run_goes_on_from_what_a_sweep_has_left(prompt: Prompt, tmp_path: Path) -> None:
    prompt("-m", *SHORT, "averaging=none,phasewise")
    status, out, _ = prompt(*SHORT, "averaging=end")  # whose average was not carried
    assert status == 0
    assert "from step 0;" in out
    status, out, _ = prompt(*SHORT, "averaging=phasewise", "schedule.epochs=[2,3,1]")
    assert "from step 8, 2 epochs being shared with other runs;" in out
    assert re.search(r"; of these 2 epochs, \d+\.\d s, shared with others\n", out)
    status, out, _ = prompt(
        *SHORT, "averaging=none", "evaluation.every=2", "schedule.epochs=[2,3,1]"
    )
    assert "from step 0" in out  # of a curve that is looked at more seldom


def test_a_trajectory_that_diverges_leaves_the_outcome_to_its_runs(
    prompt: Prompt, tmp_path: Path
) -> None:
    status, _, err = prompt("-m", *SHORT, "averaging=none,phasewise", "optimizer.lr=1e20")
    assert status == 1
    assert err.splitlines()[-1].startswith("sweep: 0 finished, 0 there already, 2 diverged")
    results = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/result.json")]
    assert [result["status"] for result in results] == ["diverged"] * 2


def test_a_full_disk_costs_the_shared_state_and_no_run(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that does not fit is said in one line, and its runs are trained alone."""

    def full(path: Path, *rest: Any) -> None:
        if path.suffix == ".pt":
            raise UserError("share.dir: no space left")
        write_atomically(path, *rest)

    monkeypatch.setattr("phaseavg.runs.store.write_atomically", full)
    status, out, err = prompt("-m", *SHORT, "averaging=none,phasewise")
    assert (status, err.count("\n")) == (0, 1), err
    assert "share.dir: no space left" in err
    assert out.splitlines()[-1] == "sweep: 2 finished, 0 there already"
    assert set(inherited(tmp_path / "runs").values()) == {0}


@pytest.mark.parametrize("moment", [(Store, "save"), (Course, "_take_snapshots")])
def test_the_store_may_be_removed_at_any_time(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: tuple[type, str]
) -> None:
    """While a trajectory leaves a state in it, or a run takes one: it costs epochs, no run."""
    meant = getattr(*moment)

    def removing(*given: Any, **named: Any) -> Any:
        shutil.rmtree(tmp_path / "runs/shared", ignore_errors=True)
        return meant(*given, **named)

    monkeypatch.setattr(*moment, removing)
    status, out, err = prompt("-m", *SHORT, "averaging=rna,none")
    assert status == 0, err
    assert out.splitlines()[-1] == "sweep: 2 finished, 0 there already"


TABLE = """\
title: lengths
seeds: [0]
rows:
  - [dataset=digits, model=cnn13_digits]
columns:
  short: [averaging=phasewise, "schedule.epochs=[1,1,1]"]
  usual: [averaging=phasewise, "schedule.epochs=[2,2,1]"]
  learnt: [averaging=rna, "schedule.epochs=[2,2,1]"]
  sgd: [averaging=none, "schedule.epochs=[3,1,1]"]
"""


def carried(out: str) -> tuple[int, str]:
    """Return how many averages the first trajectory carries, and where it leaves its state."""
    match = re.search(r"carries (\d+) averages; leaves its state after epoch (.*)\n", out)
    assert match is not None
    return int(match[1]), match[2]


def test_a_trajectory_carries_what_other_cells_will_need(prompt: Prompt, tmp_path: Path) -> None:
    mine = tmp_path / "mine/table"
    mine.mkdir(parents=True)
    (mine / "lengths.yaml").write_text(TABLE)
    other = TABLE.replace("lengths", "others").split("columns:")[0]
    gamma = "averaging.weights.gamma0=0.5"
    half = f'columns:\n  half: [averaging=phasewise, "schedule.epochs=[2,2,1]", {gamma}]\n'
    (mine / "others.yaml").write_text(other + half)
    short = [o for o in SHORT if not o.startswith("schedule.epochs")]
    command = ("--config-dir", str(tmp_path / "mine"), "-m", *short, "table=lengths")
    usual = (*command, "column=usual")
    # The two other cells of phases of 2 epochs, and for what begins likewise: 3 or 4 averages.
    _, out, _ = prompt(*usual, "share.carry=[lengths]", "runs_dir=a")
    assert carried(out) == (3, "1, 2")
    _, out, _ = prompt(*usual, "share.carry=asked", "runs_dir=b")
    assert "leaves its state" not in out
    assert inherited(tmp_path / "b") == {"phasewise": 0}
    status, _, err = prompt(*usual, "share.carry=[nothing]", "runs_dir=c")
    assert status == 2
    assert err == (
        "train.py: share.carry=nothing: there is no such table; choices: all, asked, or a list of "
        "1a, 1b, 1c, 1d, 2, 3, 4, gamma0, lengths, others, readings\n"
    )
    # Another table's column needs more than is there; this one's does not.
    (result,) = tmp_path.glob("a/*/result.json")
    result.unlink()
    _, out, _ = prompt(*usual, "share.carry=[lengths,others]", "runs_dir=a")
    assert "epoch2: there already\n" in out
    # What holds for all runs need not fit the other cells.
    status, _, err = prompt(*usual, "averaging.weights.gamma0=0.7", "runs_dir=d")
    assert (status, err) == (0, "")
    # What was carried is gone on from, beyond what was asked for then.
    _, out, _ = prompt(*command, "runs_dir=a")
    assert "epoch1: there already" not in out
    results = [json.loads(p.read_text()) for p in tmp_path.glob("a/*/result.json")]
    assert sorted(result["inherited"]["epochs"] for result in results) == [1, 2, 2, 2]
