"""What the fields of a cron rule name, worked out by hand from crontab(5); when rules are due is in test_cron.py."""

from __future__ import annotations

import pytest

from sqla_jobs.rules.cron_fields import FIELDS, Field

SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY = FIELDS


@pytest.mark.parametrize(
    ("field", "text", "numbers"),
    [
        (SECOND, "*", "*"),
        (MINUTE, "59,07", "7,59"),
        (MINUTE, "10-12", "10,11,12"),
        (HOUR, "22-23,0-2,1", "0,1,2,22,23"),
        (MINUTE, "*/20", "0,20,40"),
        (MINUTE, "10-30/10,1-3/1", "1,2,3,10,20,30"),
        (MONTH, "jan,DEC,Jun", "1,6,12"),
        (MONTH, "OCT-APR/3", "1,4,10"),
        (DAY, "L,1,l,31", "1,31,l"),
        (WEEKDAY, "?", "*"),
        (WEEKDAY, "SUN,5-7", "0,5,6"),
        (WEEKDAY, "MON-FRI/2", "1,3,5"),
        (WEEKDAY, "fri-mon/3", "1,5"),
        (WEEKDAY, "SUN-SUN", "0"),
        (WEEKDAY, "L5,lfri,L7", "l0,l5"),
        (WEEKDAY, "fri#2,7#1,L5", "0#1,5#2,l5"),
    ],
)
def test_a_field_names_numbers(field: Field, text: str, numbers: str) -> None:
    assert field.expand(text) == numbers


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(
            (MINUTE, text)
            for text in ("", "60", "1,,2", "1-", "*-5", "*-5/5", "**", "٣", "L", "5#2", "MON", "*/0", "5-1")
        ),
        *((HOUR, text) for text in ("24", "?", "1-2-3")),
        *((DAY, text) for text in ("0", "32", "?,1", "L5", "31-1")),
        *((MONTH, text) for text in ("0", "13", "FRI", "JANUARY", "DEC-2", "11-JAN", "1,*,5", "*,*")),
        *((WEEKDAY, text) for text in ("8", "L", "LJAN", "L5#2", "5#6", "5#", "5-1", "6-FRI", "7-5", "5#1,3")),
    ],
)
def test_what_it_cannot_name_is_refused(field: Field, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its text is not compared
        field.expand(text)
