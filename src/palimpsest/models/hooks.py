"""Reading and changing what flows through a site. The one place that knows tuple outputs from tensor outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from palimpsest.models.linear import cut_output

if TYPE_CHECKING:
    from palimpsest.models.architecture import Sites


@dataclass(frozen=True)
class Point:
    """A place in the forward pass: what a site of a layer reads (`input`) or writes (`output`)."""

    site: str
    layer: int | None = None
    side: Literal["input", "output"] = "output"


Change = Callable[[Tensor], Tensor]


@contextmanager
def captured(sites: Sites, points: list[Point]) -> Iterator[dict[Point, Tensor]]:
    """Inside the block every forward pass leaves the tensors of the points, (batch, tokens, width), in the dict."""
    found: dict[Point, Tensor] = {}
    with ExitStack() as stack:
        for point in points:
            part = None if point.layer is None else sites.part(point.site)

            def keep(tensor: Tensor, *, point: Point = point, part: Any = part) -> None:
                whole = point.side == "input" or part is None
                found[point] = tensor if whole else cut_output(tensor, part.index, part.of)

            stack.callback(_attach(sites.module(point.site, point.layer), point.side, keep).remove)
        yield found


@contextmanager
def intervened(sites: Sites, changes: Mapping[Point, Change]) -> Iterator[None]:
    """Inside the block the tensors of the points are replaced by what the functions return.

    A function gets the whole tensor, (batch, tokens, width), and returns one of the same shape; it must not change
    its argument in place.
    """
    with ExitStack() as stack:
        for point, change in changes.items():
            stack.callback(_attach(sites.module(point.site, point.layer), point.side, change).remove)
        yield


def first_tensor(output: Any) -> Tensor:
    """The hidden states in a block's output, be it a tensor or a tuple that begins with one."""
    tensor = output[0] if isinstance(output, tuple) else output
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a tensor or a tuple of tensors, found {type(tensor).__name__}")
    return tensor


def _attach(module: nn.Module, side: str, function: Callable[[Tensor], Tensor | None]) -> Any:
    """A hook on one side; what the function returns, if anything, takes the place of the tensor."""
    if side == "input":

        def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                result = function(args[0])
                return None if result is None else ((result, *args[1:]), kwargs)
            result = function(kwargs["hidden_states"])
            return None if result is None else (args, {**kwargs, "hidden_states": result})

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        result = function(first_tensor(output))
        if result is None:
            return None
        return (result, *output[1:]) if isinstance(output, tuple) else result

    return module.register_forward_hook(after)
