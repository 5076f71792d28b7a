"""Lets a daemon open as many files as its unit allows it; most systems start it with far fewer."""

import resource


def raise_descriptor_limit() -> int:
    """Raise this process's own limit to what the administrator set as the most, and return it (-1: without limit).

    1,024 is the usual start, for programs that use select(2); nothing here does.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
