"""A device for tests without a GPU: its tensors lie in the host's memory, but mixing them with the host's is an error, as on a GPU.

It goes by the name of torch's device "meta", whose own tensors have no data: autograd knows that name in every build of torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
_aten = torch.ops.aten
#: These take tensors of two devices; a GPU is indexed by the host's numbers too.
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class _There(torch.Tensor):
    """A tensor on the device; ``here`` is the one of the host that holds its data."""

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> _There:
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, here.size(), device=DEVICE, requires_grad=here.requires_grad, **layout)

    def __init__(self, here: torch.Tensor) -> None:
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    """Compute an operation on the host, for tensors that are all there or all here; single numbers may come from the host."""
    values, shape = tree_flatten((args, kwargs))
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _There)]
    here = [tensor for tensor in tensors if not isinstance(tensor, _There) and tensor.dim()]
    indexed = operation in _INDEXED and isinstance(args[0], _There)
    if there and here and operation not in _COPIES and not indexed:
        raise RuntimeError(f"{operation} of the device is given tensors of the host of shapes {[tuple(t.shape) for t in here]}")
    goes_there = bool(there)
    if operation is _aten.copy_.default:
        goes_there = isinstance(args[0], _There)
    elif kwargs.get("device") is not None:
        goes_there = torch.device(kwargs["device"]) == DEVICE
        values = [torch.device("cpu") if value is kwargs["device"] else value for value in values]
    host_args, host_kwargs = tree_unflatten([v.here if isinstance(v, _There) else v for v in values], shape)
    known = {id(tensor.here): tensor for tensor in there}  # an operation in place gives back its argument

    def back(value):
        if not isinstance(value, torch.Tensor) or not goes_there:
            return value
        return known[id(value)] if id(value) in known else _There(value)

    return tree_map(back, operation(*host_args, **host_kwargs))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """torch.tensor and tolist move numbers where no dispatch mode sees it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return function(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if function is torch.Tensor.tolist and isinstance(args[0], _There):
            return args[0].cpu().tolist()
        return function(*args, **kwargs)


@contextlib.contextmanager
def second_device() -> Iterator[torch.device]:
    """Inside it the device exists, and ``.to(device)`` and ``.cpu()`` move tensors."""
    with _Constructors(), _Operations():
        yield DEVICE
