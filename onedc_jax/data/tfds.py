"""Examples of the data sets that TensorFlow Datasets has prepared, without TensorFlow."""

import os
import re
from typing import Any

from onedc_jax.data.examples import CAPTION_NAMES, IMAGE_NAMES, Source, one_caption
from onedc_jax.errors import OneDCError, one_line


class TfdsImages(Source):
    """The images and captions of a data set by name: "tfds:NAME", "tfds:NAME/CONFIG/SPLIT".

    Without a split it is "train"; slices such as train[:10%] work. The data set must have been
    prepared as ArrayRecord, in the folder that TFDS_DATA_DIR names or else ~/tensorflow_datasets:
    nothing is downloaded here. Its image is the field called "image" or "hr", or its only one; its
    caption that of "captions", "caption" or "text", one of them for each image.

    Raises OneDCError for a data set that is not prepared so, or has no such split or no images.
    """

    def __init__(self, spec: str, *, cache_gib: float = 0.0):
        super().__init__(spec, cache_gib=cache_gib)
        self._folder = os.environ.get("TFDS_DATA_DIR") or None
        self._builder_name, self._split = self._find(spec.removeprefix("tfds:").strip("/"))
        self._image = self._image_field()
        self._length = len(self._opened)

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def record(self, index: int) -> tuple[bytes, str]:
        fields = self._opened[index]
        return fields[self._image], one_caption(_caption(fields), index)

    def _find(self, name: str) -> tuple[str, str]:
        """The name of the data set (with its configuration, if any) and the split."""
        shorter, _, last = name.rpartition("/")
        builder = self._builder(shorter) if shorter else None
        if builder and re.split(r"[\[+]", last)[0] in (splits := builder.info.splits):
            return shorter, last
        if whole := self._builder(name):
            if "train" in whole.info.splits:
                return name, "train"
            raise OneDCError(f"{self.title}: has no split train; add {_any(whole.info.splits)}")
        if builder:
            raise OneDCError(f"{self.title}: has no split {last!r}, only {_any(splits)}")
        command = f"tfds build {name.split('/')[0]} --file_format=array_record"
        if self._folder:
            command += f" --data_dir={self._folder}"
        raise OneDCError(
            f"{self.title}: not prepared in {self._folder or '~/tensorflow_datasets'} "
            f"(TFDS_DATA_DIR); where TensorFlow is there, run: {command}"
        )

    def _builder(self, name: str) -> Any:
        """The data set as its files describe it, or None where there are none."""
        try:
            import tensorflow_datasets as tfds
            from tensorflow_datasets.core import read_only_builder
        except ImportError as error:
            raise OneDCError(
                f"{self.title}: needs tensorflow-datasets: pip install 'onedc-jax[train]'"
            ) from error
        # Not tfds.builder: where it knows a data set, that runs its code, which needs TensorFlow.
        try:
            return read_only_builder.builder_from_files(name, data_dir=self._folder)
        except tfds.core.DatasetNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise OneDCError(f"{self.title}: {one_line(error)}") from error

    def _image_field(self) -> str:
        import tensorflow_datasets as tfds

        features = self._builder(self._builder_name).info.features
        fields = [k for k, v in features.items() if isinstance(v, tfds.features.Image)]
        known = [name for name in IMAGE_NAMES if name in fields]
        if not known and len(fields) != 1:
            raise OneDCError(f"{self.title}: which of {', '.join(features)} is its image?")
        return (known or fields)[0]

    def _open(self) -> Any:
        import tensorflow_datasets as tfds

        builder = self._builder(self._builder_name)
        fields = builder.info.features.items()
        # Images stay the files they are: we decode all sources alike, and not those we do not use.
        raw = {
            k: tfds.decode.SkipDecoding() for k, v in fields if isinstance(v, tfds.features.Image)
        }
        try:
            return builder.as_data_source(self._split, decoders=raw)
        except NotImplementedError as error:
            raise OneDCError(
                f"{self.title}: not prepared as ArrayRecord; run: tfds convert_format --help"
            ) from error
        except (ValueError, RuntimeError) as error:
            raise OneDCError(f"{self.title}: {one_line(error)}") from error


def _caption(fields: dict) -> Any:
    """Text, or several: of {"captions": {"text": [...]}}, {"caption": ...} and the like."""
    for name in CAPTION_NAMES:
        value = fields.get(name)
        if isinstance(value, dict):
            value = _caption(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            value = [_caption(item) for item in value]
        if value is not None:
            return value
    return None


def _any(splits: Any) -> str:
    return ", ".join(f"/{split}" for split in splits)
