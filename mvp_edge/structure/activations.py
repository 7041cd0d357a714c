"""Activation memory: which tensors of a forward pass are alive at the same time.

`Alive` records the bytes of each storage and the first and last operation that uses it; `peak` of
these is the memory that the pass needs in addition to the weights.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Records, for each storage in a forward pass, the first and last operation that uses it.

    Storages rather than tensors, since views and in-place results share one. Integer tensors (the
    indices of max pooling) do not count: no runtime keeps them.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._resident = {tensor.untyped_storage() for tensor in weights}
        self._step = 0
        # Keys keep their storages alive, so that none is reused for another tensor.
        self.bytes: dict[torch.UntypedStorage, int] = {}
        self.first: dict[torch.UntypedStorage, int] = {}
        self.last: dict[torch.UntypedStorage, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.native_batch_norm.default:
            # Its kernel on the meta device runs in Python and would take most of the time.
            none = torch.empty(0, device="meta")
            out: Any = (torch.empty_like(args[0]), none, none)
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tensors_in((args, kwargs, out)):
            storage = tensor.untyped_storage()
            if tensor.is_floating_point() and storage not in self._resident:
                self.bytes.setdefault(storage, storage.nbytes())
                self.first.setdefault(storage, self._step)
                self.last[storage] = self._step
        self._step += 1
        return out


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def peak(sizes: Iterable[int], lives: Iterable[tuple[int, int]]) -> int:
    """The largest sum of ``sizes`` that are alive at one step; each lives from its first to its last step."""
    change: Counter[int] = Counter()
    for size, (first, last) in zip(sizes, lives, strict=True):
        change[first] += size
        change[last + 1] -= size
    now = most = 0
    for step in sorted(change):
        now += change[step]
        most = max(most, now)
    return most
