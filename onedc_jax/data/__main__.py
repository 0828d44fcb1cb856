"""Packs images into ArrayRecord files: python -m onedc_jax.data photos/ photos.array_record"""

import argparse
import os
import sys

from absl import logging
from tqdm import tqdm

from onedc_jax.data.pack import Smaller, pack
from onedc_jax.data.sources import ImageFolder, open_source
from onedc_jax.errors import OneDCError
from onedc_jax.folders import explain

_EPILOG = """\
SOURCE is a folder of images (the caption of photo.jpg is the text of photo.txt beside it), files
as *.parquet or *.arrow of a Hugging Face data set, *.array_record, or tfds:NAME/SPLIT for a data
set that TensorFlow Datasets has prepared.

OUT is NAME.array_record; with several shards, NAME-00000-of-00016.array_record and so on. A recipe
takes either as its data: --config.data.root=NAME.array_record. Image files are packed as they are,
metadata included, unless --max-side or --quality is given. Unreadable ones are left out.

examples:
  python -m onedc_jax.data photos/ data/train.array_record --shards 16
  python -m onedc_jax.data 'commoncatalog/*.parquet' data/train.array_record --max-side 2048
  python -m onedc_jax.data tfds:coco_captions/train data/coco.array_record --shards 32
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the exit status: 0, or 2 with one line for what a user can mend."""
    arguments = _parser().parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    smaller = None
    if arguments.max_side or arguments.quality:
        smaller = Smaller(arguments.max_side, arguments.quality or 95)
    try:
        source = open_source(arguments.source, keep=dict.fromkeys(arguments.leave_out, 0))
        if arguments.leave_out and not isinstance(source, ImageFolder):
            raise OneDCError(f"{arguments.source}: no folder of images; --leave-out is for those")
        with tqdm(total=len(source), unit="image", smoothing=0.05) as progress:
            files, written, skipped = pack(
                source,
                arguments.out,
                shards=arguments.shards,
                smaller=smaller,
                overwrite=arguments.overwrite,
                threads=arguments.threads,
                skipped=lambda message: progress.write(f"skipped: {message}", file=sys.stderr),
                done=progress.update,
            )
    except KeyboardInterrupt:
        print("pack: interrupted; nothing is written", file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"pack: {message}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in files)
    shards = f"{len(files)} files" if len(files) > 1 else "1 file"
    print(
        f"{arguments.out}: {written:,} images in {shards}, {size / 1e6:,.1f} MB; {skipped} skipped"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m onedc_jax.data",
        description="Packs images and their captions into ArrayRecord files, which training reads\n"
        "in random order fast and which are easy to copy.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="what to pack")
    parser.add_argument("out", metavar="OUT", help="NAME.array_record")
    parser.add_argument(
        "--shards", type=_positive, default=1, metavar="N", help="into how many files (default: 1)"
    )
    parser.add_argument(
        "--max-side",
        type=_positive,
        metavar="PIXELS",
        help="reduce larger images to this, as WebP (default: keep every file as it is)",
    )
    parser.add_argument(
        "--quality",
        type=_quality,
        metavar="Q",
        help="of WebP, 1 to 100 (default: 95); without --max-side, encodes every image anew",
    )
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="PATTERN",
        help="files of a folder to leave out, such as 'icons/*'; may be given again",
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="at work (default: all cores)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is called OUT")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number from 1 is wanted")
    return value


def _quality(text: str) -> int:
    value = _positive(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text}: a number from 1 to 100 is wanted")
    return value


if __name__ == "__main__":
    sys.exit(main())
