"""A loss: its operator, its autograd functions, and how a call takes one or the other.

The forward computes the loss and, where it may be needed, the gradient, from the same pass over the
input. The backward multiplies the gradient by the upstream gradient, in place, and does nothing
where that is 1. Between the two only the gradient is kept. For float16 it is the other way round:
the input is kept, and the backward computes the gradient.

A call on plain tensors goes to `Eager`. Whatever traces or transforms (`torch.compile`,
`torch.func`, dispatch modes) meets the operator ``xentrs::NAME`` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from types import new_class
from typing import Any, NamedTuple, TypeAlias, get_type_hints
from weakref import ref

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.options import SHARED, Options, check_loss_dtype, flat, unflat
from xentrs.torch._arguments.tensors import is_dtensor
from xentrs.torch._mode import is_eager, is_plain, is_traced, wants_gradient
from xentrs.torch._operators import distributed, gradients
from xentrs.torch._operators.define import define
from xentrs.torch._operators.gradients import is_deferred, is_last, is_unscaled
from xentrs.torch._private import (
    SingleLevelFunction,
    is_batched,
    is_graph_retained,
    is_view,
    make_dual,
    unpack_dual,
)

# (call, options, with_grad, inplace) -> the loss, in the accumulator's dtype, and the gradient
Evaluate: TypeAlias = Callable[[Any, Options, bool, bool], tuple[Tensor, Tensor | None]]
# (call, options, direction) -> the derivative of the gradient in a direction
Product: TypeAlias = Callable[[Any, Options, Tensor], Tensor]


class Products(NamedTuple):
    """The second derivative, for reverse and for forward mode; it is symmetric."""

    backward: Product
    forward: Product


class Loss:
    """A loss that is differentiated in its first argument.

    Parameters
    ----------
    name
        That of the function, of the operator and of the compiled module's loss.
    arguments
        The named tuple of a call's tensors.
    cpu, gpu
        Evaluate the loss.
    product
        The second derivative, in functions of PyTorch; `products_of` makes it from a gradient.
    own
        The options that only this loss has, as in an operator's schema: ``("float gamma",)``. Their
        values are `Options.own`.
    shared
        Which options its operator has of those that several losses have.
    """

    def __init__(
        self,
        name: str,
        arguments: Any,
        *,
        cpu: Evaluate,
        gpu: Evaluate,
        product: Product | Products,
        own: tuple[str, ...] = (),
        shared: tuple[str, ...] = tuple(SHARED),
    ) -> None:
        self.name, self.arguments, self.shared = name, arguments, shared
        # Its name is what `grad_fn`, profilers and anomaly mode show.
        self.eager: Any = new_class(name.title().replace("_", ""), (Eager,))
        products = product if isinstance(product, Products) else Products(product, product)
        self.cpu, self.gpu, self.product = cpu, gpu, products.backward
        # The axis of the gradient that each sample's loss does not have.
        self.axis = 1 if hasattr(arguments, "axis") else None
        hints = get_type_hints(arguments)
        self._tensors = len(hints)
        tensors = [
            f"Tensor{'' if hint is Tensor else '?'} {field}" for field, hint in hints.items()
        ]
        options = [f"{SHARED[option]} {option}" for option in shared]
        schema = ", ".join([*tensors, *options, *own, "bool with_grad"])
        self.operator = define(
            f"{name}({schema}) -> (Tensor, Tensor)",
            self._forward,
            self._fake,
            gradients.operator_backward(self._unpack, self.gradient, products.backward),
            gradients.operator_jvp(self._unpack, self.gradient, products.forward),
        )

    def evaluate(
        self,
        call: Any,
        options: Options,
        with_grad: bool,
        inplace: bool = False,
        **summaries: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss, in the accumulator's dtype, and the gradient if wanted."""
        if not _backend.uses_triton(call.input):
            return self.cpu(call, options, with_grad, inplace, **summaries)
        # Kernels read memory as it is, and know nothing of PyTorch's negative bit.
        call = type(call)(*(None if t is None else t.resolve_neg() for t in call))
        return self.gpu(call, options, with_grad, inplace, **summaries)

    def fills_summaries(self, call: Any, inplace: bool) -> bool:
        """Whether `compute` takes `summaries`, tensors that an evaluation fills."""
        input = call.input
        return not (
            inplace
            or is_dtensor(input)
            or not (is_eager(input) and is_plain(*call[1:]))
            or (wants_gradient(input) and is_deferred(input))
        )

    def compute(
        self,
        call: Any,
        options: Options,
        inplace: bool = False,
        loss_dtype: torch.dtype | None = None,
        **summaries: Any,
    ) -> Tensor:
        """Return the loss such that autograd knows its gradient."""
        check_loss_dtype(loss_dtype)
        loss = self._compute(call, options, inplace, **summaries)
        dtype = loss_dtype or call.dtype
        return loss if loss.dtype == dtype else loss.to(dtype)

    def _compute(
        self, call: Any, options: Options, inplace: bool = False, **summaries: Any
    ) -> Tensor:
        """Return the same in the accumulator's dtype."""
        input = call.input
        with_grad = wants_gradient(input)
        if is_dtensor(input):
            axis = None if self.axis is None else call.axis
            return distributed.compute(self.name, self._compute, call, axis, options)
        if not (is_eager(input) and is_plain(*call[1:])):
            loss = self.call_operator(call, options, with_grad and not is_deferred(input))[0]
        elif not with_grad:
            loss = self.evaluate(call, options, False, **summaries)[0]
        elif inplace:
            if is_view(input):  # autograd cannot know of what is written to its base
                raise RuntimeError(
                    f"xentrs.torch.{self.name}: inplace=True needs logits that are no view of "
                    "another tensor (for instance, flatten what goes into the last layer, not what "
                    "comes out)"
                )
            loss = InPlace.apply(input, self, call, options)[0]
        elif is_deferred(input):
            loss = Deferred.apply(input, self, call, options)
        else:
            with torch.no_grad():
                found = self.evaluate(call, options, True, **summaries)
            second = call[1]
            large = 2 if second is not None and second.shape == input.shape else 1
            remembered = gradients.remember(call, large)
            loss = self.eager.apply(input, (self, remembered, options), found)
        return loss

    # Operator, for what traces or transforms

    def call_operator(self, call: Any, options: Options, with_grad: bool) -> tuple[Tensor, Tensor]:
        """Return what the operator does: the loss and the gradient."""
        return self.operator(*call, *flat(options, self.shared), with_grad)

    def gradient(self, call: Any, options: Options) -> Tensor:
        """Return the operator's gradient."""
        return self.call_operator(call, options, True)[1]

    def _unpack(self, arguments: Any) -> tuple[Any, Options]:
        n = self._tensors
        options = unflat(arguments[n:-1], self.shared)
        return self.arguments(*arguments[:n]), options

    def _forward(self, *args: Any) -> tuple[Tensor, Tensor]:
        call, options = self._unpack(args)
        loss, grad = self.evaluate(call, options, args[-1])
        return loss, call.input.new_empty(0) if grad is None else grad

    def _fake(self, *args: Any) -> tuple[Tensor, Tensor]:
        call, options = self._unpack(args)
        x = call.input
        loss = x.new_empty(call.loss_shape(options), dtype=_backend.accumulator(x.dtype))
        if not args[-1]:
            return loss, x.new_empty(0)
        # The gradient of an element-wise loss is contiguous.
        return loss, x.new_empty(x.shape) if self.axis is None else torch.empty_like(x)


# Autograd functions, for plain tensors

_is_grad_enabled = torch.is_grad_enabled

# The loss, the tensors of a call, to be recalled, and its options.
_Call: TypeAlias = tuple[Loss, gradients.Remembered, Any]


class Eager(SingleLevelFunction):
    """The gradient is there already."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, call: _Call, found: tuple[Tensor, Tensor]) -> Tensor:
        loss, grad = found
        ctx.save_for_backward(grad)
        ctx.call = call
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        call = ctx.call
        loss = call[0]
        if not _is_grad_enabled():
            if is_last():
                ctx.call = None  # a loss that is kept does not keep the tensors of its call
            if is_unscaled(grad_output):
                return grad, None, None
            mask = lambda: _gradient_mask(call, grad)  # noqa: E731
            return gradients.scaled(grad, grad_output, mask, loss.axis), None, None
        _, remembered, options = call  # create_graph=True
        call = loss.arguments(*gradients.recall(loss.name, remembered))
        options = Options(*options)
        return gradients.differentiable(loss.gradient, call, options, grad_output), None, None


def _gradient_mask(call: _Call, grad: Tensor) -> Tensor | None:
    """Return which entries of the stored gradient count."""
    loss, remembered, options = call
    # The input, and a second tensor of its shape, may be gone; the mask looks at their shape only.
    second = remembered[1]
    gone = 1
    if second is not None and (isinstance(second[0], ref) or second[0].shape == grad.shape):
        gone = 2
    others = gradients.recall(loss.name, remembered[gone:], "the gradient")
    arguments = loss.arguments(*[grad] * gone, *others)
    return arguments.gradient_mask(Options(*options))


class InPlace(torch.autograd.Function):
    """The gradient takes the place of the logits, and autograd knows."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, loss: Loss, call: Any, options: Options
    ) -> tuple[Tensor, ...]:
        ctx.deferred = is_deferred(input)
        result, _ = loss.evaluate(call, options, not ctx.deferred, inplace=not ctx.deferred)
        torch.autograd.graph.increment_version(input)
        ctx.mark_dirty(input)
        ctx.save_for_backward(input, *call[1:])
        ctx.loss, ctx.options = loss, options
        ctx.set_materialize_grads(False)
        return result, input

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, used: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        loss, options = ctx.loss, ctx.options
        if used is not None or torch.is_grad_enabled():
            raise RuntimeError(
                f"xentrs.torch.{loss.name}: the logits are needed again, but inplace=True has "
                "put the gradient in their place"
            )
        if grad_output is None:
            return None, None, None, None
        grad, *others = ctx.saved_tensors
        call = loss.arguments(grad.detach(), *others)
        if ctx.deferred:
            call, options = call.times(grad_output, options)
            if is_traced(grad_output):
                return loss.gradient(call, options), None, None, None
            retained = is_graph_retained()  # another backward pass needs the logits
            grad = loss.evaluate(call, options, True, inplace=not retained)[1]
            return grad, None, None, None
        mask = lambda: call.gradient_mask(options)  # noqa: E731
        return gradients.scaled(call.input, grad_output, mask, loss.axis), None, None, None


class Deferred(torch.autograd.Function):
    """The backward computes the gradient (decision 26)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, loss: Loss, call: Any, options: Options) -> Tensor:
        result, _ = loss.evaluate(call, options, False)
        ctx.save_for_backward(*call)
        ctx.loss, ctx.options = loss, options
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        loss, options = ctx.loss, ctx.options
        call = loss.arguments(*ctx.saved_tensors)
        traced = is_traced(grad_output)
        if torch.is_grad_enabled() or (not traced and is_batched(grad_output)):
            grad = gradients.differentiable(loss.gradient, call, options, grad_output)
        elif traced:
            grad = loss.gradient(*call.times(grad_output, options))
        else:
            grad = loss.evaluate(*call.times(grad_output, options), True)[1]
        return grad, None, None, None


def products_of(gradient: Callable[[Any, Options], Tensor]) -> Products:
    """Return the second derivative of a loss from its gradient in functions of PyTorch.

    `gradient(call, options)` returns the gradient of each sample's or element's loss, with its
    class weight, without its sample weight and, element by element, without its weight. PyTorch
    differentiates it.
    """

    def parts(call: Any, options: Options, direction: Tensor) -> Any:
        """Return the weighted gradient as a function of the input, the input, and the direction."""
        dtype = _backend.accumulator(call.input.dtype)
        x, v, mask = call.input.to(dtype), direction.to(dtype), call.gradient_mask(options)
        if mask is not None:  # before anything is computed, for what differentiates this
            x, v = torch.where(mask, x, 0.5), torch.where(mask, v, 0.0)
            others = {name: getattr(call, name, None) for name in ("target", "pos_weight")}
            floats = {k: t for k, t in others.items() if t is not None and t.is_floating_point()}
            call = call._replace(**{k: torch.where(mask, t, 0.5) for k, t in floats.items()})
        factor = call.factor(options)
        if x.dim() > factor.dim():
            factor = factor.unsqueeze(call.axis)

        def weighted(x: Tensor) -> Tensor:
            result = factor * gradient(call._replace(input=x), options)
            return result if mask is None else torch.where(mask, result, 0.0)

        return weighted, x, v

    def backward(call: Any, options: Options, direction: Tensor) -> Tensor:
        weighted, x, v = parts(call, options, direction)
        result: Tensor = torch.func.vjp(weighted, x)[1](v)[0]
        return result.to(call.input.dtype)

    def forward(call: Any, options: Options, direction: Tensor) -> Tensor:
        # Already at the level of a transform, where no other may be entered.
        weighted, x, v = parts(call, options, direction)
        _, result = unpack_dual(weighted(make_dual(x, v)))
        result = torch.zeros_like(x) if result is None else result
        return result.to(call.input.dtype)

    return Products(backward, forward)
