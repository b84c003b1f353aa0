"""What the device can do at best, measured: a large matrix product and a large copy."""

import jax
import jax.numpy as jnp

from ssad_jax.benchmarking.timing import median_time

SIZES = {"cpu": (2048, 1 << 24), "other": (8192, 1 << 28)}  # rows of the square matrices, elements of the copied array


def measure(dtype, repeats: int = 5) -> dict[str, float]:
    """FLOP/s of a product of square matrices in `dtype`, and bytes/s (read plus written) of an addition to an array."""
    rows, elements = SIZES.get(jax.default_backend(), SIZES["other"])
    key = jax.random.key(0)
    a, b = (jax.random.normal(k, (rows, rows), dtype) for k in jax.random.split(key))
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=dtype))
    copy = jax.jit(lambda v: v + 1, donate_argnums=0)  # into memory that is there: fresh pages cost more than the copy
    held = [jnp.ones(elements, jnp.float32)]

    def copied():
        held[0] = copy(held[0])
        return held[0]

    return {
        "flop_per_second": 2 * rows**3 / median_time(lambda: product(a, b), repeats),
        "bytes_per_second": 2 * held[0].nbytes / median_time(copied, repeats),
    }
