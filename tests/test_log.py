"""The run's log: valid JSON whatever happens, and image grids."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from onedc_jax import log


def lines(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_lines_hold_plain_numbers(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    with log.JsonLines(path) as writer:
        writer.write(step=np.int64(3), loss=jnp.float32(0.5), rate={"y": jnp.arange(2)}, name="é")
    assert lines(path) == [{"step": 3, "loss": 0.5, "rate": {"y": [0, 1]}, "name": "é"}]


def test_lines_are_there_before_the_file_is_closed(tmp_path):
    writer = log.JsonLines(tmp_path / "log")
    writer.write(step=1)
    assert lines(tmp_path / "log") == [{"step": 1}]
    writer.close()


def test_a_resumed_log_goes_on_after_its_last_whole_line(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    with log.JsonLines(path) as writer:
        writer.write(step=2)
    assert lines(path) == [{"step": 1}, {"step": 2}]


def test_a_name_that_is_not_utf_8_comes_back(tmp_path):
    with log.JsonLines(tmp_path / "log") as writer:
        writer.write(name="\udce9.png")
    assert lines(tmp_path / "log") == [{"name": "\udce9.png"}]


@pytest.mark.parametrize("value,text", [(jnp.nan, "nan"), (np.float32("-inf"), "-inf")])
def test_what_json_lacks_is_a_word(tmp_path, value, text):
    with log.JsonLines(tmp_path / "log") as writer:
        writer.write(loss=value, list=jnp.array([value, 1]))
    assert lines(tmp_path / "log") == [{"loss": text, "list": [text, 1]}]


def test_panels_place_each_image_in_its_cell(tmp_path):
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 255, (*s, 3), np.uint8) for s in ((4, 6), (3, 5), (2, 7)))
    log.save_panel(tmp_path / "panels" / "1.png", [[a, b], [c]], gap=1)
    panel = np.asarray(Image.open(tmp_path / "panels" / "1.png"))
    assert panel.shape == (4 + 1 + 2, 7 + 1 + 5, 3)
    np.testing.assert_array_equal(panel[:4, :6], a)
    np.testing.assert_array_equal(panel[:3, 8:], b)
    np.testing.assert_array_equal(panel[5:, :7], c)
    assert np.all(panel[4] == 255)
