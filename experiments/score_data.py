"""What score networks are trained along and on: files of directions in ascending order, images, and
their rotations.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from nad_jax.directions import check_orthonormal
from nad_jax.errors import InputError
from nad_jax.records import read_directions
from nad_jax.store import read_npy, read_npz


def read_ascending(path: str, dimension: int) -> np.ndarray:
    """The directions of a file; raises `InputError` where it says that their eigenvalues descend, as
    those of NADs do.
    """
    directions = read_directions(path, dimension)
    if Path(path).suffix == ".npz":
        values = read_npz(path, (), optional=("eigenvalues",)).get("eigenvalues", np.zeros(0))
        if (np.diff(values) < 0).any():
            raise InputError(
                f"directions: {path} has directions of descending eigenvalues, as NADs are; SADs "
                "ascend: give an .npy file of its rows in the other order"
            )
    return directions


def read_images(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Images to train on and to test with, as vectors [n, D] in units of the noise."""
    images = np.asarray(read_npy(config.images), np.float64)
    needed, shape = config.num_train + config.num_test, tuple(config.image_shape)
    if images.shape[1:] != shape or len(images) < needed:
        raise InputError(
            f"images: {config.images} must hold {needed} images {shape} or more, got {images.shape}"
        )
    images = config.image_scale * images[:needed].reshape(needed, -1)
    return images[: config.num_train], images[config.num_train :]


def make_rotation(directions: np.ndarray, images: np.ndarray, alignment: str) -> np.ndarray:
    """W, [D, D]: images x, [n, D], have their directions of most variance on those that are first
    ("min") or last ("max"), as W x.

    Source: SAD. Of all rotations these have the least and the largest tr(G W M Wᵀ), M the second
    moment of images.
    """
    if alignment == "none":
        return np.eye(images.shape[1])
    if len(directions) != images.shape[1]:
        raise InputError(
            f"directions: must be all {images.shape[1]} where images are rotated, got "
            f"{len(directions)}"
        )
    try:
        check_orthonormal(directions)
    except InputError as error:
        raise InputError(f"directions: {error}") from error
    _, found = np.linalg.eigh(images.T @ images)  # ascending
    found = found[:, ::-1] if alignment == "min" else found
    return directions.T.astype(np.float64) @ found.T
