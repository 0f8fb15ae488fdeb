"""A second device without hardware:
tensors that say they are on a GPU compute on the CPU and refuse to meet tensors of the host.

Inside :func:`second_device` the study's own :func:`kdnb.device.best_device` is that device. An operation that mixes
both sides, as a GPU would refuse to, raises :class:`MixedDevicesError`; whatever has the host wait for a GPU is
counted: reads of single values (``.item()``, ``if tensor:``), results whose size only the values tell (masks as index),
copies to the host, and copies to the device that do not travel by themselves. ``launches`` counts the operations
themselves, of which a GPU has as many to start.
"""

import sys
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule

torch._register_device_module("privateuseone", _DummyBackendModule())
DEVICE = torch.device("privateuseone", 0)


class MixedDevicesError(Exception):
    """Tensors of two devices met, or work stayed on the host."""


class OnDevice(Tensor):
    """A tensor that says it is on :data:`DEVICE`; ``elem`` holds its values.
    To torch's own core it is on the CPU, where autograd runs."""

    @staticmethod
    def __new__(cls, elem: Tensor):
        layout = {"strides": elem.stride(), "storage_offset": elem.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls, elem.shape, dtype=elem.dtype, device=elem.device, requires_grad=False, **layout
        )

    def __init__(self, elem: Tensor):
        self.elem = elem

    @property
    def device(self) -> torch.device:
        return DEVICE

    def to(self, *args, **kwargs) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args, kwargs = (), {"device": args[0].device, "dtype": args[0].dtype}
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            return aten._to_copy.default(self, dtype=dtype, device=device)
        return self if dtype is None else super().to(dtype)

    def cpu(self) -> Tensor:
        return self.to(torch.device("cpu"))

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self, **options) -> str:
        return f"OnDevice{tuple(self.shape)}"

    def numpy(self, **options):
        raise MixedDevicesError("numpy cannot read from a device: call .cpu() first")

    def __array__(self, *arguments, **options):
        raise MixedDevicesError("numpy cannot read from a device: call .cpu() first")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {}, None)


class Watch(TorchDispatchMode):
    """Sends every operation through :func:`compute`,
    and counts what the host reads from the device and what it sends there."""

    def __init__(self):
        super().__init__()
        self.values_read = self.copies_to_host = self.copies_to_device = self.sizes_read = self.launches = 0

    @property
    def waits(self) -> int:
        """How often the host waited for the device."""
        return self.values_read + self.copies_to_host + self.copies_to_device + self.sizes_read

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {}, self)


aten = torch.ops.aten
MAY_MIX = {aten._to_copy.default, aten.copy_.default}
# Autograd asks so for the gradient's own device, as core has it.
BY_CORE = {aten.new_empty_strided.default, aten.clone.default}
# vmap's core makes weights of one for it where it takes the images to be;
# where a network's own weights are, its convolutions tell.
WEIGHTS_OF_CORE = {aten.native_batch_norm.default, aten.native_batch_norm_backward.default}
# What these return is as large as the values say, which a GPU has to tell the host.
SIZED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
MASKED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


def _made_by_core(func) -> bool:
    """Whether torch itself made a tensor that goes in, on what it takes for the others' device:
    here, and not on a GPU, another one."""
    of_autograd = torch._C._current_graph_task_id() != -1
    return func in WEIGHTS_OF_CORE or (of_autograd and func is aten.index_put.default)


def _sized_by_values(func, args) -> bool:
    """Whether the host has to wait for the size of the result."""
    return func in SIZED_BY_VALUES or (
        func in MASKED and any(at is not None and at.dtype in (torch.bool, torch.uint8) for at in args[1])
    )


def compute(func, args, kwargs, watch):
    """``func`` on the values, its result on the side where its tensors are."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    inside = [isinstance(value, OnDevice) for value in tensors]
    target = None if func in BY_CORE else kwargs.get("device")
    target = None if target is None else torch.device(target)
    if func in MAY_MIX:
        inside = inside[:1]
    # A GPU takes a single number of the host beside its own tensors, and an index, which it waits for.
    elif func is aten.index.Tensor and inside[0] and not all(inside):
        sent = sum(not on_device and value.ndim > 0 for on_device, value in zip(inside, tensors, strict=True))
        inside = inside[:1]
        if watch is not None:
            watch.copies_to_device += sent
    elif (
        not _made_by_core(func)
        and any(inside)
        and any(not on_device and value.ndim for on_device, value in zip(inside, tensors, strict=True))
    ):
        sides = [
            ("device" if on_device else "host", tuple(value.shape))
            for on_device, value in zip(inside, tensors, strict=True)
        ]
        raise MixedDevicesError(f"{func} got tensors of both devices: {sides}")
    result_on_device = any(inside) if target is None else target.type == DEVICE.type
    if watch is not None and any(inside):
        watch.values_read += func is aten._local_scalar_dense.default
        watch.copies_to_host += func is aten._to_copy.default and not result_on_device
        watch.sizes_read += _sized_by_values(func, args)
        watch.launches += not func.is_view
    if watch is not None and not any(inside) and result_on_device and func is aten._to_copy.default:
        watch.copies_to_device += not kwargs.get("non_blocking", False)
    if kwargs.get("device") is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    plain_args, plain_kwargs = tree_map_only(OnDevice, lambda value: value.elem, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if not result_on_device:
        return result
    wrapped = tree_map_only(Tensor, lambda value: value if isinstance(value, OnDevice) else OnDevice(value), result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if any(inside) else wrapped


@contextmanager
def second_device():
    """Everything that asks where to compute is told :data:`DEVICE`; yields the :class:`Watch`."""
    import kdnb.bench.gpu  # noqa: F401 - and with it whoever asks

    swap = mock.patch.object
    with ExitStack() as stack:
        for module in [
            module for name, module in sys.modules.items() if name.startswith("kdnb") and hasattr(module, "best_device")
        ]:
            stack.enter_context(swap(module, "best_device", lambda: DEVICE))
        stack.enter_context(swap(torch.Tensor, "to", _to))
        stack.enter_context(swap(torch, "tensor", _tensor))
        stack.enter_context(swap(torch, "arange", _arange))
        stack.enter_context(swap(torch, "as_tensor", _as_tensor))
        stack.enter_context(swap(torch.Tensor, "pin_memory", lambda self: self))
        stack.enter_context(swap(torch.nn.functional, "one_hot", _one_hot))
        stack.enter_context(mock.patch.dict("os.environ", KDNB_PRECISION="float32"))
        before = torch.__future__.get_swap_module_params_on_conversion()
        # A parameter's values lie in ``elem``: .data cannot replace them.
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, before)
        watch = stack.enter_context(Watch())
        yield watch


def _one_hot(targets: Tensor, classes: int) -> Tensor:
    """torch's core makes the row of classes on what it takes for the targets' device."""
    numbers = torch.ones_like(targets)[..., None].expand(*targets.shape, classes).cumsum(-1) - 1
    return (numbers == targets[..., None]).long()


_core_to, _core_tensor, _core_as_tensor = torch.Tensor.to, torch.tensor, torch.as_tensor
_core_arange = torch.arange


def _arange(*args, device=None, **options) -> Tensor:
    """Inside ``vmap`` a tensor says what core takes for its device; whoever asks it where to count means this one."""
    return _core_arange(
        *args, device=device if torch._C._functorch.peek_interpreter_stack() is None else DEVICE, **options
    )


def _tensor(data, *, device=None, **options) -> Tensor:
    """``torch.tensor`` makes its result without asking anybody."""
    made = _core_tensor(data, **options)
    return made if device is None else made.to(device)


def _as_tensor(data, *, device=None, **options) -> Tensor:
    made = data if isinstance(data, Tensor) else _core_as_tensor(data, **options)
    return made if device is None else made.to(device)


def _to(self: Tensor, *args, **kwargs) -> Tensor:
    """``host.to(other)``: torch's core would read the device of ``other`` where it does not say the truth."""
    if args and isinstance(args[0], OnDevice):
        return _core_to(self, device=DEVICE, dtype=args[0].dtype)
    if args and isinstance(args[0], Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(args[0]):
        return _core_to(self, dtype=args[0].dtype)  # inside vmap, where both are on one side
    return _core_to(self, *args, **kwargs)
