"""How the products of one input are rounded: chosen by what each way loses on a sample of real activations.

A divisor of each input channel moves magnitude from activations that are hard to round into weights that are easy to
(SmoothQuant, https://arxiv.org/abs/2211.10438; AWQ, https://arxiv.org/abs/2306.00978). What computes the input takes
the divisor over, the matrix its inverse: powers of two, so that the function stays the same bit for bit in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Linear
from ortserve.export.recipes.calibrate import Observed, Place
from ortserve.export.recipes.precisions import FLOAT_PRECISIONS, Precision
from ortserve.export.recipes.product import block_values, int4_values, round_by_scale, round_per_block, round_per_token
from ortserve.export.recipes.quantize import INT8_LIMIT, quantize_int4_blocks, quantize_int8_blocks, quantize_int8_rows

Floats = NDArray[np.float32]
Rounding = Literal["token", "static", "block"]
EXPONENTS = (0.5, 0.7, 0.85)  # share of an input channel's magnitude that moves into the matrix
HEADROOM = (1.0, 0.8)  # of the largest calibrated value, tried as the largest that has a code
LARGEST_EXPONENT = 12  # of a divisor, and its negative the smallest
# Half floats end at 65,504, and text may reach further than what was calibrated by: a divisor there makes nothing
# larger than it was. Nor must what it makes smaller, a norm's weight above all, leave the range of full precision.
LARGEST_HALF_EXPONENT = 8
SMALLEST_SHARE = 1e-3  # channels are treated as at least this share of the largest one
LEAST_GAIN = 0.9  # a divisor is taken when it leaves at most this share of the error
LEAST_TIED_GAIN = 0.5  # of a tied head, whose divisor costs a product in the lookup and coarsens embeddings
STATIC_ERROR = 0.02  # a calibrated scale may lose this much of a product, root mean square over tokens
STATIC_WORST = 0.08  # and this much of any sampled token's
WORST_SHARE = 0.25  # weight of the worst token beside the mean when two ways are compared
# Relative errors of a product above which its matrices are stored more exactly, after so many failed proofs.
# A trained 5M model has int8 errors of 0.01 to 0.03 and int4 ones of 0.03 to 0.1 (root mean square over tokens).
INT8_ERRORS = (0.10, 0.10, 0.05, 0.025)
INT4_ERRORS = (0.15, 0.09, 0.07, 0.05)
WORST_FACTOR = 4.0  # one token may lose this many times as much
MAX_CAUTION = len(INT8_ERRORS) - 1


@dataclass(frozen=True, slots=True, eq=False)
class InputRecipe:
    """One way to round a shared input and the matrices it is multiplied by, and what it was measured to lose."""

    rounding: Rounding
    error: float  # root mean square over tokens of |rounded product - product| / |product|
    worst: float  # of any sampled token
    divisor: Floats | None = None  # [K], powers of two
    scale: float = 0.0  # of a code, for static rounding
    importance: Floats | None = None  # [K], mean square of the divided input

    @property
    def loss(self) -> float:
        """What ways are compared by."""
        return self.error + WORST_SHARE * self.worst


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The best of each kind; what the precision does not offer is None."""

    token: InputRecipe | None = None
    static: InputRecipe | None = None
    block: InputRecipe | None = None
    wide_block: InputRecipe | None = None  # 8-bit weights with a scale for every block of columns


@dataclass(frozen=True, slots=True)
class Calibration:
    """Options of every input, by the first product that reads it."""

    options: Mapping[Linear, InputOptions] = field(default_factory=dict)
    num_tokens: int = 0
    source: str = ""  # of the text


def int8_options(observed: Observed, *, tied: bool = False) -> InputOptions:
    """Per-token and calibrated rounding, each with the divisor that suits it."""
    token: list[InputRecipe] = []
    static: list[InputRecipe] = []
    exact = observed.sample @ observed.rows.T
    for divisor in _divisors(observed):
        value, rows = _divided(observed, divisor)
        codes, row_scale = quantize_int8_rows(rows)
        rounded = (codes * row_scale[:, None]).T
        token.append(_recipe("token", divisor, exact, round_per_token(value) @ rounded))
        largest = float((observed.largest if divisor is None else observed.largest / divisor).max())
        for share in HEADROOM:
            scale = max(largest * share, 1e-30) / INT8_LIMIT
            product = round_by_scale(value, scale) @ rounded
            static.append(_recipe("static", divisor, exact, product, scale=scale))
    gain = LEAST_TIED_GAIN if tied else LEAST_GAIN
    return InputOptions(token=_best(token, gain), static=_best(static, gain))


def int4_options(observed: Observed, block_size: int) -> InputOptions:
    """Rounding per block of columns, with the divisor that suits the weights' blocks."""
    found: list[InputRecipe] = []
    exact = observed.sample @ observed.rows.T
    for divisor in _divisors(observed):
        value, rows = _divided(observed, divisor)
        importance = _importance(observed, divisor)
        packed, scale = quantize_int4_blocks(rows, block_size, importance=importance)
        product = round_per_block(value, block_size) @ int4_values(packed, scale, rows.shape[1]).T
        found.append(_recipe("block", divisor, exact, product, importance=importance))
    return InputOptions(block=_best(found, LEAST_GAIN))


def weight_options(observed: Observed, block_size: int) -> InputOptions:
    """4-bit and 8-bit weights in blocks of columns, for kernels that leave half-float activations as they are."""
    narrow: list[InputRecipe] = []
    wide: list[InputRecipe] = []
    exact = observed.sample @ observed.rows.T
    for divisor in _divisors(observed, only_shrink=True):
        value, rows = _divided(observed, divisor)
        importance = _importance(observed, divisor)
        packed, scale = quantize_int4_blocks(rows, block_size, importance=importance)
        product = value @ int4_values(packed, scale, rows.shape[1]).T
        narrow.append(_recipe("block", divisor, exact, product, importance=importance))
        codes, scale = quantize_int8_blocks(rows, block_size)
        product = value @ block_values(codes, scale, None, bits=8, num_columns=rows.shape[1]).T
        wide.append(_recipe("block", divisor, exact, product))
    return InputOptions(block=_best(narrow, LEAST_GAIN), wide_block=_best(wide, LEAST_GAIN))


def choose_recipe(
    options: InputOptions | None, precision: Precision, caution: int, *, exact: Precision = "fp32"
) -> tuple[Precision, InputRecipe | None]:
    """The recipe of a shared input, and the precision of the matrices that read it.

    Calibrated scales where they lose little, else per-token rounding; matrices that lose too much are stored in the
    next higher precision, the last of which is `exact`. After a failed proof calibrated scales are given up, after
    more of them the limits shrink.
    """
    if options is None or precision in FLOAT_PRECISIONS:
        return precision, None
    if precision == "int4":
        block = options.block
        if block is None or _within(block, INT4_ERRORS[caution]):
            return "int4", block
    if options.wide_block is not None:
        return ("int8", options.wide_block) if _within(options.wide_block, INT8_ERRORS[caution]) else (exact, None)
    if options.static is not None and caution == 0 and static_suffices(options.static):
        return "int8", options.static
    if options.token is None or _within(options.token, INT8_ERRORS[caution]):
        return "int8", options.token
    return exact, None


def _within(recipe: InputRecipe, limit: float) -> bool:
    return recipe.error <= limit and recipe.worst <= WORST_FACTOR * limit


def static_suffices(recipe: InputRecipe) -> bool:
    """A calibrated scale loses little enough here."""
    return recipe.error <= STATIC_ERROR and recipe.worst <= STATIC_WORST


def _divisors(observed: Observed, *, only_shrink: bool = False) -> Iterator[Floats | None]:
    """None, and for each exponent one divisor per channel, with a geometric mean near 1 or none below 1."""
    yield None
    if not observed.place.can_divide:
        return
    activation, weight = observed.largest, np.abs(observed.rows).max(axis=0)
    if observed.place.kind == "attention_output":
        activation, weight = (_shared_by_group(observed.place, value) for value in (activation, weight))
    activation, weight = (np.maximum(value, max(value.max() * SMALLEST_SHARE, 1e-30)) for value in (activation, weight))
    seen: set[bytes] = set()
    for exponent in EXPONENTS:
        logarithm = exponent * np.log2(activation) - (1 - exponent) * np.log2(weight)
        powers = np.rint(logarithm - logarithm.mean())
        if only_shrink:  # a factor for all channels changes no rounding; where the range is too wide, the top counts
            powers -= max(powers.min(), powers.max() - LARGEST_HALF_EXPONENT)
            powers = np.maximum(powers, 0)
        divisor = np.exp2(np.clip(powers, -LARGEST_EXPONENT, LARGEST_EXPONENT)).astype(np.float32)
        if divisor.tobytes() not in seen and not (divisor == 1).all():
            seen.add(divisor.tobytes())
            yield divisor


def _shared_by_group(place: Place, channels: Floats) -> Floats:
    """Query heads of a group read the same value head: their channels share one divisor."""
    heads = channels.reshape(-1, place.group, place.head_dim)
    shared: Floats = np.broadcast_to(heads.max(axis=1, keepdims=True), heads.shape).reshape(-1)
    return shared


def _divided(observed: Observed, divisor: Floats | None) -> tuple[Floats, Floats]:
    if divisor is None:
        return observed.sample, observed.rows
    return observed.sample / divisor, observed.rows * divisor


def _importance(observed: Observed, divisor: Floats | None) -> Floats:
    square: Floats = np.ones_like(observed.mean_square) if divisor is None else np.square(divisor)
    importance: Floats = observed.mean_square / square
    return importance


def _recipe(
    rounding: Rounding,
    divisor: Floats | None,
    exact: Floats,
    product: Floats,
    *,
    scale: float = 0.0,
    importance: Floats | None = None,
) -> InputRecipe:
    norms = np.linalg.norm(exact, axis=1)
    floor = max(0.1 * float(np.sqrt(np.mean(np.square(norms)))), 1e-30)  # a token of almost nothing has no ratio
    errors = np.linalg.norm(product - exact, axis=1) / np.maximum(norms, floor)
    mean = float(np.sqrt(np.mean(np.square(errors))))
    return InputRecipe(rounding, mean, float(errors.max()), divisor, scale, importance)


def _best(recipes: list[InputRecipe], gain: float) -> InputRecipe:
    """The least loss without a divisor, unless one leaves at most `gain` of it."""
    plain = min((recipe for recipe in recipes if recipe.divisor is None), key=lambda recipe: recipe.loss)
    best = min(recipes, key=lambda recipe: recipe.loss)
    return best if best.loss <= gain * plain.loss else plain
