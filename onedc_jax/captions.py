"""Captions to token ids, as CLIP's text encoder was trained on them.

A byte-pair encoding (Radford et al., 2021): lower case, one space for any white space, words and
runs of punctuation apart, digits one by one, a mark at the end of each word.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onedc_jax.errors import ModelError

FILES = ("vocab.json", "merges.txt")  # what makes a tokenizer, as CLIP's and SD 1.5's releases
LENGTH = 77  # tokens of a caption, start and end included

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class CaptionTokenizer:
    """Callable: a caption -> int32 [length].

    The start token, the caption's, cut to what fits, and the end token, which also fills up the
    rest. Ids are those of the vocabulary that it was loaded from, see `load_tokenizer`.
    """

    encoding: Any  # a tokenizers.Tokenizer
    start: int
    end: int
    length: int = LENGTH

    def __call__(self, caption: str) -> np.ndarray:
        ids = self.encoding.encode(caption, add_special_tokens=False).ids
        row = np.full(self.length, self.end, np.int32)
        row[0] = self.start
        ids = ids[: self.length - 2]
        row[1 : 1 + len(ids)] = ids
        return row


def load_tokenizer(folder: str | Path, length: int = LENGTH) -> CaptionTokenizer:
    """The tokenizer of a folder with vocab.json and merges.txt, or of a model folder with one in
    its tokenizer/.

    Raises ModelError if a file is missing or no such thing, or without the package tokenizers.
    """
    folder = find_files(folder)
    try:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise ModelError("captions need `pip install tokenizers`") from error
    try:
        vocabulary, merges = models.BPE.read_file(*(str(folder / name) for name in FILES))
        model = models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=_END,
            continuing_subword_prefix="",
            end_of_word_suffix=_WORD_END,
        )
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{folder}: not a tokenizer's {' and '.join(FILES)} ({error})") from error
    missing = [token for token in (_START, _END) if token not in vocabulary]
    if missing:
        raise ModelError(f"{folder / FILES[0]}: not CLIP's, it has no {missing[0]}")
    encoding = Tokenizer(model)
    encoding.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    encoding.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoding.add_special_tokens([_START, _END])
    return CaptionTokenizer(encoding, vocabulary[_START], vocabulary[_END], length)


def find_files(folder: str | Path) -> Path:
    """The folder of a tokenizer's files: the given one or its tokenizer/; ModelError if neither."""
    for place in (Path(folder), Path(folder) / "tokenizer"):
        if all((place / name).is_file() for name in FILES):
            return place
    raise ModelError(f"{folder}: no tokenizer here; expected {' and '.join(FILES)}")
