"""Captions to ids, with a vocabulary small enough to work out by hand."""

import json
import pickle

import numpy as np
import pytest

from onedc_jax.captions import load_tokenizer
from onedc_jax.errors import ModelError

# Merges in order of preference, and all that they can leave.
MERGES = ["c a", "ca t</w>", "a t</w>", "' s</w>", "ca r"]
SYMBOLS = list("acerst'!12Ã©")
VOCABULARY = [
    *SYMBOLS,
    *(symbol + "</w>" for symbol in SYMBOLS),
    *("ca", "cat</w>", "at</w>", "'s</w>", "car"),
    *("<|startoftext|>", "<|endoftext|>"),
]
ID = {token: i for i, token in enumerate(VOCABULARY)}
START, END = len(ID) - 2, len(ID) - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "vocab.json").write_text(json.dumps(ID))
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return path


@pytest.fixture(scope="module")
def tokenize(folder):
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    "caption, tokens",
    [
        ("", []),
        ("cat", ["cat</w>"]),
        ("Cat CAR", ["cat</w>", "ca", "r</w>"]),  # lower case; the r that ends a word is another
        ("  cat \n\t car  ", ["cat</w>", "ca", "r</w>"]),  # any white space is one space
        ("cars", ["car", "s</w>"]),
        ("cat's", ["cat</w>", "'s</w>"]),
        ("at!!", ["at</w>", "!", "!</w>"]),  # punctuation is a word
        ("12", ["1</w>", "2</w>"]),  # each digit is a word
        ("cat1", ["cat</w>", "1</w>"]),
        ("é", ["Ã", "©</w>"]),  # by its bytes
        ("e\u0301", ["Ã", "©</w>"]),  # composed first
        ("É", ["Ã", "©</w>"]),
    ],
)
def test_words_become_the_ids_worked_out_by_hand(tokenize, caption, tokens):
    ids = tokenize(caption)
    assert ids.shape == (77,) and ids.dtype == np.int32
    expected = [START, *(ID[token] for token in tokens)]
    np.testing.assert_array_equal(ids, expected + [END] * (77 - len(expected)))


def test_a_long_caption_is_cut_and_still_ends(tokenize):
    ids = tokenize("cat " * 100)
    np.testing.assert_array_equal(ids, [START, *[ID["cat</w>"]] * 75, END])


def test_a_tokenizer_travels_to_other_processes(tokenize):
    other = pickle.loads(pickle.dumps(tokenize))
    np.testing.assert_array_equal(other("a cat"), tokenize("a cat"))


def test_a_model_folder_is_enough(folder, tmp_path, tokenize):
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).write_text((folder / name).read_text())
    np.testing.assert_array_equal(load_tokenizer(tmp_path)("cat"), tokenize("cat"))


def test_missing_and_broken_files_are_named(folder, tmp_path):
    with pytest.raises(ModelError, match=r"nowhere: no tokenizer.*vocab.json and merges.txt"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.json").write_text("not JSON")
    with pytest.raises(ModelError, match="not a tokenizer's"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ModelError, match=r"has no <\|startoftext"):
        load_tokenizer(tmp_path)
