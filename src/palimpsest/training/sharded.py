"""Training over several processes: each holds a share of the trained weights' masters and of the optimiser's state.

The model itself is not wrapped. A twin of it, with the same modules and buffers but parameters of its own, is sharded
by torch's `fully_shard` (FSDP2) and stands in its place for as long as it is trained, so that leaving is forgetting the
twin.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from palimpsest import processes
from palimpsest.errors import ConfigError
from palimpsest.models import EditableModel, whole_tensor
from palimpsest.models.sites import layer_of
from palimpsest.patches import Dense
from palimpsest.training.constraint import NO_BALL, NOTHING_SPARED, Ball, held, project, spare
from palimpsest.training.steps import owner, unit_of_step

P = ParamSpec("P")
T = TypeVar("T")


class ShardedCopies:
    """`TrainingCopies` whose float32 masters, gradients and optimiser state are cut along their first axis.

    Every process has the whole base model. It is not touched: while the block runs, `model.module` is the twin.

    Arguments:
        names: canonical names of the parameters to train.
        constraint: as in `TrainingCopies`; the ball is that of the whole tensor.

    Raises `ConfigError` when the trained weights are of several dtypes or the model is wrapped by hooks, `ModelError`
    when a weight is offloaded.
    """

    def __init__(
        self,
        model: EditableModel,
        names: Sequence[str],
        *,
        ball: Ball = NO_BALL,
        spared: Mapping[str, Tensor] = NOTHING_SPARED,
    ) -> None:
        model.weights.require_present(names)
        _require_unwrapped(model.module)
        self._model = model
        self._base = model.module
        self._names = list(names)
        self._ball = ball
        self._spared = spared
        self._mesh = init_device_mesh(model.device.type, (processes.count(),))
        self._root: nn.Module | None = None
        self._masters: dict[str, Any] = {}

    def __enter__(self) -> ShardedCopies:
        policy = self._policy()
        same = {id(one): nn.Parameter(one.data, requires_grad=False) for one in self._base.parameters()}
        twin = twin_of(self._base, same)
        trained = self._names_under_blocks()
        frozen = {same[key] for key in same.keys() - {id(one) for name in self._names for one in self._tied(name)}}
        root = _Root(twin)
        # Block by block: no more than one block's float32 masters are whole at a time.
        for path, names in trained.items():
            for name in names:
                self._put_master(twin, name)
            block = twin.get_submodule(path) if path else root
            fully_shard(block, mesh=self._mesh, mp_policy=policy, ignored_params=frozen)
        self._root = root
        self._masters = {name: twin.get_parameter(name) for name in self._names}
        self._model.module = twin
        return self

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function that computes with the trained weights; they are gathered around and inside it."""
        if self._root is None:
            raise RuntimeError("run is called outside of the block")
        result: T = self._root(partial(function, *args, **kwargs))
        return result

    def masters(self) -> list[nn.Parameter]:
        return list(self._masters.values())

    def units(self, optimizer: str) -> list[float]:
        """See `training.steps`."""
        weights = self._model.weights
        return [unit_of_step(owner(self._base, name), weights.current(name), optimizer) for name in self._names]

    @torch.no_grad()
    def before_step(self) -> None:
        """A step takes the sum over all processes' facts; what has been reduced is their mean."""
        for master in self._masters.values():
            if master.grad is not None:
                master.grad.mul_(processes.count())

    @torch.no_grad()
    def after_step(self) -> None:
        """Applies the constraint."""
        for name, master in self._masters.items():
            basis = self._spared.get(layer_of(name))
            radius = self._ball.radius_of(self._model.weights.current(name))
            if basis is not None:
                base = self._model.weights.current(name).float()
                directions = partial(spare, basis=basis, module=owner(self._base, name))
                change = held(whole_tensor(master) - base, directions, self._ball, radius) + base
                master.copy_(distribute_tensor(change, self._mesh, [Shard(0)], src_data_rank=None))
            elif self._ball.constraint != "none":
                start = self._start(name)
                master.copy_(start + project(master - start, self._ball.constraint, radius))

    @torch.no_grad()
    def deltas(self) -> dict[str, Dense]:
        """How far each parameter has moved, in float32, every process keeping its share; see `placement.whole`."""
        moved = {name: master.detach() - self._start(name) for name, master in self._masters.items()}
        return {name: Dense(delta) for name, delta in moved.items() if whole_tensor(delta.any())}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.module = self._base
        self._root = None
        self._masters = {}

    def _policy(self) -> MixedPrecisionPolicy:
        """Computes in the weights' own dtype and adds up gradients in float32."""
        dtypes = {self._model.weights.current(name).dtype for name in self._names}
        if len(dtypes) > 1:
            raise ConfigError(
                "The trained weights are of several dtypes.",
                expected="one dtype, when several processes train them",
                found=", ".join(sorted(map(str, dtypes))),
                remedy="load the model with one dtype (--dtype), or start one process",
            )
        (dtype,) = dtypes
        return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def _names_under_blocks(self) -> dict[str, list[str]]:
        """The trained parameters by the block they are in, and under "", which comes last, those in none."""
        sites = self._model.sites
        counts = {"encoder": sites.num_encoder_layers, "decoder": sites.num_layers}
        blocks = {id(sites.block(layer, stack)) for stack, count in counts.items() for layer in range(count)}
        paths = [path for path, module in self._base.named_modules() if id(module) in blocks]
        left, found = list(self._names), {}
        for path in paths:
            inside = [name for name in left if name.startswith(f"{path}.")]
            if inside:
                found[path] = inside
                left = [name for name in left if name not in inside]
        return {**found, "": left}

    def _put_master(self, twin: nn.Module, name: str) -> None:
        # One object under all the names that are tied: that is how FSDP knows them as one.
        master = nn.Parameter(self._model.weights.current(name).float())
        tied = {id(one) for one in self._tied(name)}
        for alias, parameter in self._base.named_parameters(remove_duplicate=False):
            if id(parameter) in tied:
                owner, _, kind = alias.rpartition(".")
                setattr(twin.get_submodule(owner), kind, master)

    def _tied(self, name: str) -> list[nn.Parameter]:
        return self._model.weights.parameters(name)

    def _start(self, name: str) -> Tensor:
        """The share of a parameter's value before training that belongs to this process."""
        base = self._model.weights.current(name)
        return distribute_tensor(base, self._mesh, [Shard(0)], src_data_rank=None).float()


class _Root(nn.Module):
    """A module whose forward pass is whatever is called inside it, so that all of it is inside FSDP's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[], T]) -> T:
        return function()


def _require_unwrapped(module: nn.Module) -> None:
    # Such a forward is bound to the module it was put on, and would go on to use that one's weights.
    wrapped = [name for name, one in module.named_modules() if "forward" in vars(one)]
    if wrapped:
        raise ConfigError(
            "A model with hooks cannot be shared by several processes.",
            expected="a model on one device, as palimpsest.load gives it without a device map",
            found=f"a forward pass that was replaced, in {wrapped[0] or 'the model itself'}",
            remedy="load it without a device map, or start one process",
        )


def twin_of(module: nn.Module, parameters: dict[int, nn.Parameter], made: dict[int, nn.Module] | None = None) -> Any:
    """A module with the same submodules' types, settings, hooks and buffers, and other parameters. Copies no tensor.

    Arguments:
        parameters: from the identity of each parameter to the one that takes its place.
        made: twins there are already, by the identity of what they are twins of.
    """
    made = {} if made is None else made
    if id(module) in made:
        return made[id(module)]
    twin = made[id(module)] = copy.copy(module)
    for attribute, value in vars(module).items():
        # Hooks and buffers are kept in dictionaries, and what is hung on the twin must not hang on the model.
        if isinstance(value, dict):
            setattr(twin, attribute, copy.copy(value))
    for name, parameter in module._parameters.items():
        twin._parameters[name] = None if parameter is None else parameters[id(parameter)]
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else twin_of(child, parameters, made)
    return twin
