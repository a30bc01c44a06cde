"""Linear centered kernel alignment (CKA): how alike the features of two networks are, up to rotation,
scale and offset.

CKA(X, Y) = ⟨K, L⟩ / (‖K‖ ‖L‖),  K = X_c X_cᵀ,  L = Y_c Y_cᵀ,  X_c = X less its mean over samples
          = ‖X_cᵀ Y_c‖² / (‖X_cᵀ X_c‖ ‖Y_cᵀ Y_c‖)
"""

import jax
import jax.numpy as jnp

from nad_jax.errors import InputError, real_array


def linear_cka(x: jax.Array, y: jax.Array) -> jax.Array:
    """The biased estimate of linear CKA from features of the same B samples: a number in [0, 1].

    1 for features that are equal up to rotation, scale and offset, 0 where those of one network are
    the same for all samples; there its gradient is 0. Independent features are above 0, too, the
    more so the fewer samples there are: numbers compare at one B alone. It takes B² numbers.

    Args:
      x, y: features [B, F] and [B, F'].

    Raises:
      InputError: for other shapes.
    """
    x, y = (jnp.asarray(real_array(n, v, "[B, F]", False)) for n, v in (("x", x), ("y", y)))
    if len(x) != len(y):
        raise InputError(f"x, y: must be of the same samples, got {len(x)} and {len(y)} of them")
    left, right = _gram(x), _gram(y)
    return jnp.sum(left * right) / (_norm(left) * _norm(right))


def _norm(matrix: jax.Array) -> jax.Array:
    """The Frobenius norm, 1 of a matrix of zeros, whose norm has no gradient."""
    square = jnp.sum(matrix**2)
    return jnp.sqrt(jnp.where(square > 0, square, 1))


def _gram(x: jax.Array) -> jax.Array:
    """K [B, B] of features [B, F], whose largest centered entry is scaled to 1; 0 where they are
    constant.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Neither an offset nor a scale changes CKA, so no gradient goes through them. Less the first
    # sample, constant features are exactly 0, which less their mean they are not.
    x = x - jax.lax.stop_gradient(x[:1])
    x = x - x.mean(0, keepdims=True)
    largest = jax.lax.stop_gradient(jnp.abs(x).max())
    x = x / jnp.where(largest > 0, largest, 1)
    # On every backend: TensorFloat-32 is off by more than training changes it in a step.
    return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
