"""Activation memory: which tensors of a forward pass live at the same time.

`Alive` watches one pass and notes for each storage its bytes and its first and last operation;
`peak` of these is what the pass needs beside the weights.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Watches a forward pass and notes, for each storage, the operations that touch it.

    Storages, not tensors: views and in-place results share their source's. Integer tensors (the
    indices of max pooling) are left out, for no runtime keeps them.
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
            # Its kernel for shapes is decomposed in Python and takes most of a ResNet's time.
            none = torch.empty(0, device="meta")
            out: Any = (torch.empty_like(args[0]), none, none)
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in _tensors_in((args, kwargs, out)):
            storage = tensor.untyped_storage()
            if tensor.is_floating_point() and storage not in self._resident:
                self.bytes.setdefault(storage, storage.nbytes())
                self.first.setdefault(storage, self._step)
                self.last[storage] = self._step
        self._step += 1
        return out


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def peak(sizes: Iterable[int], lives: Iterable[tuple[int, int]]) -> int:
    """The largest sum of ``sizes`` that live at one step; a life is (first, last), inclusive."""
    change: Counter[int] = Counter()
    for size, (first, last) in zip(sizes, lives, strict=True):
        change[first] += size
        change[last + 1] -= size
    now = most = 0
    for step in sorted(change):
        now += change[step]
        most = max(most, now)
    return most
