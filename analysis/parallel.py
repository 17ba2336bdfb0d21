"""Work spread over processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], *, fewest: int) -> Iterator[Result]:
    """`map(function, items)`, in order; for `fewest` items or more in one process a core, started at once.

    Choose `fewest` so that the work outweighs the second or so that it takes to start processes. The caller's script
    needs no `__main__` guard. Exceptions of `function` are raised here.
    """
    if len(items) < fewest:
        return map(function, items)
    from joblib import Parallel, delayed

    parallel: Any = Parallel(n_jobs=-1, return_as="generator")
    return parallel(delayed(function)(item) for item in items)
