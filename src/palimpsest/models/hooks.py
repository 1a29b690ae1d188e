"""Reading and changing what flows through a site. The one place that knows tuple outputs from tensor outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from palimpsest.models.sites.architecture import Sites
from palimpsest.models.sites.experts import is_experts
from palimpsest.models.sites.linear import weight_as_out_in
from palimpsest.models.sites.passing import first_input, first_tensor, read_by


@dataclass(frozen=True)
class Point:
    """A place in the forward pass: what a site of a layer reads (`input`) or writes (`output`)."""

    site: str
    layer: int | None = None
    side: Literal["input", "output"] = "output"


Intervention = Callable[[Tensor], Tensor]


class _Reached(Exception):  # no error: it ends a forward pass of which nothing more is wanted
    """Every wanted point has been reached."""


@contextmanager
def captured(sites: Sites, points: Sequence[Point], *, stops: bool = False) -> Iterator[dict[Point, Tensor]]:
    """Inside the block every forward pass leaves the tensors of the points, (batch, tokens, width), in the dict.

    Arguments:
        stops: the first forward pass ends, and the block with it, as soon as every point has been reached, so that
            nothing above the deepest one is computed.
    """
    found: dict[Point, Tensor] = {}
    with ExitStack() as stack:
        for point in points:
            is_whole = point.side == "input" or point.layer is None

            def keep(tensor: Tensor, *, point: Point = point, is_whole: bool = is_whole) -> None:
                found[point] = tensor if is_whole else sites.cut(point.site, tensor)
                if stops and len(found) == len(points):
                    raise _Reached

            _attach(stack, sites, point, keep)
        try:
            yield found
        except _Reached:
            return


@contextmanager
def intervened(sites: Sites, changes: Mapping[Point, Intervention]) -> Iterator[None]:
    """Inside the block the tensors of the points are replaced by what the functions return.

    A function gets the whole tensor, (batch, tokens, width), and returns one of the same shape; it must not change
    its argument in place.
    """
    with ExitStack() as stack:
        for point, change in changes.items():
            _attach(stack, sites, point, change)
        yield


@dataclass(frozen=True, eq=False)
class Attachment:
    """Hooks that stay until they are removed."""

    stack: ExitStack

    def remove(self) -> None:
        """Takes the hooks off."""
        self.stack.close()


def attach(sites: Sites, functions: Mapping[Point, Callable[[Tensor], Tensor | None]]) -> Attachment:
    """Lets functions see the tensors of the points, (batch, tokens, width), and replace them by what they return.

    A function that returns `None` leaves its tensor as it is.
    """
    with ExitStack() as stack:
        for point, function in functions.items():
            _attach(stack, sites, point, function)
        return Attachment(stack.pop_all())


def _attach(stack: ExitStack, sites: Sites, point: Point, function: Callable[[Tensor], Tensor | None]) -> None:
    """A hook at a point, for as long as the stack; what the function returns, if anything, replaces the tensor."""
    module = sites.module(point.site, point.layer)
    leading: list[tuple[int, ...]] = []
    block = None if point.layer is None else sites.block(point.layer, sites.locate(point.site)[0])
    if block is not None and module is not block:

        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            leading[:] = [tuple(first_input(args, kwargs).shape[:2])]

        stack.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)

    def call(tensor: Tensor) -> Tensor | None:
        if tensor.ndim != 2 or not leading:
            return function(tensor)
        # Some blocks run their MLP on (batch * tokens, width); who looks in from outside always sees three axes.
        result = function(tensor.reshape(*leading[0], tensor.shape[-1]))
        return None if result is None else result.flatten(0, 1)

    if point.side == "output":
        stack.callback(_output_hook(module, call).remove)
    elif is_experts(module):
        for hook in _keys_hooks(module, call):
            stack.callback(hook.remove)
    else:
        stack.callback(_input_hook(module, call).remove)


def _input_hook(module: nn.Module, call: Callable[[Tensor], Tensor | None]) -> Any:
    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        result = call(first_input(args, kwargs))
        if result is None:
            return None
        return ((result, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": result})

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _keys_hooks(module: nn.Module, call: Callable[[Tensor], Tensor | None]) -> tuple[Any, Any]:
    """Of experts: the keys are computed beside the model, and what changes of them is added to what it wrote."""
    change: list[Tensor | None] = [None]

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        keys = read_by(module, args, kwargs)
        result = call(keys)
        change[0] = None if result is None else result - keys

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        if change[0] is None:
            return None
        weight = weight_as_out_in(module)
        added: Tensor = change[0].to(weight.dtype) @ weight.t()
        return output + added.to(output.dtype)

    return module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)


def _output_hook(module: nn.Module, call: Callable[[Tensor], Tensor | None]) -> Any:
    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        tensor = first_tensor(output)
        result = call(tensor)
        # The model goes on with a copy: some add to this tensor in place, which must not reach what was captured.
        handed = (tensor if result is None else result).clone()
        return (handed, *output[1:]) if isinstance(output, tuple) else handed

    return module.register_forward_hook(after)
