"""Several models of one architecture as one: the seeds of a 2D density train side by side.

Small networks spend their time on calling, not on computing; a stack of S calls once and multiplies S matrices.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_map

from fce import parallel

State = dict[str, Tensor]
LARGE = 500  # points: without gradients, so many fill the caches of one core; models then take turns


class Method(nn.Module):
    """A module whose methods can be called by name, as functional_call needs it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, method: str, *x: Tensor) -> Any:
        return getattr(self.model, method)(*x)


class Stack:
    """S models; arguments and results of their methods have a leading dimension S.

    The parameters of several models are tensors [S, ...]; a single model is called as it is, with its own.

    Args:
        models: of the same architecture, on the same device.
        compiled: whether calls that learn are compiled, and on a GPU replayed as CUDA graphs; of a single model only.
    """

    graphs = "reduce-overhead"  # torch.compile's mode that replays CUDA graphs

    def __init__(self, models: list[Any], compiled: bool = False):
        self.models, self.size, self.first = models, len(models), models[0]
        self.compiled: dict[str, Any] | None = {} if compiled else None
        if self.size == 1:
            self.parameters: State = dict(self.first.named_parameters())
            self.buffers: State = dict(self.first.named_buffers())
        else:
            self.parameters, buffers = stack_module_state(models)  # frozen parameters stay frozen
            # flags are alike in all models, and vmap can't branch on them
            self.buffers = {name: b for name, b in buffers.items() if b.dtype != torch.bool}
            for i, model in enumerate(models):  # each model lives on as a view: called alone, it costs no copying
                for name, own in (*model.named_parameters(), *model.named_buffers()):
                    if name in self.parameters or name in self.buffers:
                        own.data = self.state_dict()[name].detach()[i]
        self.learned = {name: p for name, p in self.parameters.items() if p.requires_grad}

    def __call__(self, method: str, *x: Tensor) -> Any:
        if self.size == 1:
            return tree_map(lambda result: result[None], self.single(method)(*(each[0] for each in x)))
        module = Method(self.first)

        def single(state: State, *x: Tensor) -> Any:
            return functional_call(module, {f"model.{name}": value for name, value in state.items()}, (method, *x))

        if x and x[0].shape[1] >= LARGE and not torch.is_grad_enabled():
            results = [getattr(model, method)(*(part[i] for part in x)) for i, model in enumerate(self.models)]
            return tree_map(lambda *turns: torch.stack(turns), *results)
        return vmap(single)(self.state_dict(), *x)

    def single(self, method: str) -> Any:
        """A method of the single model; what is called without gradients has many shapes, and isn't compiled."""
        call = getattr(self.first, method)
        if self.compiled is None or not torch.is_grad_enabled():
            return call
        if method not in self.compiled:
            on_gpu = next(iter(self.state_dict().values())).is_cuda
            self.compiled[method] = torch.compile(call, dynamic=False, mode=self.graphs if on_gpu else "default")
        return self.compiled[method]

    def begin_step(self) -> None:
        """Tell CUDA graphs that a step begins; where there are none, that would load the compiler, for seconds."""
        if self.compiled is not None:
            torch.compiler.cudagraph_mark_step_begin()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities [S, B] in nats at x [S, B, ...]."""
        result: Tensor = self("log_prob", x)
        return result

    def state_dict(self) -> State:
        """All parameters and buffers; of several models stacked."""
        return {**self.parameters, **self.buffers}

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def split(self, state: State) -> list[State]:
        """The states of the single models, as their load_state_dict takes them, on the CPU."""
        whole = {name: value.detach().cpu() for name, value in state.items()}
        if self.size == 1:
            return [{name: value.clone() for name, value in whole.items()}]
        flags = {name: value for name, value in self.first.state_dict().items() if name not in whole}
        return [{**flags, **{name: value[i].clone() for name, value in whole.items()}} for i in range(self.size)]

    def backward(self, loss: Tensor) -> None:
        """Set the gradients of the sum of loss [S], a mean over the processes that share a minibatch.

        Those of the models that it passes through stay as they are.
        """
        gradients = parallel.average(list(torch.autograd.grad(loss.sum(), list(self.learned.values()))))
        for parameter, gradient in zip(self.learned.values(), gradients, strict=True):
            # Fused optimisers walk through memory: a gradient must lie there as its parameter does. And what a CUDA
            # graph gave is overwritten when it runs again, which the compiler refuses to see in a parameter's gradient
            alike = gradient.stride() == parameter.stride() and self.compiled is None
            parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)

    @torch.no_grad()
    def clip(self, limit: float, but: Iterable[str] = ()) -> Tensor:
        """Scale each model's gradient down to norm `limit`; returns the norms [S] before. `but` is left as it is."""
        gradients = [p.grad for name, p in self.learned.items() if p.grad is not None and name not in but]
        if self.size == 1:
            norms = torch.nn.utils.get_total_norm(gradients)[None]
        else:
            norms = torch.cat([gradient.reshape(self.size, -1) for gradient in gradients], 1).norm(dim=1)
        if norms.is_cuda or (norms > limit).any():  # to look would stop a GPU for longer than to multiply by 1
            scale = (limit / norms).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(scale[0] if self.size == 1 else scale.view(-1, *([1] * (gradient.dim() - 1))))
        return norms
