"""Features to compare, and weights for the network they come from, drawn from their names."""

import numpy as np
from reference import draw, weight

KID = {"subsets": 5, "subset_size": 40, "seed": 3}


def features() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of correlated features, float32 [60, 24] and [80, 24]."""
    mixing = draw("features.mixing", (24, 24)) / 4
    a = draw("features.a", (60, 24)) @ mixing
    b = 0.8 * draw("features.b", (80, 24)) @ mixing + 0.2 * draw("features.shift", (1, 24))
    return a, b


def inception_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of PyTorch's Inception v3 such that its features neither vanish nor explode."""
    if name.endswith("running_mean"):
        return np.float32(0.1) * draw(name, shape)
    gain = 1.5 if name.endswith("bn.weight") else 1
    return np.float32(gain) * weight(name, shape)
