"""Features to compare, and weights for the network they come from, drawn from their names."""

import numpy as np
from reference import GOLDEN, draw, weight

KID = {"subsets": 5, "subset_size": 40, "seed": 3}


def features() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of correlated features, float32 [60, 24] and [80, 24].

    Normal draws times a mixing matrix, the second set shifted; kept as they were when FID and KID
    were taken of them, since the last bits of a float32 product are the machine's.
    """
    with np.load(GOLDEN / "features.npz") as file:
        return file["a"], file["b"]


def inception_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of PyTorch's Inception v3 such that its features neither vanish nor explode."""
    if name.endswith("running_mean"):
        return np.float32(0.1) * draw(name, shape)
    gain = 1.5 if name.endswith("bn.weight") else 1
    return np.float32(gain) * weight(name, shape)
