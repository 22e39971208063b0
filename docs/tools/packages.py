"""The drawing of docs/architecture.md: which package imports which, from the top floor to the ground."""

from __future__ import annotations

from collections.abc import Iterator

from tests.project.test_floors import ENTRIES, FLOORS, LATE, MODULES, own_imports, package

WIDTH, LEFT, TOP, HIGH = 480, 144, 108, 22
"""In pixels: as wide as a telephone shows without making the text too small."""
STYLE = """\
text{fill:#1f2328;font:14px monospace}.soft{fill:#59636e;font-size:13px}.back{fill:#fff}.line{stroke:#c8d1da}
.mark{fill:#0969da;stroke:#0969da}.late{fill:#fff;stroke:#bc4c00}"""


def drawing() -> str:
    """Return an SVG with a dot where the package on the left imports the one above."""
    imported = _imported()
    floors: dict[str, int] = {}
    for name in FLOORS:
        floors[name] = 1 + max((floors[low] for high, low in imported.keys() - LATE if high == name), default=0)
    names = sorted((name for name in reversed(FLOORS) if name != "__main__"), key=lambda name: -floors[name])
    height = TOP + HIGH * len(names) + 60
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" viewBox="0 0 {WIDTH} {height}" role="img">'
    back = f'<style>{STYLE}</style><rect class="back" width="100%" height="100%"/>'
    return "\n".join(
        [head, "<title>Which package imports which</title>", back, *_drawn(names, floors, imported), "</svg>\n"]
    )


def _imported() -> dict[tuple[str, str], bool]:
    """Pairs of packages, and whether the first imports the second only when a function is called."""
    imported: dict[tuple[str, str], bool] = {}
    for name in MODULES.keys() - {"", "__main__", *ENTRIES}:
        for other, late in own_imports(name):
            pair = package(name), package(other)
            if pair[0] != pair[1]:
                imported[pair] = late and imported.get(pair, True)
    return imported


def _drawn(names: list[str], floors: dict[str, int], imported: dict[tuple[str, str], bool]) -> Iterator[str]:
    wide, bottom = (WIDTH - LEFT) / len(names), TOP + HIGH * len(names)

    def across(name: str) -> float:
        return LEFT + wide * (names.index(name) + 0.5)

    yield _text(4, TOP - 8, "floor", "soft")
    for row, name in enumerate(names):
        x, y = across(name), TOP + HIGH * (row + 0.5) + 5
        if row == 0 or floors[name] != floors[names[row - 1]]:
            yield _text(4, y, str(floors[name]), "soft")
        yield _text(30, y, name)
        yield _text(x + 4, TOP - 6, name, "soft", f"rotate(-90 {x + 4:g} {TOP - 6})")
        yield f'<path class="line" d="M{x:g} {TOP}V{bottom}M0 {y + 6:g}H{WIDTH}"/>'
    for (high, low), is_late in sorted(imported.items()):
        yield _dot(across(low), TOP + HIGH * (names.index(high) + 0.5), is_late)
    yield _dot(10, bottom + 20, is_late=False)
    yield _text(22, bottom + 25, "the package on the left imports the one above", "soft")
    yield _dot(10, bottom + 42, is_late=True)
    yield _text(22, bottom + 47, "only inside a function, when it is called", "soft")


def _text(x: float, y: float, said: str, kind: str = "", transform: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" transform="{transform}">{said}</text>'


def _dot(x: float, y: float, is_late: bool) -> str:
    return f'<circle class="{"late" if is_late else "mark"}" cx="{x:g}" cy="{y:g}" r="3.5"/>'
