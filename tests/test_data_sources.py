"""Sources of examples: the same pictures and captions out of whatever they are stored in."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from onedc_jax.data import ImageFolder, open_source, tables
from onedc_jax.data.__main__ import main
from onedc_jax.data.examples import one_caption
from onedc_jax.data.sources import pack_record, unpack_record
from onedc_jax.errors import ImageError, OneDCError

COUNT = 7


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven pictures of one colour each and of different sizes; all but the first have captions."""
    root = tmp_path_factory.mktemp("photos")
    for n in range(COUNT):
        Image.new("RGB", (20 + n, 30), (n, 2 * n, 3 * n)).save(root / f"{n}.png")
        if n:
            (root / f"{n}.txt").write_text(f" a tree, n° {n}\n")
    return root


@pytest.fixture(scope="module")
def rows(photos):
    files = [(photos / f"{n}.png").read_bytes() for n in range(COUNT)]
    return files, [example["caption"] for example in ImageFolder(photos)]


def check_same(source, photos):
    expected = ImageFolder(photos)
    assert len(source) == COUNT
    for n in range(COUNT):
        np.testing.assert_array_equal(source[n]["image"], expected[n]["image"])
        assert source[n]["caption"] == expected[n]["caption"]
    assert not source.unreadable


def test_a_folder_has_captions_beside_its_images(photos):
    source = open_source(photos)
    assert source[0]["caption"] == "" and source[3]["caption"] == "a tree, n° 3"
    assert source[3]["image"].shape == (30, 23, 3) and source[3]["image"].dtype == np.uint8
    with pytest.raises(IndexError):
        source[COUNT]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("named", ["photos.array_record", "photos*.array_record", ""])
def test_packed_images_are_the_folders(photos, tmp_path, capsys, shards, named):
    assert main([str(photos), str(tmp_path / "photos.array_record"), f"--shards={shards}"]) == 0
    assert f"{COUNT} images" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == shards
    source = open_source(str(tmp_path / named))
    check_same(pickle.loads(pickle.dumps(source)), photos)
    assert source.record(3)[0] == (photos / "3.png").read_bytes()


def test_records_keep_bytes_and_captions():
    assert unpack_record(pack_record(b"\x00ODCI", "ä tree")) == (b"\x00ODCI", "ä tree")
    assert unpack_record(b"\x89PNG whatever") == (b"\x89PNG whatever", "")
    with pytest.raises(ImageError):
        unpack_record(pack_record(b"", "a long caption")[:-1])


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_files_are_read_across_their_row_groups(photos, rows, tmp_path, struct):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    files, captions = rows
    if struct:
        files = [{"bytes": data, "path": None} for data in files]
    names = ("image", "text") if struct else ("jpg", "blip2_caption")
    for n, part in enumerate((slice(0, 5), slice(5, COUNT))):
        table = pa.table(
            {"url": [""] * len(files[part]), names[0]: files[part], names[1]: captions[part]}
        )
        parquet.write_table(table, tmp_path / f"train-{n:05d}-of-00002.parquet", row_group_size=2)
    check_same(open_source(tmp_path), photos)
    check_same(pickle.loads(pickle.dumps(open_source(f"{tmp_path}/*.parquet"))), photos)


@pytest.mark.parametrize("kind", ["new_file", "new_stream"])
def test_arrow_files_are_read_in_both_forms(photos, rows, tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"image": rows[0], "caption": rows[1]})
    with getattr(pa.ipc, kind)(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    check_same(open_source(tmp_path / "a.arrow"), photos)


def test_arrow_files_may_be_numbered_behind_their_kind(photos, rows, tmp_path):
    pa = pytest.importorskip("pyarrow")
    for n, part in enumerate((slice(0, 5), slice(5, COUNT))):
        table = pa.table({"image": rows[0][part], "caption": rows[1][part]})
        name = f"a.arrow-{n:05d}-of-00002"
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    check_same(open_source(tmp_path), photos)


def test_hidden_images_do_not_make_a_folder_one_of_images(photos, rows, tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"image": rows[0], "caption": rows[1]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / ".thumbs").mkdir()
    for name in ("._a.jpg", ".thumbs/1.jpg"):
        (tmp_path / name).touch()
    check_same(open_source(tmp_path), photos)


@pytest.fixture(scope="module")
def prepared(rows, tmp_path_factory):
    """A data set as TFDS would have prepared it: its own features and messages, ArrayRecord."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    root = tmp_path_factory.mktemp("tfds")
    folder = root / "trees" / "1.0.0"
    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(
        str(folder / "trees-train.array_record-00000-of-00001"), "group_size:1"
    )
    for data, caption in zip(*rows, strict=True):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["image"].bytes_list.value.append(data)
        feature["captions/text"].bytes_list.value.extend([caption.encode()] * 2)
        writer.write(example.SerializeToString())
    writer.close()
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="png"),
            "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
        }
    )
    features.save_config(str(folder))
    split = dict(
        name="train",
        shardLengths=[str(COUNT)],
        numBytes="1",
        filepathTemplate="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    info = dict(name="trees", version="1.0.0", fileFormat="array_record", splits=[split])
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return root


def test_tfds_by_name_without_tensorflow(photos, prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    for spec in ("tfds:trees", "tfds:trees/train"):
        check_same(pickle.loads(pickle.dumps(open_source(spec))), photos)
    assert len(open_source("tfds:trees/train[:3]")) == 3
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "spec, message",
    [
        ("tfds:coco_captions/train", "tfds build coco_captions"),
        ("tfds:trees/test", "no split 'test', only /train"),
        ("trees/1.0.0", "name it tfds:"),
    ],
)
def test_what_tfds_has_not_prepared_is_one_line(prepared, monkeypatch, spec, message):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.chdir(prepared)
    with pytest.raises(OneDCError, match=message) as error:
        open_source(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing", "no such folder"),
        ("nothing.parquet", "no such file"),
        ("nothing*.arrow", "no .array_record"),
        ("empty", "no images"),
        ("readme.txt", "neither a folder nor"),
        ("bad.array_record", "not ArrayRecord"),
        ("bad.parquet", "not a Parquet"),
        ("bad.arrow", "not a Parquet or Arrow"),
        ("columns.parquet", r"columns \(url\)"),
        ("mixed", "array_record and parquet"),
        ("partly", "number 00001 is missing"),
        ("alone/a.array_record", "number 00001 is missing"),
        ("beyond", "number 00002 is none of these"),
    ],
)
def test_what_cannot_be_opened_is_one_line(tmp_path, monkeypatch, name, message):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for folder in ("empty", "mixed", "partly", "alone", "beyond"):
        (tmp_path / folder).mkdir()
    for path in ("readme.txt", "bad.array_record", "bad.parquet", "bad.arrow"):
        (tmp_path / path).write_text("nonsense")
    for path in ("mixed/a.array_record", "mixed/a.parquet"):
        (tmp_path / path).touch()
    for n in (0, 2):
        (tmp_path / f"partly/a-0000{n}-of-00003.array_record").touch()
    (tmp_path / "alone/a-00000-of-00003.array_record").touch()
    for n in range(3):
        (tmp_path / f"beyond/a-0000{n}-of-00002.array_record").touch()
    parquet.write_table(pa.table({"url": [""]}), tmp_path / "columns.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OneDCError, match=message) as error:
        open_source(name)
    assert "\n" not in str(error.value)


def test_an_error_of_no_words_is_called_by_its_type(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")

    def fail(path):
        raise OSError

    monkeypatch.setattr(tables, "_open_table", fail)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(OneDCError, match=r"damaged \(OSError\)"):
        open_source(tmp_path / "a.parquet")


def test_rows_without_an_image_are_replaced_and_counted(rows, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    files = [None, b"not an image", rows[0][2][:40], *rows[0]]
    parquet.write_table(pa.table({"jpg": pa.array(files, pa.binary())}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    shapes = [source[n]["image"].shape for n in range(3)]
    assert shapes == [open_source(tmp_path / "a.parquet")[n]["image"].shape for n in range(3)]
    assert len(source.unreadable) == 3
    assert all("a.parquet[" in message for message in source.unreadable.values())


def test_a_record_that_is_cut_short_is_named(rows, tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(pack_record(b"", "a long caption")[:-1])
    writer.close()
    with pytest.raises(ImageError, match=r"a\.array_record\[0\]: .*cut short"):
        open_source(path).decode(0)


def test_one_of_several_captions_is_chosen_for_good():
    captions = [b"a", b"b", b"c"]
    chosen = [one_caption(captions, n) for n in range(60)]
    assert chosen == [one_caption(captions, n) for n in range(60)]
    assert set(chosen) == {"a", "b", "c"}
    assert one_caption([], 1) == one_caption(None, 1) == ""
    assert one_caption(b"\xef\xbb\xbfA dog", 0) == "A dog"  # with what some editors begin files


def test_packing_makes_images_smaller_where_asked(photos, tmp_path, capsys):
    out = tmp_path / "small.array_record"
    assert main([str(photos), str(out), "--max-side=30", "--quality=50"]) == 0
    source = open_source(out)
    assert source.record(0)[0] == (photos / "0.png").read_bytes()  # fits
    assert main([str(photos), str(out), "--max-side=15", "--overwrite"]) == 0
    source = open_source(out)
    with Image.open(io.BytesIO(source.record(0)[0])) as image:
        assert (image.format, image.size) == ("WEBP", (10, 15))
    assert source[3]["caption"] == "a tree, n° 3"


def test_packing_leaves_out_what_is_unreadable_or_named(photos, tmp_path, capsys):
    for n in range(COUNT):
        data = (photos / f"{n}.png").read_bytes()
        (tmp_path / f"{n}.png").write_bytes(data if n != 2 else data[:30])
    out = tmp_path / "out" / "a.array_record"
    assert main([str(tmp_path), str(out), "--leave-out=5*"]) == 0
    stdout, stderr = capsys.readouterr()
    assert "5 images" in stdout and "1 skipped" in stdout and "2.png" in stderr
    assert [open_source(out)[n]["image"].shape[1] for n in range(5)] == [20, 21, 23, 24, 26]


def test_packing_replaces_only_when_asked_and_then_wholly(photos, tmp_path, capsys):
    out = tmp_path / "a.array_record"
    assert main([str(photos), str(out), "--shards=4"]) == 0
    assert main([str(photos), str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([str(photos), str(out), "--shards=2", "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a-00000-of-00002.array_record",
        "a-00001-of-00002.array_record",
    ]
    check_same(open_source(out), photos)


def test_packing_writes_what_a_link_leads_to(photos, tmp_path):
    link, there = tmp_path / "a.array_record", tmp_path / "there" / "b.array_record"
    there.parent.mkdir()
    there.touch()
    link.symlink_to(there)
    assert main([str(photos), str(link), "--overwrite"]) == 0
    assert link.is_symlink()
    check_same(open_source(there), photos)


@pytest.mark.parametrize(
    "source, out, options",
    [
        ("no/such/folder", "a.array_record", []),
        ("photos", "a.zip", []),
        ("photos", "a.array_record", ["--shards=8"]),
        ("broken", "a.array_record", []),
        ("a.array_record", "b.array_record", ["--leave-out=x"]),
        ("photos", "file/a.array_record", []),
    ],
)
def test_packing_refuses_in_one_line(photos, tmp_path, capsys, source, out, options):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nonsense")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    source = photos if source == "photos" else tmp_path / source
    assert main([str(source), str(tmp_path / out), *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pack: ")]
    assert len(lines) == 1 and "--overwrite" not in lines[0]
    assert sorted(tmp_path.rglob("*")) == before
