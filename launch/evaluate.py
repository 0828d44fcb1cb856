"""bpp, PSNR, MS-SSIM, LPIPS and seconds of a model on a folder of images.

python launch/evaluate.py --images DIR [--model NAME_OR_PATH] [--out results.jsonl] [--limit N]
"""

import argparse
import sys
from pathlib import Path

import onedc_jax
from onedc_jax.compilation import enable_compilation_cache
from onedc_jax.evaluate import report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="tiny", metavar="NAME_OR_PATH")
    parser.add_argument("--out", type=Path, help="JSON lines to append to, one for each image")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--save-images", type=Path, metavar="DIR", help="decoded images, as PNG")
    flags = parser.parse_args()
    enable_compilation_cache()
    try:
        failed = report(
            onedc_jax.load(flags.model),
            flags.images,
            out=flags.out,
            limit=flags.limit,
            save_to=flags.save_images,
        )
    except onedc_jax.OneDCError as error:
        print(f"onedc: {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
