"""Symbols come back exactly, at the price their tables name; anything else is refused."""

import numpy as np
import pytest
import reader
from constriction import stream

from onedc_jax.coding import entropy, tables
from onedc_jax.errors import StreamError


def sample(rng, count, levels=None):
    """Gaussian symbols with a tail that needs escapes, and their levels."""
    indices = rng.integers(0, 256, count) if levels is None else rng.choice(levels, count)
    scales = 0.11 * (64 / 0.11) ** (indices / 255)
    symbols = np.round(rng.normal(size=count) * scales * rng.choice([1, 1, 1, 8], count))
    return symbols.astype(np.int32), indices.astype(np.uint8)


def encode(steps):
    """The bytes alone."""
    return entropy.encode_steps(steps)[0]


def decode(data, steps, lengths):
    decoder = entropy.SymbolDecoder(data, lengths)
    decoded = [decoder.decode(indices) for _, indices in steps]
    decoder.finish()
    return decoded


def information(steps):
    """Bits that the tables give to the symbols, 16 more for each escape."""
    loaded, bits = tables.load(), 0.0
    for symbols, indices in steps:
        for symbol, level in zip(symbols.tolist(), indices.tolist(), strict=True):
            code = min(2 * symbol if symbol >= 0 else -2 * symbol - 1, int(loaded.escape[level]))
            bits += 24 - np.log2(loaded.frequencies[level][code])
            bits += 16 * (code == loaded.escape[level])
    return bits


@pytest.mark.parametrize("levels", [None, [0], [255], [3, 4]])
def test_round_trip(levels):
    rng = np.random.default_rng(1)
    steps = [sample(rng, count, levels) for count in (3000, 0, 1, 700)]
    data, lengths = entropy.encode_steps(steps)
    assert 4 * sum(lengths) - len(data) in range(4)
    results = decode(data, steps, lengths)
    for (symbols, _), decoded in zip(steps, results, strict=True):
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, symbols)


def test_every_table_and_every_boundary_of_it():
    """Values around each support's end, and the extremes, under each of the 256 tables."""
    ends = tables.load().escape // 2
    values = np.array([0, 1, -1, 32767, -32767])
    per_level = [np.concatenate([values, [e, -e, e + 1, -e - 1]]) for e in ends]
    indices = np.repeat(np.arange(256, dtype=np.uint8), 9)
    steps = [(np.concatenate(per_level).astype(np.int32), indices)]
    data, lengths = entropy.encode_steps(steps)
    np.testing.assert_array_equal(decode(data, steps, lengths)[0], steps[0][0])


def test_the_bytes_are_those_of_the_format():
    """An independent decoder, written from the format's description, reads the same symbols."""
    rng = np.random.default_rng(2)
    for counts in ((200,) * 4, (0, 5, 0, 90), (3, 0, 0, 0), (90, 1, 2, 0)):
        steps = [sample(rng, count) for count in counts]
        data, lengths = entropy.encode_steps(steps)
        results, expected = reader.read_symbols(data, [levels.tolist() for _, levels in steps])
        assert list(lengths) == expected
        assert results == [symbols.tolist() for symbols, _ in steps]


def test_the_first_steps_need_only_their_own_bytes():
    rng = np.random.default_rng(8)
    for counts in ((3000, 700, 1, 90), (0, 5, 0, 90), (200, 0, 3000, 2), (1, 1, 1, 1)):
        steps = [sample(rng, count) for count in counts]
        data, lengths = entropy.encode_steps(steps)
        missing = 4 * sum(lengths) - len(data)
        for count in range(5):
            first = data[: 4 * sum(lengths[:count]) - missing if count else 0]
            decoder = entropy.SymbolDecoder(first, lengths[:count])
            for k, (symbols, indices) in enumerate(steps):
                expected = symbols if k < count else np.zeros_like(symbols)
                np.testing.assert_array_equal(decoder.decode(indices), expected)


def test_of_a_cut_stream_the_last_step_may_not_look_for_more_words():
    """Where damage makes it longer they run out; an honest decoder has words for its state."""
    rng = np.random.default_rng(11)
    indices = np.full(400, 255, np.uint8)
    steps = [(rng.integers(-99, 100, 400).astype(np.int32), indices) for _ in range(2)]
    data, lengths = entropy.encode_steps(steps)
    first = data[: 4 * lengths[0] - (4 * sum(lengths) - len(data))]
    decoder = entropy.SymbolDecoder(first, lengths[:1])
    decoder.decode(indices)
    decoder.finish(cut=True)
    longer = entropy.SymbolDecoder(first, lengths[:1])
    longer.decode(np.full(500, 255, np.uint8))
    with pytest.raises(StreamError, match="does not end where it should"):
        longer.finish(cut=True)


def test_the_last_step_of_a_cut_stream_may_not_use_up_all_there_is():
    """The words of the steps behind it would have kept the state large."""
    table, code = tables.load().frequencies[255], 1  # of the value -1
    data = int(table[0]).to_bytes(3, "big")  # a state that decodes to it and to 0 at once
    decoder = entropy.SymbolDecoder(data, (1,))
    assert decoder.decode(np.full(1, 255, np.uint8)) == -code
    assert decoder._coder.pos()[1] == 0
    with pytest.raises(StreamError, match="does not end where it should"):
        decoder.finish(cut=True)


def test_a_step_of_another_length_is_noticed():
    steps = [sample(np.random.default_rng(9), 400) for _ in range(4)]
    data, lengths = entropy.encode_steps(steps)
    for k in range(3):
        wrong = list(lengths)
        wrong[k], wrong[k + 1] = wrong[k] + 1, wrong[k + 1] - 1
        decoder = entropy.SymbolDecoder(data, wrong)
        for _, indices in steps[:k]:
            decoder.decode(indices)
        with pytest.raises(StreamError, match="does not end where it should"):
            decoder.decode(steps[k][1])


def test_steps_of_zeros_at_the_end_are_free():
    rng = np.random.default_rng(10)
    steps = [sample(rng, 300), sample(rng, 300)]
    zeros = [(np.zeros(300, np.int32), sample(rng, 300)[1]) for _ in range(2)]
    none = (np.zeros(0, np.int32), np.zeros(0, np.uint8))
    assert entropy.encode_steps([*steps, *zeros]) == entropy.encode_steps([*steps, none, none])


def test_the_example_of_the_format():
    first = np.array([0, -1, 2, 0, 300], np.int32), np.array([128, 0, 100, 128, 100], np.uint8)
    second = np.array([1], np.int32), np.array([255], np.uint8)
    data, lengths = entropy.encode_steps([first, second])
    assert data.hex(" ") == "01 ac 07 78 ff ff 47 77 de b4 38"
    assert lengths == (3, 0)


def test_models_have_exactly_the_tables_frequencies():
    """Slots at both ends of each code's interval decode to that code, in every table."""
    for level, frequencies in enumerate(tables.load().frequencies):
        ends = np.cumsum(frequencies, dtype=np.uint32)
        model = entropy._model(level)
        for slots in (ends - frequencies, ends - 1):
            for code, slot in enumerate(slots.tolist()):
                words = np.array([slot] if slot else [], np.uint32)  # a state below 2**24 is a slot
                assert stream.stack.AnsCoder(words).decode(model) == code


@pytest.mark.parametrize("levels", [None, [0], [0, 0, 0, 0, 90], [255]])
@pytest.mark.parametrize("count", [1, 10, 5000])
def test_size_is_the_information(levels, count):
    rng = np.random.default_rng(count)
    steps = [sample(rng, count, levels) for _ in range(4)]
    assert 8 * len(encode(steps)) <= 1.001 * information(steps) + 32


def test_nothing_and_certainties_cost_nothing():
    zeros = (np.zeros(49152, np.int32), np.zeros(49152, np.uint8))
    none = (np.zeros(0, np.int32), np.zeros(0, np.uint8))
    assert encode([]) == encode([none] * 4) == b""
    assert entropy.encode_steps([zeros] * 4) == (b"", (0,) * 4)
    for lengths in ((), (0,) * 4):
        assert not np.any(decode(b"", [zeros] * 4, lengths))


def test_encoding_is_deterministic():
    assert entropy.encode_steps([sample(np.random.default_rng(3), 500)]) == entropy.encode_steps(
        [sample(np.random.default_rng(3), 500)]
    )


@pytest.mark.parametrize("symbol", [32768, -32768, -(2**31)])
def test_a_symbol_out_of_range_is_refused(symbol):
    with pytest.raises(ValueError, match="32767"):
        entropy.encode_steps([(np.array([symbol], np.int32), np.zeros(1, np.uint8))])


def test_other_dtypes_are_refused():
    indices = np.zeros(2, np.uint8)
    with pytest.raises(ValueError, match="int32"):
        entropy.encode_steps([(np.zeros(2), indices)])
    with pytest.raises(ValueError, match="int32"):
        entropy.encode_steps([(np.zeros(3, np.int32), indices)])
    with pytest.raises(ValueError, match="uint8"):
        entropy.SymbolDecoder(b"", (0,)).decode(indices.astype(np.int32))


def test_bytes_left_over_are_noticed():
    steps = [sample(np.random.default_rng(4), 300)]
    data, (length,) = entropy.encode_steps(steps)
    with pytest.raises(StreamError, match="does not end"):
        decode(data + b"\1", steps, (length,))


def test_other_tables_are_noticed():
    symbols, indices = sample(np.random.default_rng(5), 300, [100])
    data, lengths = entropy.encode_steps([(symbols, indices)])
    with pytest.raises(StreamError):
        decode(data, [(symbols, indices + np.uint8(9))], lengths)


def test_a_leading_zero_byte_is_refused():
    with pytest.raises(StreamError, match="zero"):
        entropy.SymbolDecoder(b"\0\1", (1,))


def test_an_escape_of_a_value_with_its_own_code_is_refused():
    code, frequencies = tables.load().escape[0], tables.load().frequencies[0]
    start = int(frequencies[:code].sum())
    for raw in (0, 4, 65536 - 4, 32768):  # under level 0, -4..4 have codes; -32768 is no symbol
        state = raw << 8  # raw, coded last
        state = (state // 16 << 24) + start + state % 16  # the escape, of frequency 16, before it
        decoder = entropy.SymbolDecoder(state.to_bytes(8, "big").lstrip(b"\0"), (2,))
        with pytest.raises(StreamError, match="escape"):
            decoder.decode(np.zeros(1, np.uint8))


def test_noise_decodes_to_something_or_is_refused():
    rng = np.random.default_rng(6)
    refused = 0
    for _ in range(300):
        data = rng.bytes(rng.integers(0, 60))
        indices = rng.integers(0, 256, rng.integers(0, 50)).astype(np.uint8)
        try:
            decoder = entropy.SymbolDecoder(data, (-(-len(data) // 4),))
            symbols = decoder.decode(indices)
            decoder.finish()
        except StreamError:
            refused += 1
        else:  # then it is the one encoding of these symbols
            assert encode([(symbols, indices)]) == data
    assert refused < 300
