"""The integer path once more, in NumPy's int64, from the formulas of docs/exactness.md."""

import numpy as np

from onedc_jax.coding import tables


def map_layers(change, tree):
    """A tree with each of its layers changed."""
    if "kernel" in tree:
        return change(tree)
    return {name: map_layers(change, child) for name, child in tree.items()}


def predictions(entropy, z_indices, symbols):
    """As `proof.predictions`."""
    entropy = map_layers(lambda x: {k: v.astype(np.int64) for k, v in x.items()}, entropy)
    synthesis, prior = entropy["hyper_synthesis"], entropy["prior"]
    x = (z_indices[..., None].astype(np.int64) // 4 ** np.arange(7)) % 4 - 2
    x = stream(leaky(conv(synthesis["feat_in_0"], x), 41))
    for k in (0, 2):
        x = block(synthesis[f"to_entropy_{k}"], x)
        x = up(synthesis[f"to_entropy_{k + 1}"], x)
    x = block(synthesis["to_entropy_4"], x)
    parameters = block(prior["fusion_1"], block(prior["fusion_0"], x))
    context = stream(conv(prior["reduction"], read(prior["reduction"], parameters)))
    y_hat, found = np.zeros_like(context), []
    for k in range(4):
        if k > 0:
            x = np.concatenate([stream(y_hat), context], -1)
            for layer in (prior[f"step_{k}"], *(prior[f"spatial_{i}"] for i in range(3))):
                x = block(layer, x)
            parameters = x
        scales, means = np.split(parameters, 2, -1)
        thresholds = tables.load().thresholds[1:].astype(np.float64)
        mean = gather(means, k)
        found.append((mean, (gather(scales, k)[..., None] / 4096 >= thresholds).sum(-1)))
        put(y_hat, mean + symbols[k].astype(np.int64) * 4096, k)
    return found


def places(shape, k):
    """For each position of a 2×2 cell and each group: whether step k codes it there."""
    position = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2]][k]
    quarter = shape[-1] // 4
    for group, place in enumerate(position):
        rows, columns = slice(place // 2, None, 2), slice(place % 2, None, 2)
        yield rows, columns, slice(group * quarter, (group + 1) * quarter)


def gather(x, k):
    out = np.zeros((*x.shape[:3], x.shape[3] // 4), np.int64)
    for rows, columns, channels in places(x.shape, k):
        out[:, rows, columns] = x[:, rows, columns, channels]
    return out


def put(x, values, k):
    for rows, columns, channels in places(x.shape, k):
        x[:, rows, columns, channels] = values[:, rows, columns]


def rescale(x, shift):
    right, left = np.maximum(shift, 0), np.maximum(-shift, 0)
    return (x * 2**left + (2**right) // 2) // 2**right


def leaky(x, slope):
    x = np.clip(x, -(2**26), 2**26)
    return np.where(x < 0, ((x + 8) // 16 * slope + 128) // 256, x)


def limit(x):
    return np.clip(x, -1023, 1023)


def stream(x):
    return np.clip(x, -(2**27), 2**27)


def read(layer, x):
    return limit(rescale(x, layer["input"]))


def windows(x):
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for place in range(9):
        yield x[:, place // 3 : place // 3 + height, place % 3 : place % 3 + width]


def conv(layer, x):
    kernel = layer["kernel"]
    taps = kernel.reshape(-1, *kernel.shape[2:])
    seen = windows(x) if len(taps) == 9 else [x]
    sums = sum(window @ tap for window, tap in zip(seen, taps, strict=True))
    return rescale(sums + layer["bias"], layer["shift"])


def depthwise(layer, x):
    taps = layer["kernel"].reshape(9, -1)
    seen = windows(np.clip(x, -32767, 32767))
    sums = sum(window * tap for window, tap in zip(seen, taps, strict=True))
    return rescale(sums + layer["bias"], layer["shift"])


def block(layers, x):
    y = leaky(conv(layers["dw_in"], read(layers["dw_in"], x)), 41)
    y = conv(layers["dw_out"], limit(depthwise(layers["dw_conv"], y)))
    if "dw_shortcut" in layers:
        x = conv(layers["dw_shortcut"], read(layers["dw_shortcut"], x))
    x = stream(x + y)
    first, second = np.split(conv(layers["ffn_in"], read(layers["ffn_in"], x)), 2, -1)
    y = limit(rescale(leaky(first, 410) + leaky(second, 41), 4))
    return stream(x + conv(layers["ffn_out"], y))


def shuffle(x):
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def up(layers, x):
    y = leaky(conv(layers["subpel_conv"], read(layers["subpel_conv"], x)), 41)
    y = limit(rescale(shuffle(y), 4))
    y = leaky(conv(layers["conv"], y), 410)
    return stream(y + shuffle(conv(layers["upsample"], read(layers["upsample"], x))))
