"""Keeps the process small while packs come and go: glibc otherwise holds on to what each thread once used."""

import ctypes

_M_ARENA_MAX = -8
"""mallopt(3)."""
_ARENAS = 2
"""One for the lane, one for everybody else; each thread that loads a pack would else keep an arena of its own."""


def use_few_arenas() -> None:
    """Bound the number of malloc's arenas; called once, before threads are made. Another C library takes no notice."""
    _call("mallopt", _M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return to the system what was freed; called when a pack has come or gone."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
