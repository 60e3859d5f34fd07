"""A stand-in for a device without float64, as Apple's MPS: the CPU, with tensors that are marked as lying there.

Inside `NoFloat64()` tensors come to the device by `to(DEVICE)` or `device=DEVICE`, spread to whatever is computed of
them, backward passes included, and leave it by `cpu()`. An operation that takes or makes float64 there raises
TypeError as MPS does, and so does NumPy's reading of a tensor that is still there.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cpu", 0)  # not equal to torch.device("cpu"), and as good for computing


def on_device(tensor):
    return hasattr(tensor.untyped_storage(), "on_device")  # a storage keeps its attributes as long as it lives


def mark(tensor):
    if tensor.dtype == torch.float64:
        raise TypeError("the stand-in device has no float64")
    tensor.untyped_storage().on_device = True
    return tensor


class _Spread(TorchDispatchMode):
    """What is computed of a tensor on the device lies there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        copied = func.__name__ == "copy_.default"  # stays where it is
        if any(map(on_device, tensors[:1] if copied else tensors)):
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    mark(leaf)
        return out


class NoFloat64(TorchFunctionMode):
    """See the module's first lines. `seen`: how many tensors came to the device, and left it."""

    def __init__(self):
        super().__init__()
        self.spread, self.came, self.left = _Spread(), 0, 0

    def __enter__(self):
        self.spread.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        return self.spread.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.cpu and on_device(args[0]):
            return self._leave(args[0])
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and on_device(args[0]):
            raise TypeError("can't convert a tensor on the stand-in device to NumPy")
        if func == torch.Tensor.device.__get__:
            return DEVICE if on_device(args[0]) else torch.device("cpu")
        asked = next((one for one in (*args[1:], kwargs.get("device")) if isinstance(one, torch.device)), None)
        if func is torch.Tensor.to and asked is not None:
            return self._moved(args, kwargs, asked)
        out = func(*args, **kwargs)
        if asked == DEVICE and isinstance(out, torch.Tensor):
            self.came += 1
            mark(out)
        return out

    def _leave(self, tensor):
        self.left += 1
        out = tensor.clone()
        del out.untyped_storage().on_device
        return out

    def _moved(self, args, kwargs, asked):
        """`to` with a device: what changes its place is a copy."""
        tensor, there = args[0], on_device(args[0])
        if there and asked != DEVICE:
            tensor = self._leave(tensor)
        out = tensor.to(*args[1:], **kwargs)
        if asked == DEVICE and not there:
            self.came += 1
            out = mark(out.clone() if out.untyped_storage() is tensor.untyped_storage() else out)
        return out
