"""docs/performance.md holds figures that one command has written."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from benchmarks import page, report
from benchmarks.__main__ import SECTIONS, main
from benchmarks.report import Figure

TABLES = """\
| enqueue | sqla_jobs | beside |  |
| --- | --- | --- | --- |
| one by one | 1,451 jobs/s | 1,755 | 83% |

| pick-up | sqla_jobs | beside |  |
| --- | --- | --- | --- |
| p50 | 4 ms | 2 | 50% |
| alone | 3 ms |  |  |

| cost |  |
| --- | --- |
| memory | 75 MB |"""


def test_the_page_has_a_place_for_each_section_with_figures_in_it() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for section in SECTIONS:
        (figures,) = re.findall(rf"<!-- {section} -->\n\n(.+?)\n\n<!-- /{section} -->", text, re.DOTALL)
        assert re.search(r"^\| .+ \| [\d.,]+ \S+", figures, re.MULTILINE), section


def test_the_readme_has_the_figure_of_the_page() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    (drained,) = re.findall(r"^\| one process, .+? \| ([\d,]+) jobs/s", text, re.MULTILINE)
    (cores,) = re.findall(r"(\d+) cores", text)
    thousands = round(int(drained.replace(",", "")), -3)
    said = f"<!-- drain -->{thousands:,} short jobs a second on {cores} cores<!-- /drain -->"
    assert said in page.README.read_text(encoding="utf-8")


def test_figures_are_written_between_their_comments_and_again_over_the_old_ones() -> None:
    speed = [
        Figure("enqueue", "one by one", "jobs/s", 1451.2, 1755.4),
        Figure("pick-up", "p50", "ms", 4.0, 2.0, less_is_better=True),
        Figure("pick-up", "alone", "ms", 3.0),
        Figure("cost", "memory", "MB", 75.0),
    ]
    assert report.markdown(speed) == TABLES
    once = page.filled("before <!-- speed --><!-- /speed --> after", {"speed": TABLES})
    assert once == f"before <!-- speed -->{TABLES}<!-- /speed --> after"
    assert page.filled(once, {"speed": TABLES}) == once
    with pytest.raises(click.ClickException, match="the page has no place for 'cost': put <!-- cost -->"):
        page.filled(once, {"cost": ""})


def test_a_page_is_not_made_of_a_part_of_the_figures() -> None:
    done = CliRunner().invoke(main, ["--write", "--only", "speed"])
    assert done.exit_code == 2
    assert "--write with --only: the page is made of one run of all" in done.output
