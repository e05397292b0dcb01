"""A picture of what rounding costs layer by layer. matplotlib is imported here alone, when it is asked for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ortserve.export.errors import ExportError
from ortserve.export.inspect.structure import PartFacts


def write_error_plot(path: Path, title: str, parts: tuple[PartFacts, ...]) -> None:
    """PNG, or another kind that matplotlib knows by the ending.

    Raises `ExportError` without matplotlib, without measured errors, and when the file cannot be written.
    """
    measured = [(place, part.name, part.error) for place, part in enumerate(parts) if part.error is not None]
    if not measured:
        raise ExportError(f"{title} has no measured errors to draw: the report of int8 and int4 on the CPU has them")
    if find_spec("matplotlib") is None:
        raise ExportError("--plot needs matplotlib: pip install 'ortserve[plot]'; without it, the chart is text")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (errors, sizes) = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    places = [place for place, _, _ in measured]
    errors.semilogy(places, [max(error, 1e-12) for _, _, error in measured], "o-")
    errors.set_ylabel("relative error of the residual stream")
    errors.set_title(title)
    products = [
        (place, matrix.error)
        for place, part in enumerate(parts)
        for matrix in part.matrices
        if matrix.error is not None and matrix.error > 0
    ]
    if products:
        errors.semilogy([place for place, _ in products], [error for _, error in products], "x", alpha=0.5)
        errors.legend(["stream after the layer", "a product, on calibration text"])
    sizes.bar(range(len(parts)), [part.num_bytes / 1e6 for part in parts])
    sizes.set_ylabel("MB")
    sizes.set_xticks(range(len(parts)), [part.name for part in parts], rotation=90)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be written ({error}): choose another file, such as errors.png") from None
    finally:
        pyplot.close(figure)
