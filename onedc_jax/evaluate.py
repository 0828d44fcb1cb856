"""A codec over a folder of images: what it costs in bytes and seconds, and how far off it ends."""

import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from onedc_jax import folders, images, metrics
from onedc_jax.errors import ImageError, ModelError, OneDCError
from onedc_jax.log import JsonLines
from onedc_jax.models.lpips import SMALLEST, load_lpips, lpips

COLUMNS = ("bpp", "psnr", "ms_ssim", "lpips_alex", "lpips_vgg", "encode_s", "decode_s")


class Distances:
    """PSNR, MS-SSIM and LPIPS of two images; `missing` says which could not be loaded, and why."""

    def __init__(self, nets: Iterable[str] = ("alex", "vgg")):
        self.missing: list[str] = []
        self._nets = {}
        for net in nets:
            try:
                self._nets[net] = (
                    jax.jit(partial(lpips, net=net)),
                    jax.device_put(load_lpips(net)),
                )
            except ModelError as error:
                self.missing.append(f"without LPIPS ({net}): {error}")

    def __call__(self, a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
        """uint8 [H, W, 3] twice -> {metric: value}, None where the images are too small for it."""
        a, b = a[None], b[None]
        side = min(a.shape[1:3])
        values = {"psnr": metrics.psnr(a, b).item(), "ms_ssim": None}
        if side >= metrics.MS_SSIM_MIN_SIDE:
            values["ms_ssim"] = metrics.ms_ssim(a, b).item()
        for net, (distance, params) in self._nets.items():
            fits = side >= SMALLEST[net]
            unit = (np.float32(x) / 255 for x in (a, b))
            values[f"lpips_{net}"] = distance(params, *unit).item() if fits else None
        return values


def evaluate(
    codec, paths: Sequence[Path], distances: Distances, targets: Sequence[Path] | None = None
) -> Iterator[dict]:
    """Encodes each image to bytes, decodes the bytes, and yields a row for each.

    A row holds "image", "model", "width", "height", "bytes", "bpp" (of all bytes), the distances,
    and "encode_s" and "decode_s", seconds once compiled (an image of a new size runs twice). For
    an image that cannot be read it holds "error" instead. The decoded images are written to
    `targets`, one path for each image, and replace what is there.
    """
    seen = set()
    for path, target in zip(paths, targets or [None] * len(paths), strict=True):
        row = {"image": path.name, "model": codec.name}
        try:
            image, _ = images.read(path)
            if image.shape not in seen:
                codec.decode(codec.encode(image))
                seen.add(image.shape)
            start = time.perf_counter()
            data = codec.encode(image)
            middle = time.perf_counter()
            decoded = codec.decode(data)
            end = time.perf_counter()
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                images.write(target, decoded, overwrite=True)
        except (ImageError, OSError) as error:
            yield row | {"error": folders.explain(error)}
            continue
        height, width, _ = image.shape
        row |= {"width": width, "height": height, "bytes": len(data)}
        row |= {"bpp": metrics.bpp(data, height, width)} | distances(image, decoded)
        yield row | {"encode_s": middle - start, "decode_s": end - middle}


def means(rows: Iterable[dict]) -> dict[str, float]:
    """The mean of each of COLUMNS over the rows that have it; without those that none has."""
    rows = list(rows)
    found = {k: [row[k] for row in rows if row.get(k) is not None] for k in COLUMNS}
    return {k: statistics.fmean(v) for k, v in found.items() if v}


def report(
    codec, folder: Path, *, out: Path | None, limit: int | None, save_to: Path | None
) -> int:
    """Prints a table over the images of a folder, means last; how many images failed.

    Rows are appended to `out`, one JSON object a line. Raises OneDCError for a folder without
    images.
    """
    paths = folders.find(folder, images.READ_SUFFIXES)[:limit]
    if not paths:
        raise OneDCError(f"{folder}: no images here")
    targets = folders.targets(paths, folder, save_to, ".png") if save_to else None
    distances = Distances()
    for line in distances.missing:
        print(line, file=sys.stderr)
    log = JsonLines(out) if out else None
    print(_line("image", {k: k for k in COLUMNS}))
    rows = []
    for row in tqdm(evaluate(codec, paths, distances, targets), total=len(paths), disable=None):
        rows.append(row)
        tqdm.write(_line(row["image"], row))
        if log:
            log.write(**row)
    if log:
        log.close()
    print(_line("mean", means(rows)))
    failed = sum("error" in row for row in rows)
    print(f"{len(rows) - failed} images with model {codec.name}, {failed} failed")
    return failed


def _line(name: str, values: dict) -> str:
    if "error" in values:
        return f"{name[:28]:28} {values['error']}"
    cells = (values.get(k) for k in COLUMNS)
    texts = ("-" if v is None else v if isinstance(v, str) else f"{v:.4f}" for v in cells)
    return f"{name[:28]:28}" + "".join(f"{text:>11}" for text in texts)
