"""Names of array shapes: N rows, B rows of a batch, D features, P = D (+ 1 with a bias), K outputs, S draws."""

from jaxtyping import Float, Int
from torch import Tensor

FeatureMatrix = Float[Tensor, "N D"]
DesignMatrix = Float[Tensor, "N P"]
OutputMatrix = Float[Tensor, "N K"]
RowVector = Float[Tensor, " N"]
Labels = Int[Tensor, " N"]

__all__ = ["DesignMatrix", "FeatureMatrix", "Labels", "OutputMatrix", "RowVector"]
