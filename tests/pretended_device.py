"""A CUDA device that is not there: tensors in RAM that say cuda:0, and refuse to meet tensors that do not.

Every operation below autograd and torch.func runs on the CPU, after a check that all its tensors are on one device, as
CUDA would check it: a CPU tensor with one number, or as an index, may stand beside CUDA tensors; a CPU generator may
not. What only a GPU has (kernels, streams, memory) is not tested by this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
JOINED = {aten.cat.default, aten.stack.default}


class MixedDevicesError(AssertionError):
    """Tensors of two devices meet: a CUDA device would refuse it. No RuntimeError, which might be caught."""


class PretendedTensor(Tensor):
    """A tensor in RAM that says cuda:0."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        """Return a tensor without memory of its own."""
        where = dict(strides=inner.stride(), storage_offset=inner.storage_offset()) if not inner.is_sparse else {}
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, layout=inner.layout, **where)

    def __init__(self, inner: Tensor):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class PretendedGenerator(torch.Generator):
    """A CPU generator that says where it was asked to be."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.pretended = torch.device(device)
        return made

    def __init__(self, device="cpu"):
        super().__init__()

    @property
    def device(self):
        return CUDA if self.pretended.type == "cuda" else CPU


class PretendedDevice(TorchDispatchMode):
    """Run factory functions with device=cuda:0, and copies to and from it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    _check(func, args, kwargs)
    device = kwargs.get("device")
    on_cpu = kwargs | ({"device": CPU} if device is not None else {})
    found = func(*tree_map(_inner, args), **tree_map(_inner, on_cpu))
    changed = _changed(func, args, kwargs)
    if changed is not None:
        return changed
    among_them = any(isinstance(leaf, PretendedTensor) for leaf in tree_leaves((args, kwargs)))
    # with a dtype it is the derivative of a conversion, which autograd takes back to where it takes the tensor to be
    if func is aten._to_copy.default and device is not None and kwargs.get("dtype") is None:
        pretended = torch.device(device).type == "cuda"
    else:  # compiled code that asks for a tensor like another one sees that the other is in RAM
        pretended = among_them or (device is not None and torch.device(device).type == "cuda")
    if not pretended:
        return found
    return tree_map(lambda x: PretendedTensor(x) if isinstance(x, Tensor) else x, found)


def _changed(func, args, kwargs):
    """Return the arguments that an operation changes in place and returns; None where it does neither."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    returned = {alias for result in func._schema.returns if result.alias_info for alias in result.alias_info.before_set}
    written = [
        named[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info and argument.alias_info.is_write and argument.alias_info.before_set & returned
    ]
    if not written:
        return None
    return written[0] if len(written) == 1 else tuple(written)


def _inner(value):
    return value.inner if isinstance(value, PretendedTensor) else value


def _check(func, args, kwargs) -> None:
    if func in COPIES:
        return
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_cuda = [isinstance(leaf, PretendedTensor) for leaf in leaves]
    if func in INDEXED and on_cuda[0]:
        return
    if not any(on_cuda) or all(on_cuda):
        return
    alone = [leaf for leaf, there in zip(leaves, on_cuda, strict=True) if not there]
    if func in JOINED or any(leaf.ndim > 0 for leaf in alone):
        places = [f"{tuple(leaf.shape)} on {leaf.device}" for leaf in leaves]
        raise MixedDevicesError(f"{func}: {', '.join(places)}")


def _to_cpu(tensor: Tensor) -> Tensor:
    return aten._to_copy.default(tensor, device=CPU) if _is_pretended(tensor) else tensor


def _is_pretended(tensor: Tensor) -> bool:
    """Whether a tensor, or the one that torch.func has wrapped, is pretended."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return isinstance(tensor, PretendedTensor)


_METHODS = {name: getattr(Tensor, name) for name in ("to", "cpu", "tolist", "numpy", "data_ptr")}


def _to(tensor: Tensor, *args, **kwargs) -> Tensor:
    if not _is_pretended(tensor):
        return _METHODS["to"](tensor, *args, **kwargs)
    # compiled code would see that the tensor is in RAM, and leave it there
    if args and isinstance(args[0], Tensor):
        device, dtype = args[0].device, args[0].dtype
    else:
        device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2]
    there = _to_cpu(tensor) if device is not None and device.type == "cpu" else tensor
    return there if dtype is None else _METHODS["to"](there, dtype)


def _numpy(tensor: Tensor, **kwargs):
    if _is_pretended(tensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return _METHODS["numpy"](tensor, **kwargs)


_make_sparse = torch.sparse_coo_tensor


def _sparse_coo_tensor(indices: Tensor, values: Tensor, size: tuple[int, ...], **kwargs) -> Tensor:
    """Return a sparse tensor, whose check of its indices would read memory that a pretended one has not."""
    if isinstance(indices, PretendedTensor) != isinstance(values, PretendedTensor):
        raise MixedDevicesError(f"sparse tensor: indices on {indices.device}, values on {values.device}")
    made = _make_sparse(_inner(indices), _inner(values), size, **kwargs)
    return PretendedTensor(made) if isinstance(values, PretendedTensor) else made


def _drawing(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function of torch that draws numbers, and refuses a generator of another device."""

    @functools.wraps(draw)
    def checked(*args, **kwargs):
        generator, device = kwargs.get("generator"), torch.device(kwargs.get("device") or CPU)
        if generator is not None and generator.device.type != device.type:
            raise MixedDevicesError(f"{draw.__name__} on {device} with a generator on {generator.device}")
        return draw(*args, **kwargs)

    return checked


@contextmanager
def pretended_device() -> Iterator[None]:
    """Pretend inside the block that there is one CUDA device; torch is as it was afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "pretended")
        patch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
        patch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
        device, is_cuda = Tensor.device, Tensor.is_cuda
        patch.setattr(Tensor, "device", property(lambda x: CUDA if _is_pretended(x) else device.__get__(x)))
        patch.setattr(Tensor, "is_cuda", property(lambda x: _is_pretended(x) or is_cuda.__get__(x)))
        patch.setattr(torch, "sparse_coo_tensor", _sparse_coo_tensor)
        patch.setattr(Tensor, "cpu", _to_cpu)
        patch.setattr(Tensor, "to", _to)
        patch.setattr(Tensor, "numpy", _numpy)
        patch.setattr(Tensor, "tolist", lambda x: _METHODS["tolist"](_to_cpu(x)))
        patch.setattr(
            Tensor, "data_ptr", lambda x: _METHODS["data_ptr"](x.inner if isinstance(x, PretendedTensor) else x)
        )
        patch.setattr(torch, "Generator", PretendedGenerator)
        for name in ("rand", "randn", "randint", "randperm"):
            patch.setattr(torch, name, _drawing(getattr(torch, name)))
        # model.to() would give a parameter the data of a pretended tensor, but not its class
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        # threads of other devices, which the engine would hand work to, do not exist
        with torch.autograd.set_multithreading_enabled(False), PretendedDevice():
            yield
