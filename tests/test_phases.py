"""The schedule as a pure function of the step."""

import math

import pytest
from reference import alphas

from phaseavg.phases import MAX_EPOCHS, Cosine, Decayed, Phase, Schedule


def test_80_40_40_has_the_phases_of_the_paper():
    schedule = Schedule([80, 40, 40], [1, 0.1, 0.01])
    assert schedule.total_epochs == 160
    assert schedule.epochs == [80, 40, 40]
    assert schedule.phases == (Phase(0, 0, 80, 1), Phase(1, 80, 40, 0.1), Phase(2, 120, 40, 0.01))
    assert [phase.end for phase in schedule.phases] == [80, 120, 160]
    found = [schedule.phase(epoch).index for epoch in range(160)]
    assert found == [0] * 80 + [1] * 40 + [2] * 40


def test_the_rate_changes_with_the_first_step_of_a_phase():
    schedule = Schedule([80, 40, 40], [1, 0.1, 0.01])
    factors = [schedule.factor(step, 391) for step in range(160 * 391)]
    assert factors == [1] * 80 * 391 + [0.1] * 40 * 391 + [0.01] * 40 * 391


@pytest.mark.parametrize("epochs", [1, 2, 40, 80, 100])
@pytest.mark.parametrize("gamma0", [0.5, 0.9, 0.99])
def test_the_decayed_rate_matches_the_paper_in_each_epoch(epochs, gamma0):
    schedule = Schedule([epochs], [0.5], Decayed(gamma0))
    gamma = gamma0 ** (80 / epochs)
    for t in range(1, epochs + 1):
        expected = 0.5 * (1 - gamma ** (epochs - t + 1)) / (1 - gamma**epochs)
        for step in (3 * (t - 1), 3 * t - 1):  # first and last of the epoch's three
            assert schedule.factor(step, 3) == pytest.approx(expected, rel=1e-12)


def test_each_phase_restarts_its_decay_at_its_rate():
    schedule = Schedule([80, 40, 40], [1, 0.1, 0.01], Decayed())
    firsts = [schedule.factor(phase.first_epoch * 391, 391) for phase in schedule.phases]
    assert firsts == pytest.approx([1, 0.1, 0.01], rel=1e-14)
    assert schedule.factor(120 * 391 - 1, 391) == pytest.approx(0.1 * alphas(0.9, 40)[-1])


def test_the_cosine_falls_from_one_over_a_half_to_almost_zero():
    by_epoch = Schedule([160], [1], Cosine())
    for t in range(1, 161):
        expected = (1 + math.cos(math.pi * (t - 1) / 160)) / 2
        for step in (391 * (t - 1), 391 * t - 1):
            assert by_epoch.factor(step, 391) == pytest.approx(expected, rel=1e-12)
    assert by_epoch.factor(0, 391) == 1
    assert by_epoch.factor(80 * 391, 391) == pytest.approx(0.5)
    by_step = Schedule([160], [1], Cosine(per="step"))
    for step in (0, 1, 390, 391, 12345, 160 * 391 - 1):
        expected = (1 + math.cos(math.pi * step / (160 * 391))) / 2
        assert by_step.factor(step, 391) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [Decayed, Cosine])
def test_per_step_equals_per_epoch_at_the_start_of_epochs(make):
    by_epoch, by_step = (Schedule([4, 2], [1, 0.1], make(per=per)) for per in ("epoch", "step"))
    for step in range(6 * 7):
        if step % 7 == 0:
            assert by_step.factor(step, 7) == pytest.approx(by_epoch.factor(step, 7), rel=1e-14)
        else:
            assert by_step.factor(step, 7) < by_epoch.factor(step, 7)
            assert by_step.factor(step, 7) < by_step.factor(step - 1, 7)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Schedule, ([0], [1]), r"epochs=\[0\] must be"),
        (
            Schedule,
            ([80, 40], [1]),
            r"factors=\[1\] must have one entry for each of epochs=\[80, 40\]",
        ),
        (Schedule, ([80, 40], [1, 0]), r"factors=\[1, 0\] must be positive"),
        *(
            (Schedule, ([80, 40], [1, 0.1], None, n), f"divisor={n} must be positive and divide")
            for n in (0, -1, 3)
        ),
        (Schedule, ([1, MAX_EPOCHS], [1, 1]), r"epochs=\[1, \d+\] must be [\d,]+ or fewer in all"),
        (Decayed, (1.0,), "gamma0=1.0 must lie strictly between 0 and 1"),
        (Decayed, (0.0,), "gamma0=0.0 must"),
        (Cosine, ("batch",), "per='batch'; choices: epoch, step"),
    ],
)
def test_mistakes_name_the_field_and_the_value(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


def test_a_divisor_shortens_every_phase_alike():
    schedule = Schedule([80, 40, 40], [1, 0.1, 0.01], divisor=10)
    assert schedule.epochs == [8, 4, 4]
    assert schedule.total_epochs == 16
    whole, tenth = (Schedule([80, 40], [1, 0.1], Cosine(), divisor) for divisor in (1, 10))
    assert tenth.factor(2 * 5, 5) == pytest.approx(whole.factor(20 * 5, 5))


def test_a_schedule_may_have_the_maximum_length():
    assert Schedule([MAX_EPOCHS], [1]).total_epochs == MAX_EPOCHS
