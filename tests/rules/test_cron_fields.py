"""What the fields of a cron rule name, worked out by hand from crontab(5); when rules are due is in test_cron.py."""

from __future__ import annotations

import pytest

from sqla_jobs.rules.cron_fields import FIELDS, Field

SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY = FIELDS
FORMS = "*, lists and ranges of them, and steps such as */5"
NO_MINUTE, NO_HOUR = f"0-59, {FORMS}", f"0-23, {FORMS}"
NO_DAY, NO_MONTH, NO_WEEKDAY = (
    f"1-31 or L, {FORMS}",
    f"1-12 or JAN-DEC, {FORMS}",
    f"0-7 or SUN-SAT or L5 or 5#2, {FORMS}",
)
BACKWARDS = "the range runs backwards: write"


@pytest.mark.parametrize(
    ("field", "text", "numbers"),
    [
        (SECOND, "*", "*"),
        (MINUTE, "0", "0"),
        (MINUTE, "59,07", "7,59"),
        (MINUTE, "10-12", "10,11,12"),
        (HOUR, "5-5", "5"),
        (HOUR, "22-23,0-2,1", "0,1,2,22,23"),
        (MINUTE, "*/20", "0,20,40"),
        (MINUTE, "5/25", "5,30,55"),
        (MINUTE, "10-30/10,1-3/1", "1,2,3,10,20,30"),
        (MONTH, "*/5", "1,6,11"),
        (MONTH, "jan,DEC,Jun", "1,6,12"),
        (MONTH, "NOV-FEB", "1,2,11,12"),
        (MONTH, "OCT-APR/3", "1,4,10"),
        (DAY, "?", "*"),
        (DAY, "L,1,l,31", "1,31,l"),
        (WEEKDAY, "?", "*"),
        (WEEKDAY, "7", "0"),
        (WEEKDAY, "SUN,5-7", "0,5,6"),
        (WEEKDAY, "MON-FRI/2", "1,3,5"),
        (WEEKDAY, "FRI-MON", "0,1,5,6"),
        (WEEKDAY, "fri-mon/3", "1,5"),
        (WEEKDAY, "SUN-SUN", "0"),
        (WEEKDAY, "L5,lfri,L7", "l0,l5"),
        (WEEKDAY, "fri#2,7#1,L5", "0#1,5#2,l5"),
    ],
)
def test_a_field_names_numbers(field: Field, text: str, numbers: str) -> None:
    assert field.expand(text) == numbers


@pytest.mark.parametrize(
    ("field", "text", "reason"),
    [
        *((MINUTE, text, NO_MINUTE) for text in ("", "60", "1,,2", "1-", "*-5", "*-5/5", "**", "٣", "L", "5#2", "MON")),
        (MINUTE, "*/0", f"{NO_MINUTE}; a step is at least 1"),
        (MINUTE, "5-1", f"{BACKWARDS} 5-59,0-1"),
        *((HOUR, text, NO_HOUR) for text in ("24", "1-24", "?", "1-2-3")),
        *((DAY, text, NO_DAY) for text in ("0", "32", "?,1", "L5", "15W")),
        (DAY, "31-1", f"{BACKWARDS} 31,1"),
        *((MONTH, text, NO_MONTH) for text in ("0", "13", "FRI", "JANUARY")),
        (MONTH, "DEC-2", f"{BACKWARDS} 12,1-2"),
        (MONTH, "11-JAN", f"{BACKWARDS} 11-12,1"),
        *((WEEKDAY, text, NO_WEEKDAY) for text in ("8", "L", "JAN", "LJAN", "L5#2", "5#6", "5#")),
        (WEEKDAY, "5-1", f"{BACKWARDS} 5-6,0-1"),
        (WEEKDAY, "6-FRI", f"{BACKWARDS} 6,0-5"),
        (WEEKDAY, "7-5", f"{BACKWARDS} 0-5,7"),
        (
            WEEKDAY,
            "5#1,3",
            "a list cannot mix days of every week, such as 5, with those of one week, such as 5#2",
        ),
        (MONTH, "1,*,5", "a * makes the rest of the list redundant: write * alone, or 1,5 alone"),
        (MONTH, "*,*", "a * makes the rest of the list redundant: write * alone, or * alone"),
    ],
)
def test_what_it_cannot_name_is_refused_with_what_to_write(field: Field, text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        field.expand(text)
    assert str(caught.value) == reason
