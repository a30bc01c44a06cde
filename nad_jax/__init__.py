"""Neural anisotropy directions (NADs): the directional inductive bias of neural networks, in JAX.

A network prefers some directions of its input space before it has seen any data. NADs are the
orthonormal basis that ranks them: the eigenvectors of E[g gᵀ], g an input derivative of a randomly
initialized network ("NAD": Ortiz-Jimenez, Modas, Moosavi-Dezfooli, Frossard, Neural Anisotropy
Directions, NeurIPS 2020).

Axis letters, everywhere: N networks, B examples, H W C image, D = H·W·C, K directions (and logits),
F features before the last linear layer, R rows of derivatives per network, S subspace sizes.
Sets of directions are unit rows [K, D]; eigenvalues descend.
"""

from nad_jax import observers, tasks
from nad_jax.aliases import (
    make_train,
    make_train_images,
    make_train_many,
    make_train_many_images,
    train_many_images,
)
from nad_jax.aliasing import aliasing_bound
from nad_jax.architectures import ARCHITECTURES, create_model
from nad_jax.attacks import adversarial, pgd
from nad_jax.blocks import Blocks, equal_blocks
from nad_jax.choices import Estimator
from nad_jax.cifar import ImageData, read_cifar10
from nad_jax.cka import linear_cka
from nad_jax.closed_form import (
    critical_point,
    networks_needed,
    relu_eigenvalue,
    relu_kurtosis,
    susceptibilities,
    wide_eigenvalues,
)
from nad_jax.comparison import compare, energy_map, isotropy
from nad_jax.complexity import (
    SampleComplexity,
    Scaling,
    fit_scaling,
    passing_sizes,
    sample_complexity,
)
from nad_jax.convolution import product_convolution
from nad_jax.diffusion import (
    Schedule,
    add_noise,
    gaussian_loss,
    gaussian_network,
    sample_ddim,
    sampled_variance,
)
from nad_jax.directions import (
    basis_dct,
    basis_dft,
    basis_pixel,
    basis_random,
    complete_basis,
    dft_direction,
    to_images,
    to_vectors,
)
from nad_jax.ensemble import Execution, make_key
from nad_jax.errors import InputError
from nad_jax.estimation import estimate_leading_nads, estimate_nads
from nad_jax.evolution import Evolution, geometry_evolution
from nad_jax.first_layer import Integrated, integrate_first_layer
from nad_jax.function_spectrum import (
    FunctionSpectrum,
    RadialSpectrum,
    function_spectrum,
    radial_spectrum,
)
from nad_jax.guidance import guided, layers_of, observe_similarity
from nad_jax.initial_bias import InitialBias, WideBias, initial_bias, wide_relu_bias
from nad_jax.interventions import flip, poison, project_out, published_carriers, set_coefficients
from nad_jax.learnability import Learnability, learnable
from nad_jax.linearization import (
    MixedDirections,
    empirical_ntk,
    linearize,
    mixed_directions,
    ntk_alignment,
    ntk_regression,
    starting_from,
    with_two_logits,
)
from nad_jax.linen import from_linen
from nad_jax.masks import Densities, mask_densities, masked
from nad_jax.models import Model, from_functions, state_blocks
from nad_jax.nads import LeadingNADs, NADs, directional_energy, null_band, singular_values
from nad_jax.nnx import from_nnx
from nad_jax.own_models import register
from nad_jax.patch_networks import create_patch_network
from nad_jax.path_counts import (
    ConvLayer,
    DenseLayer,
    PathCounts,
    count_masked_paths,
    count_paths,
    count_paths_of,
)
from nad_jax.points import Points, at_origin, gaussian, images
from nad_jax.recipe import Recipe
from nad_jax.records import load_nads, read_directions, save_nads
from nad_jax.removal import (
    keep_most_important,
    random_directions_of_equal_variance,
    sample_importance,
)
from nad_jax.sads import SADs, estimate_sads
from nad_jax.score_closed_forms import (
    align,
    alignment,
    dit_geometry,
    split_channels,
    split_dense,
    split_tokens,
)
from nad_jax.score_networks import ScoreNetwork, as_model, pack
from nad_jax.score_records import load_sads, save_sads
from nad_jax.score_table import SCORE_NETWORKS, create_score_network
from nad_jax.snapshots import Snapshots
from nad_jax.spectral import eigh_dense, marchenko_pastur_band, near_degenerate_groups
from nad_jax.spectrum_metrics import radial_energy, spectrum_metrics, symmetry_energy
from nad_jax.subspaces import captured_energy, principal_angles, rank_correlation, subspace_overlap
from nad_jax.task import FitMetrics, Members, Task
from nad_jax.tasks import along_direction, circles, dynamic_signal, separable, two_features
from nad_jax.tasks.along import label_along, label_median
from nad_jax.tasks.circles import (
    affine_accuracy,
    classify_radius,
    invariance_recipe,
    sample_circles,
)
from nad_jax.tasks.denoising import sample_rank_one, score_recipe
from nad_jax.tasks.dynamic_signal import (
    classify_signal,
    sample_dynamic_signal,
    signal_accuracy_bayes,
    signal_accuracy_linear,
    signal_accuracy_threshold,
)
from nad_jax.tasks.images import cifar_recipe
from nad_jax.tasks.separable import (
    TrainMetrics,
    bayes_classifier,
    competing_accuracy,
    sample_noise,
    sample_separable,
)
from nad_jax.tasks.two_features import (
    observe_reliance,
    optimal_accuracy,
    optimal_reliance,
    optimal_weights,
    reliance,
    sample_two_features,
)
from nad_jax.tilting import adversarial_strength, deviation_angle, tilted_accuracy
from nad_jax.training import train_many
from nad_jax.vector_fields import central_difference, input_gradient, mixed_derivative
from nad_jax.velocity import Velocity, geometry_velocity
from nad_jax.versions import __version__
from nad_jax.wasserstein import SlicedDistance, sliced_wasserstein
from nad_jax.weights import read_weights
from nad_jax.wide_kernels import WideKernels, wide_geometry_velocity, wide_kernels

__all__ = [
    "ARCHITECTURES",
    "SCORE_NETWORKS",
    "Blocks",
    "ConvLayer",
    "DenseLayer",
    "Densities",
    "Estimator",
    "Evolution",
    "Execution",
    "FitMetrics",
    "FunctionSpectrum",
    "ImageData",
    "InitialBias",
    "InputError",
    "Integrated",
    "LeadingNADs",
    "Learnability",
    "Members",
    "MixedDirections",
    "Model",
    "NADs",
    "PathCounts",
    "Points",
    "RadialSpectrum",
    "Recipe",
    "SADs",
    "SampleComplexity",
    "Scaling",
    "Schedule",
    "ScoreNetwork",
    "SlicedDistance",
    "Snapshots",
    "Task",
    "TrainMetrics",
    "Velocity",
    "WideBias",
    "WideKernels",
    "__version__",
    "add_noise",
    "adversarial",
    "adversarial_strength",
    "affine_accuracy",
    "aliasing_bound",
    "align",
    "alignment",
    "along_direction",
    "as_model",
    "at_origin",
    "basis_dct",
    "basis_dft",
    "basis_pixel",
    "basis_random",
    "bayes_classifier",
    "captured_energy",
    "central_difference",
    "cifar_recipe",
    "circles",
    "classify_radius",
    "classify_signal",
    "compare",
    "competing_accuracy",
    "complete_basis",
    "count_masked_paths",
    "count_paths",
    "count_paths_of",
    "create_model",
    "create_patch_network",
    "create_score_network",
    "critical_point",
    "deviation_angle",
    "dft_direction",
    "directional_energy",
    "dit_geometry",
    "dynamic_signal",
    "eigh_dense",
    "empirical_ntk",
    "energy_map",
    "equal_blocks",
    "estimate_leading_nads",
    "estimate_nads",
    "estimate_sads",
    "fit_scaling",
    "flip",
    "from_functions",
    "from_linen",
    "from_nnx",
    "function_spectrum",
    "gaussian",
    "gaussian_loss",
    "gaussian_network",
    "geometry_evolution",
    "geometry_velocity",
    "guided",
    "images",
    "initial_bias",
    "input_gradient",
    "integrate_first_layer",
    "invariance_recipe",
    "isotropy",
    "keep_most_important",
    "label_along",
    "label_median",
    "layers_of",
    "learnable",
    "linear_cka",
    "linearize",
    "load_nads",
    "load_sads",
    "make_key",
    "make_train",
    "make_train_images",
    "make_train_many",
    "make_train_many_images",
    "marchenko_pastur_band",
    "mask_densities",
    "masked",
    "mixed_derivative",
    "mixed_directions",
    "near_degenerate_groups",
    "networks_needed",
    "ntk_alignment",
    "ntk_regression",
    "null_band",
    "observe_reliance",
    "observe_similarity",
    "observers",
    "optimal_accuracy",
    "optimal_reliance",
    "optimal_weights",
    "pack",
    "passing_sizes",
    "pgd",
    "poison",
    "principal_angles",
    "product_convolution",
    "project_out",
    "published_carriers",
    "radial_energy",
    "radial_spectrum",
    "random_directions_of_equal_variance",
    "rank_correlation",
    "read_cifar10",
    "read_directions",
    "read_weights",
    "register",
    "reliance",
    "relu_eigenvalue",
    "relu_kurtosis",
    "sample_circles",
    "sample_complexity",
    "sample_ddim",
    "sample_dynamic_signal",
    "sample_importance",
    "sample_noise",
    "sample_rank_one",
    "sample_separable",
    "sample_two_features",
    "sampled_variance",
    "save_nads",
    "save_sads",
    "score_recipe",
    "separable",
    "set_coefficients",
    "signal_accuracy_bayes",
    "signal_accuracy_linear",
    "signal_accuracy_threshold",
    "singular_values",
    "sliced_wasserstein",
    "spectrum_metrics",
    "split_channels",
    "split_dense",
    "split_tokens",
    "starting_from",
    "state_blocks",
    "subspace_overlap",
    "susceptibilities",
    "symmetry_energy",
    "tasks",
    "tilted_accuracy",
    "to_images",
    "to_vectors",
    "train_many",
    "train_many_images",
    "two_features",
    "wide_eigenvalues",
    "wide_geometry_velocity",
    "wide_kernels",
    "wide_relu_bias",
    "with_two_logits",
]


def __dir__() -> list[str]:
    """What a notebook offers: the public names, not the modules that they come from."""
    return __all__
