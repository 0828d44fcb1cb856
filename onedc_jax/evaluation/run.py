"""Codecs over images: each image coded at each quality, decoded, and compared."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from onedc_jax import folders, metrics
from onedc_jax.errors import ImageError, OneDCError
from onedc_jax.evaluation import results
from onedc_jax.evaluation.codecs import Codec, Quality, check_decoded
from onedc_jax.evaluation.results import Folder, Picture

Distance = Callable[..., dict[str, float | None]]  # as `Distances`


def measure(
    codec: Codec, image: np.ndarray, quality: Quality, distance: Distance
) -> tuple[dict, bytes]:
    """Codes and decodes uint8 [H, W, 3]: (numbers by name, the file).

    The numbers are "width", "height", "bytes", "bpp" (of the whole file), the distances, the
    seconds "encode_s" and "decode_s" (and the codec's `parts`), once compiled, and "peak_mb", the
    most memory that this process has had so far (other programs not counted).
    Raises OneDCError or OSError where the codec fails.
    """
    codec.prepare(image)
    start = time.perf_counter()
    data = codec.encode(image, quality)
    middle = time.perf_counter()
    decoded = codec.decode(data)
    end = time.perf_counter()
    check_decoded(codec, image, decoded)
    height, width, _ = image.shape
    row = {"width": width, "height": height, "bytes": len(data)}
    row |= {"bpp": metrics.bpp(data, height, width)} | distance(image, decoded)
    row |= {"encode_s": middle - start, "decode_s": end - middle} | codec.parts(image, data)
    return row | {"peak_mb": _peak_mb()}, data


def run(
    codecs: Sequence[Codec],
    pictures: Sequence[Picture],
    distance: Distance,
    names: Sequence[str],
    folder: Folder,
    step: Callable[[int], object] = lambda count: None,
) -> Iterator[dict]:
    """Yields a row for each image, codec and quality, from the folder where it has one.

    `names` are the metrics that a row must have; of one that lacks some, the file that is there is
    decoded and compared by these, and the rest stays. A failure gives a row with "error", and of an
    image that cannot be read a single one; it is tried again the next time. `step(count)` is told
    as rows are done.
    """
    points = [(codec, quality) for codec in codecs for quality in codec.qualities]
    for picture in pictures:
        try:
            digest = results.digest(picture.path)
            keys = [results.row_key(picture, digest, *point) for point in points]
            known = [folder.find_row(key) for key in keys]
            image = None
            if not all(_whole(row, names) for row in known):
                image = results.read_image(picture)
        except (ImageError, OSError) as error:
            message = folders.explain(error).removeprefix(f"{picture.path}: ")
            row = {"image": picture.name, "error": message}
            folder.add_error(row)
            yield row
            step(len(points))
            continue
        for (codec, quality), key, row in zip(points, keys, known, strict=True):
            if _whole(row, names):
                yield row
            else:
                lacking = [name for name in names if name not in (row or ())]
                compare = partial(distance, names=lacking)
                yield _measured(codec, image, quality, key, row, compare, folder)
            step(1)


def _whole(row: dict | None, names: Sequence[str]) -> bool:
    return row is not None and all(name in row for name in names)


def _measured(
    codec: Codec, image, quality: Quality, key: dict, known: dict | None, distance, folder: Folder
) -> dict:
    """The row of what is coded, or of what a row that is `known` says was; or of a failure."""
    try:
        if known is None:
            values, data = measure(codec, image, quality, distance)
        else:
            data = folder.data(known)
            decoded = codec.decode(data)
            check_decoded(codec, image, decoded)
            values = known | distance(image, decoded)
    except (OneDCError, OSError, MemoryError, RuntimeError) as error:
        message = folders.explain(error)
        if message is None:
            raise
        row = key | {"error": message}
        folder.add_error(row)
        return row
    return folder.add(key | values, data, codec.suffix)


def _peak_mb() -> float | None:
    """The largest resident size of this process so far, in MB; None where nobody counts it."""
    try:
        import resource
    except ImportError:
        return None
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
