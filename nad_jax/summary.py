"""A record in a few lines: what it is of, how sure it is, and what a reader may overlook."""

from nad_jax.comparison import format_number, isotropy
from nad_jax.nads import NADs, degenerate_groups, name_model

FEW_PASSES = 16  # backward passes that a sampled read-out may take instead of all features


def name_derivative(derivative: str, step: float) -> str:
    """A derivative in words; `step` is that of a central difference."""
    named = {
        "central_difference": f"central difference of step {step:g}",
        "input_gradient": "exact gradient",
    }
    return named.get(derivative, derivative)


def describe(nads: NADs) -> str:
    """What a record is of, in one line: networks, derivative, points, read-out."""
    chosen = {"point_scale": 1.0, "num_readouts": 1, **nads.config}
    derivative, point = chosen.get("derivative", "derivative"), chosen.get("point", "points")
    field = name_derivative(derivative, chosen.get("step", 0))
    scale = f"N(0, {chosen['point_scale']:g}²)" if chosen["point_scale"] else "the origin"
    count = chosen.get("num_points", 0)
    points = {
        "shared": f"one point of {scale}" if chosen["point_scale"] else scale,
        "fresh": f"a point of {scale} for each network",
        "given": f"{count} given point{'s' * (count != 1)}",
    }
    if chosen.get("per_network"):
        points["given"] = f"{chosen['per_network']} of {points['given']} for each network"
    parts = [
        f"{field} at {points.get(point, point)}",
        f"read-out {chosen.get('readout', 'unknown')}",
        f"{chosen['num_readouts']} of each network" if chosen["num_readouts"] > 1 else "",
        "symmetrized" if chosen.get("symmetrized") else "",
        "centered" if chosen.get("centred") else "",
    ]
    given = "given " if chosen.get("networks") == "given" else ""
    networks = f"{nads.num_networks} {given}network{'s' * (nads.num_networks > 1)}"
    return f"{name_model(chosen)}, {networks}: {', '.join(filter(None, parts))}"


def summarize(nads: NADs) -> list[str]:
    """How sure a record is of what, in at most six lines."""
    count, dimension = nads.directions.shape
    errors = {"networks": nads.eigenvalue_sem, "points": nads.point_sem}
    if nads.num_networks == 1:
        errors = {"points": nads.eigenvalue_sem}
    errors = {name: error for name, error in errors.items() if len(error)}
    values = [
        f"{value:.4g}" + "".join(f" ± {error[index]:.1g}" for error in errors.values())
        for index, value in enumerate(nads.eigenvalues[:3])
    ]
    between = f" ({', '.join(f'between {name}' for name in errors)})"
    trace = "" if nads.trace is None else f", trace {nads.trace:.4g}"
    sizes = zip(nads.overlap_sizes[:5], nads.split_half_overlap, strict=False)
    overlaps = ", ".join(f"{overlap:.3f} at {size}" for size, overlap in sizes)
    lines = [
        f"eigenvalues: {', '.join(values)}{', …' * (count > 3)}{between}{trace}",
        f"two halves of the {next(iter(errors))} agree by {overlaps}",
        f"rank {nads.rank} of D = {dimension}"
        if count == dimension
        else f"{count} leading directions of D = {dimension}",
    ]
    if nads.batches is not None:
        lines[-1] += f"; isotropy {format_number(*isotropy(nads))}"
        lines[-1] += " at these points" * ("networks" in errors and "points" in errors)
    if (blocks := nads.blocks) is not None:
        lines.append(str(blocks))
    if note := explain_passes(nads.config.get("backward_passes", 0)):
        lines.append(note)
    if found := warn(nads):
        lines.append(f"beware: {'; '.join(found)}")
    return lines


def explain_passes(passes: int) -> str:
    """What exact gradients of so many outputs cost, and what is cheaper; "" where that is little."""
    if passes <= FEW_PASSES:
        return ""
    return (
        f"{passes} backward passes a network and point; readout='sampled', "
        f"num_readouts={FEW_PASSES} takes {FEW_PASSES}"
    )


def warn(nads: NADs) -> list[str]:
    """What a reader of a record may overlook."""
    found = []
    if diverged := nads.config.get("diverged", 0):
        found.append(f"{diverged} more networks are not finite and left out")
    groups, _ = degenerate_groups(nads)
    labels = {label: f" ({label})" for label in nads.symmetry.tolist() if label}
    named = ", ".join(
        f"{group[0]}–{group[-1]}{labels.get(nads.symmetry[group[0]], '')}" for group in groups[:3]
    )
    if groups:
        more = ", …" * (len(groups) > 3)
        found.append(f"directions {named}{more} are not determined one by one")
    if len(nads.split_half_overlap) and nads.split_half_overlap[0] < 0.5:
        found.append("the first direction is not determined")
    return found
