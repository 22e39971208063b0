"""Names of attributes that are internal now. They work for one more release, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


def underscored(*names: str) -> Callable[[Any, str], Any]:
    """Return a `__getattr__` that finds each of `names` under the same name with an underscore."""

    def find(self: Any, name: str) -> Any:
        if name not in names:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        message = f"{type(self).__name__}.{name} is internal, and goes in the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(self, f"_{name}")

    return find
