"""What happens at most once in a period."""

from sqla_jobs.rules.every import Every


def test_a_period_is_over_once() -> None:
    every = Every(1000.0)
    assert [every.is_over(), every.is_over()] == [True, False]


def test_the_first_period_may_begin_at_the_start() -> None:
    assert not Every(1.0, first_in=1000.0).is_over()


def test_after_its_seconds_the_next_period_is_over_too() -> None:
    every = Every(0.0)
    assert [every.is_over(), every.is_over()] == [True, True]
