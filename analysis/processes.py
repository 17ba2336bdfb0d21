"""Work spread over processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def spread(function: Callable[[Item], Found], items: Sequence[Item], *, fewest: int) -> Iterator[Found]:
    """`map(function, items)`, in their order; of `fewest` or more by a process a core, at work from now on.

    `fewest`: so many that the work outweighs a second or so to start processes. They do not run the caller's script
    again, so that needs no guard. What `function` raises is raised here.
    """
    if len(items) < fewest:
        return map(function, items)
    from joblib import Parallel, delayed

    parallel: Any = Parallel(n_jobs=-1, return_as="generator")
    return parallel(delayed(function)(item) for item in items)
