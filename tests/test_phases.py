"""The schedule as a pure function of the step."""

import pytest

from phaseavg.phases import Phase, Schedule


def test_80_40_40_has_its_boundaries_where_the_paper_has_them():
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


def test_one_phase_is_a_constant_rate():
    schedule = Schedule([3], [0.5])
    assert [schedule.factor(step, 2) for step in range(6)] == [0.5] * 6
    assert schedule.total_epochs == 3


@pytest.mark.parametrize(
    ("epochs", "factors", "message"),
    [
        ([], [], r"epochs=\[\] must be"),
        ([0], [1], r"epochs=\[0\] must be"),
        ([80, -1], [1, 0.1], r"epochs=\[80, -1\] must be"),
        ([80, 40], [1], r"factors=\[1\] must have one entry for each of epochs=\[80, 40\]"),
        ([80], [1, 0.1], r"factors=\[1, 0.1\] must have one entry"),
        ([80, 40], [1, 0], r"factors=\[1, 0\] must be positive"),
        ([80], [-0.1], r"factors=\[-0.1\] must be positive"),
    ],
)
def test_mistakes_are_refused_with_field_and_value(epochs, factors, message):
    with pytest.raises(ValueError, match=message):
        Schedule(epochs, factors)
