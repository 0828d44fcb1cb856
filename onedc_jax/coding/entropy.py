"""Entropy coding of y: integer symbols under integer frequency tables, to bytes and back.

The coder is the range variant of asymmetric numeral systems (Duda et al., 2015), as implemented by
`constriction`: a stack, so the encoder works backwards and the decoder forwards. Everything is
integer arithmetic; docs/format.md states it in full.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from constriction import stream

from onedc_jax.coding import tables
from onedc_jax.errors import StreamError

MAX_SYMBOL = 32767
"""The largest magnitude of a symbol."""

_FULL = 2**32  # the coder's state is at least this as long as there are words to read
ESCAPE_BITS = 16  # of the value behind an escape
# The size is a power of two, so each value has exactly 2**8 of the 2**24.
_ESCAPED = stream.model.Uniform(2**ESCAPE_BITS)


@functools.lru_cache(maxsize=tables.LEVELS)
def _model(level: int) -> stream.model.Categorical:
    """Returns a model with exactly the table's frequencies.

    `Categorical` makes floats p of n symbols into cumulative frequencies c[k] =
    trunc(sum(p[:k]) * ((2**24 - n) / sum(p))) + k. For p = frequency - 1, integers that add up to
    2**24 - n, the factor is 1 and every sum an integer below 2**24: nothing is ever rounded, in any
    order of summation, and c[k] is the sum of the first k frequencies.
    """
    return stream.model.Categorical(tables.load().frequencies[level] - 1.0, perfect=False)


def _zigzag(values: np.ndarray) -> np.ndarray:
    return (values << 1) ^ (values >> 31)  # int32: 0, -1, +1, -2, +2, ... -> 0, 1, 2, 3, 4, ...


def _by_level(
    indices: np.ndarray,
) -> tuple[np.ndarray, list[tuple[int, int, int]], np.ndarray]:
    """Sorts by level, each level in the given order.

    Returns the order, its runs (level, start, stop), and the escape's code at each of its places.
    """
    if indices.dtype != np.uint8 or indices.ndim != 1:
        raise ValueError(f"indices must be uint8 [N], not {indices.dtype} {list(indices.shape)}")
    counts = np.bincount(indices, minlength=tables.LEVELS)
    stops = np.cumsum(counts).tolist()
    starts = [0, *stops[:-1]]
    runs = [
        (level, start, stop)
        for level, (start, stop) in enumerate(zip(starts, stops, strict=True))
        if stop > start
    ]
    return np.argsort(indices, kind="stable"), runs, np.repeat(tables.load().escape, counts)


def encode_steps(
    steps: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[bytes, tuple[int, ...]]:
    """Encodes steps of symbols; the same steps, symbols and indices always give the same bytes.

    Args:
      steps: in the order in which they will be decoded, pairs of symbols, int32 [N] within
        +-32767, and the levels of their tables, uint8 [N]; N may differ between steps and be 0.
        Steps of zeros at the end may as well be left out: they add no byte.

    Returns:
      The bytes, at most 32 bits (and 0.1 %) longer than the symbols' information; and for each step
      the number of 32-bit words that a decoder has taken in when it has decoded the step, less
      those of the steps before. So all but the first are 4 bytes each.

    Raises:
      ValueError: a symbol beyond +-32767, or arrays of another shape or dtype.
    """
    coder = stream.stack.AnsCoder()
    unread = []  # words that a decoder has left after each step, from the last
    for symbols, indices in reversed(steps):
        unread.append(_unread(coder))
        order, runs, escapes = _by_level(indices)
        if symbols.shape != indices.shape or symbols.dtype != np.int32:
            raise ValueError(
                f"symbols must be int32 {list(indices.shape)}, not {symbols.dtype} "
                f"{list(symbols.shape)}"
            )
        if symbols.size and not -MAX_SYMBOL <= symbols.min() <= symbols.max() <= MAX_SYMBOL:
            raise ValueError(f"a symbol of y is beyond +-{MAX_SYMBOL}")
        values = symbols[order]
        codes = np.minimum(_zigzag(values), escapes)
        escaped = codes == escapes
        # Last in, first out: what is decoded last is encoded first.
        coder.encode_reverse(values[escaped] & 0xFFFF, _ESCAPED)
        for level, start, stop in reversed(runs):
            coder.encode_reverse(codes[start:stop], _model(level))
    words = coder.get_compressed()  # the last word holds the coder's top bits and is not zero
    ends = [0, *(len(words) - count for count in reversed(unread))]
    lengths = tuple(after - before for before, after in itertools.pairwise(ends))
    return words[::-1].astype(">u4").tobytes().lstrip(b"\0"), lengths


class SymbolDecoder:
    """Decodes what `encode_steps` wrote, step by step.

        decoder = SymbolDecoder(data, lengths)
        symbols = [decoder.decode(indices_of(k)) for k in range(4)]
        decoder.finish()

    Any bytes decode to *some* symbols, in time and memory bounded by their number; `finish` then
    tells whether they are what was encoded with these indices. Steps that have no length are
    missing: their symbols are all 0.

    Args:
      data: the bytes, or the first of them: as many as the steps that have a length need.
      lengths: of the steps, in words, as `encode_steps` returned them, or the first of them.

    Raises:
      StreamError: bytes that no encoder writes.
    """

    def __init__(self, data: bytes, lengths: Sequence[int]):
        if data[:1] == b"\0":
            raise StreamError("the stream is damaged: its y part begins with a zero byte")
        padded = bytes(-len(data) % 4) + data
        words = np.frombuffer(padded, ">u4")[::-1]
        self._coder = stream.stack.AnsCoder(words.astype(np.uint32))
        self._unread = [len(words) - end for end in itertools.accumulate(lengths)]
        self._begun = bool(lengths)

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Decodes the next step.

        Args:
          indices: uint8 [N], the levels of the tables.

        Returns:
          The symbols, int32 [N], within +-32767.

        Raises:
          StreamError: an escaped value that should not have been one, or a step that does not end
            where its length says.
        """
        if not self._unread:
            return np.zeros(indices.shape, np.int32)
        order, runs, escapes = _by_level(indices)
        codes = np.empty(indices.shape, np.int32)
        for level, start, stop in runs:
            codes[start:stop] = self._coder.decode(_model(level), stop - start)
        values = (codes >> 1) ^ -(codes & 1)
        escaped = np.flatnonzero(codes == escapes)
        raw = self._coder.decode(_ESCAPED, len(escaped)).astype(np.uint16).view(np.int16)
        raw = raw.astype(np.int32)
        if np.any((_zigzag(raw) < escapes[escaped]) | (raw < -MAX_SYMBOL)):
            raise StreamError("the stream is damaged: y holds an impossible escape")
        if _unread(self._coder) != self._unread.pop(0):
            raise StreamError(
                "a step of y does not end where it should: the stream is damaged, or of another "
                "model or machine"
            )
        values[escaped] = raw
        symbols = np.empty_like(values)
        symbols[order] = values
        return symbols

    def finish(self, cut: bool = False) -> None:
        """Checks that the last symbol was decoded and the bytes end here.

        Args:
          cut: steps are missing, of which at least one has bytes. Then the coder must not have
            looked for the words behind those that are there.

        Raises:
          StreamError: the bytes do not end here; the indices differ from the encoder's, or the
            bytes are damaged.
        """
        unread, state = self._coder.pos()
        if unread or (state < _FULL if cut and self._begun else state):
            raise StreamError(
                "y does not end where it should: the stream is damaged, or of another model or "
                "machine"
            )


def _unread(coder: stream.stack.AnsCoder) -> int:
    """The words that a coder has not taken into its state."""
    return coder.pos()[0]
