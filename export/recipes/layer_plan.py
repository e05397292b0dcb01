"""The matrices of a layer as they will be stored: precision, input recipe and size of each. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Layer, Linear, Mlp
from ortserve.export.recipes.precisions import FLOAT_PRECISIONS, Precision
from ortserve.export.recipes.recipe import InputRecipe
from ortserve.export.recipes.takeover import BlockFormat
from ortserve.runtime.manifest import MatrixFacts


@dataclass(frozen=True, slots=True, eq=False)
class MatrixPlan:
    """One matrix product of the graph: `[rows, columns]` in the checkpoint's orientation."""

    name: str  # of the value it produces
    linear: Linear
    num_rows: int  # output features
    num_columns: int  # input features
    precision: Precision
    block_size: int  # columns that share a scale, where blocks have some
    float_bytes: int = 4  # of scales, biases and unquantized weights
    recipe: InputRecipe | None = None  # of its input; None: not calibrated, rounded per token
    row_divisor: NDArray[np.float32] | None = None  # [rows]: what reads this product has taken them over
    taken: BlockFormat | None = None  # the checkpoint's own integers, as they are; None: its values, rounded here
    # int8 has a scale for every block of columns, as int4 has, else one for every row; and inputs are floats (CUDA)
    has_blocks: bool = False

    @property
    def column_factor(self) -> NDArray[np.float32] | None:
        """What its columns are multiplied by, `[columns]`: the divisor of its input."""
        return None if self.recipe is None else self.recipe.divisor

    def value_divisor(self, architecture: Architecture) -> NDArray[np.float32] | None:
        """Of a stacked query-key-value product: what its values are divided by, `[kv_heads * head_dim]`."""
        return None if self.row_divisor is None else self.row_divisor[-architecture.key_size :]

    def facts(self) -> MatrixFacts:
        """For the manifest."""
        recipe = self.recipe
        rounding = "none"
        if self.precision not in FLOAT_PRECISIONS and not self.has_blocks:
            plain = "token" if self.bits is None else "block"
            rounding = plain if recipe is None else recipe.rounding
        columns = self.block_size if self.taken is None else self.taken.block_size
        return MatrixFacts(
            name=self.name,
            precision=self.precision,
            rounding=rounding,
            folded=self.column_factor is not None,
            error=None if recipe is None else round(recipe.error, 5),
            block_size=None if self.bits is None else columns,
        )

    @property
    def bits(self) -> int | None:
        """Of a code, where blocks of columns have scales; None: floats, or one scale for every row."""
        if self.taken is not None:
            return self.taken.bits
        if self.precision == "int4":
            return 4
        return 8 if self.precision == "int8" and self.has_blocks else None

    @property
    def num_bytes(self) -> int:
        """Size in the data file, without alignment."""
        bias = self.float_bytes * self.num_rows if self.linear.biases else 0
        if self.taken is not None:
            return self.taken.num_bytes(self.num_rows, self.num_columns, self.float_bytes) + bias
        if self.precision in FLOAT_PRECISIONS:
            return self.float_bytes * self.num_rows * self.num_columns + bias
        if self.bits is None:
            return self.num_rows * self.num_columns + 4 * self.num_rows + bias
        num_blocks = -(-self.num_columns // self.block_size)
        return self.num_rows * num_blocks * (self.block_size * self.bits // 8 + self.float_bytes) + bias


@dataclass(frozen=True, slots=True)
class MlpPlan:
    """The matrices of an MLP, or of one expert."""

    mlp: Mlp
    gate: MatrixPlan
    up: MatrixPlan
    down: MatrixPlan
    stacked: MatrixPlan | None = None  # gate and up as one product, in place of both

    @property
    def matrices(self) -> tuple[MatrixPlan, ...]:
        """In graph order."""
        return (self.gate, self.up, self.down) if self.stacked is None else (self.stacked, self.down)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer and its matrices."""

    index: int
    layer: Layer
    qkv: MatrixPlan
    attention_output: MatrixPlan
    router: MatrixPlan | None  # None: no experts
    mlps: tuple[MlpPlan, ...]  # one, or one for each expert, all of the same precisions

    @property
    def matrices(self) -> tuple[MatrixPlan, ...]:
        """In graph order."""
        routers = () if self.router is None else (self.router,)
        return (
            self.qkv,
            self.attention_output,
            *routers,
            *(matrix for mlp in self.mlps for matrix in mlp.matrices),
        )
