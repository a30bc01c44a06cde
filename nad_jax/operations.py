"""What a network costs in arithmetic, read off its program."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend.core

from nad_jax.contract import input_batch, shape_of_variables


def count_operations(jaxpr: Any) -> Iterator[int]:
    """The multiplications and additions of each convolution and matrix product of a program, in
    order.
    """
    for equation in jaxpr.eqns:
        name, output = equation.primitive.name, equation.outvars[0].aval
        if name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval, equation.params["dimension_numbers"]
            yield 2 * output.size * kernel.size // kernel.shape[numbers.rhs_spec[0]]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            lengths = equation.invars[0].aval.shape
            yield 2 * output.size * math.prod(lengths[axis] for axis in contracted)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            layers = list(count_operations(inner))
            yield from layers * equation.params.get("length", 1)  # of a scan


def count_step(model: Any, batch_size: int) -> int:
    """The multiplications and additions of a training step: three times those of a forward pass."""
    given = shape_of_variables(model), input_batch(model, 1)
    return 3 * batch_size * sum(count_operations(jax.make_jaxpr(model.apply)(*given).jaxpr))
