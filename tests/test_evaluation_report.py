"""The report as a whole: what is in its folder, what it says, how it ends."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from green import Distances, Green
from pictures import pictures
from PIL import Image

from onedc_jax import cli
from onedc_jax.errors import OneDCError
from onedc_jax.evaluation import codecs, page, sheet
from onedc_jax.evaluation import report as reports

NAME = "<b>&'\"é.png"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of two images and one that is none; a name is markup."""
    path = tmp_path_factory.mktemp("images")
    for name, image in zip((NAME, "b.png"), pictures(2, 24, 20)[0], strict=True):
        Image.fromarray(image).save(path / name)
    (path / "broken.png").write_bytes(b"none")
    return path


@pytest.fixture(scope="module")
def report(source, tmp_path_factory):
    """(folder, what came of it, what was said): a model of one rate against two codecs."""
    pytest.importorskip("matplotlib"), pytest.importorskip("bjontegaard")
    out, said = tmp_path_factory.mktemp("report") / "out", []
    compared = [Green("</script>", (8,)), Green("one"), Green("two", (2, 32))]
    chosen = reports.Codecs(compared, ["</script>"], ["without three: pip install three"])
    done = reports.report([source], out, chosen, Distances(), say=said.append)
    return out, done, said


class Page(HTMLParser):
    """The text of a page's data, the scripts, and what it names."""

    def __init__(self, text: str):
        super().__init__()
        self.scripts, self.links, self._in = {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._in = attributes.get("id", "") if tag == "script" else None
        self.links += [attributes[key] for key in ("src", "href") if key in attributes]

    def handle_data(self, data):
        if self._in is not None:
            self.scripts[self._in] = self.scripts.get(self._in, "") + data

    def handle_endtag(self, tag):
        self._in = None


@pytest.fixture(scope="module")
def content(report):
    """The data in the page."""
    text = (report[0] / "index.html").read_text()
    return json.loads(Page(text).scripts["data"])


def test_everything_that_the_page_names_is_there(report, content):
    named = [image["original"] for image in content["images"]]
    named += [row["picture"] for image in content["images"] for row in image["shown"]]
    named += [plot[kind] for plot in content["plots"] for kind in ("png", "svg")]
    assert len(named) == 2 + 2 * 3 + 2
    for name in named:
        assert (report[0] / name).is_file() and re.fullmatch(r"[\w./-]+", name)


def test_the_page_needs_no_network_and_takes_no_name_for_markup(report, content):
    text = (report[0] / "index.html").read_text()
    parsed = Page(text)
    assert all(link.startswith("#") for link in parsed.links) and "://" not in text
    assert set(parsed.scripts) == {"data", ""}
    assert NAME in [image["name"] for image in content["images"]]
    assert "innerHTML" not in text


def test_the_page_shows_each_codec_at_the_rate_nearest_to_the_model_s(content):
    shown = {(row["codec"], row["quality"]) for row in content["images"][0]["shown"]}
    assert shown == {("</script>", "8"), ("one", "16"), ("two", "32")}
    rows = [
        {"codec": name, "bpp": bpp}
        for name, bpp in (("m", 0.1), ("m", 0.4), ("a", 0.2), ("a", 0.09), ("a", 0.5), ("b", 3.0))
    ]
    found = [(row["codec"], row["bpp"]) for row in page.shown_rows(rows, ["m"])]
    assert found == [("m", 0.1), ("m", 0.4), ("a", 0.09), ("a", 0.5), ("b", 3.0)]
    without = [(row["codec"], row["bpp"]) for row in page.shown_rows(rows[2:], [])]
    assert without == [("a", 0.09), ("b", 3.0)]


def test_the_decoded_pictures_are_those_of_the_files(report, content):
    out = report[0]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for image in content["images"]:
        for shown in image["shown"]:
            (row,) = (
                row
                for row in rows
                if (row["image"], row.get("codec")) == (image["name"], shown["codec"])
                and str(row["quality"]) == shown["quality"]
            )
            decoded = Green().decode((out / row["file"]).read_bytes())
            with Image.open(out / shown["picture"]) as picture:
                assert (decoded == picture).all()


def test_tables_tell_means_and_savings(report):
    out, done, _ = report
    heads, *lines = (out / "summary.csv").read_text().splitlines()
    assert heads.startswith("codec,version,quality,images,bpp,psnr") and len(lines) == 6
    assert [point["images"] for point in done.points] == [2] * 6
    deltas = (out / "bd_rate.csv").read_text()
    assert "this codec has a single rate" in deltas and deltas.count("two,one") == 1
    equals = (out / "equal_metric.csv").read_text().splitlines()
    assert equals[0].startswith("codec,quality,metric,value,bpp,anchor") and len(equals) == 4


def test_the_table_and_the_sheet_show_a_model_beside_what_is_nearest(report):
    lines = (report[0] / "table.md").read_text().splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| </script>", "8"],
        ["| one", "16"],
        ["| two", "32"],
    ]
    assert len({line.count("|") for line in lines}) == 1
    with Image.open(report[0] / "sheet.jpg") as sheet:
        # Three pictures of 20×24 in a row, 256 wide, and two rows of lines below them.
        assert sheet.width == pytest.approx(3 * 256, abs=40)
        assert sheet.height == pytest.approx(2 * 256 * 24 / 20, rel=0.2)


def test_a_table_keeps_the_digits_of_a_metric():
    point = {"codec": "m", "quality": 1, "bpp": 0.1, "psnr": 20.4, "lpips_alex": 0.362}
    assert sheet.table([point], ["m"]).splitlines()[2] == "| m | 1 | 0.1000 | 20.40 | 0.3620 |"


def test_what_failed_or_lacks_is_summed_up(report, content):
    _, done, said = report
    (failed,) = done.failed
    assert failed.startswith("broken.png: not a PNG")
    for line in ("without three: pip install three", *Distances.missing, failed):
        assert line in said
        assert line in [*content["notes"], *content["failed"]]
    assert any("FID" in note for note in content["notes"])
    assert any("single rate" in note for note in content["notes"])


def test_a_second_run_codes_nothing_and_writes_the_same(report, source):
    out, first, _ = report
    before = (out / "summary.csv").read_text()
    compared = [Green("</script>", (8,)), Green("one"), Green("two", (2, 32))]
    chosen = reports.Codecs(compared, ["</script>"], [])
    again = reports.report([source], out, chosen, Distances(), say=lambda line: None)
    assert sum(codec.coded for codec in compared) == 0
    assert again.points == first.points and (out / "summary.csv").read_text() == before


def test_what_a_report_no_longer_has_goes(report, source, tmp_path):
    out = shutil.copytree(report[0], tmp_path / "out")
    for name in ("sheet.jpg", "table.md", "curves/psnr.svg"):
        assert (out / name).exists()
    (out / "curves" / "fid.svg").touch()
    reports.report([source], out, reports.Codecs([Green("one")], [], []), Distances())
    assert not (out / "sheet.jpg").exists() and not (out / "table.md").exists()
    assert [path.name for path in sorted((out / "curves").glob("*.svg"))] == ["psnr.svg"]


def test_two_points_are_shown_once_each():
    rows = [{"codec": "m", "bpp": bpp, "bytes": 9} for bpp in (0.1, 0.2)]
    shown = list(zip(rows, ("low", "high"), strict=True))
    assert [path for path, _ in sheet._row("original", shown, "m", "")] == [
        *("original", "low", "high"),
    ]


def test_features_of_patches_become_fid_and_kid(tmp_path, monkeypatch):
    class Features:
        def __init__(self, folder):
            pass

        def __call__(self, patches):
            return patches.astype("float32").mean(axis=(1, 2))

    monkeypatch.setattr(reports.distributions, "Features", Features)
    (tmp_path / "images").mkdir()
    for image, width in zip(pictures(2, 256, 1024)[0], (512, 1024), strict=True):
        Image.fromarray(image[:, :width]).save(tmp_path / "images" / f"{width}.png")
    compared = [Lossless("all", (1,)), LosslessOfFew("few", (1,))]
    chosen = reports.Codecs(compared, ["all"], [])
    sources, out = [tmp_path / "images"], tmp_path / "out"
    done = reports.report(sources, out, chosen, Distances(), inception=tmp_path, say=str)
    assert [point["images"] for point in done.points] == [2, 1]
    for point in done.points:  # of the image that both have
        assert point["fid"] == pytest.approx(0, abs=1e-6) and point["patches"] == 2
        assert "kid" in point
    (note,) = (note for note in done.notes if note.startswith("compared by FID, KID"))
    assert "1 of 2 images" in note
    (note,) = (note for note in done.notes if note.startswith("PSNR is not finite"))
    assert "(2 of 2 images, such as 1024.png)" in note
    assert any(note.startswith("FID and KID are of 2 patches") for note in done.notes)


class Lossless(Green):
    def encode(self, image, quality):
        return image.shape[0].to_bytes(2) + image.tobytes()

    def decode(self, data):
        return np.frombuffer(data[2:], np.uint8).reshape(int.from_bytes(data[:2]), -1, 3)


class LosslessOfFew(Lossless):
    """Cannot encode what is wider than 512 pixels."""

    def encode(self, image, quality):
        if image.shape[1] > 512:
            raise OneDCError("too wide")
        return super().encode(image, quality)


def test_codecs_are_checked_before_anything_is_coded():
    with pytest.raises(OneDCError, match="nothing: no such"):
        reports.Codecs.load(["nothing"], [], [])
    with pytest.raises(OneDCError, match="no codec to measure"):
        reports.Codecs.load([], [], [])
    chosen = reports.Codecs.load([], ["jpeg", "avif", "jpeg"], [])
    assert [codec.name for codec in chosen.all] == ["jpeg", "avif"]
    assert chosen.anchor(None) == "avif" and chosen.anchor("jpeg") == "jpeg"
    with pytest.raises(OneDCError, match="webp: no such anchor"):
        chosen.anchor("webp")


def test_a_model_s_version_is_that_of_all_its_weights(tiny_model, tmp_path):
    import jax

    from onedc_jax.checkpoint import load_model, save_model

    config, params = load_model(tiny_model)
    params = jax.tree.map(lambda x: x.copy(), params)
    jax.tree.leaves(params["generator"])[0].flat[0] += 1
    save_model(tmp_path / "other", config, params)
    one, same, other = (codecs.Model(path) for path in (tiny_model, tiny_model, tmp_path / "other"))
    assert one.version == same.version != other.version


def test_a_model_of_a_folder_that_is_not_utf_8_can_be_written_of(tiny_model, monkeypatch):
    found = codecs.load(tiny_model)
    monkeypatch.setattr(codecs, "load", lambda _: found)
    monkeypatch.setattr(codecs.checkpoint, "resolve", lambda _: tiny_model)
    assert codecs.Model("a\udce9").name == "a\\udce9"


def test_a_model_s_version_is_that_of_its_integers(tiny_model, monkeypatch):
    found = codecs.load(tiny_model)
    path = replace(found.path, fingerprint=found.path.fingerprint ^ 1)
    versions = []
    for codec in found, replace(found, path=path):
        monkeypatch.setattr(codecs, "load", lambda _, codec=codec: codec)
        versions.append(codecs.Model(tiny_model).version)
    assert len(set(versions)) == 2


def test_the_command_reports_and_sums_up(source, tmp_path, tiny_model, capsys):
    shutil.copy(source / "b.png", tmp_path / "b.png")
    out = tmp_path / "out"
    arguments = ["eval", "--images", str(tmp_path / "b.png"), "--out", str(out)]
    arguments += ["--models", str(tiny_model), "--baselines", "jpeg", "--metrics", "none"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "encode_s" in printed and "2 of 2 codecs, 0 failures" in printed
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    (row,) = (row for row in rows if row["codec"] == str(tiny_model))
    assert row["quality"] is None and row["encode_network_s"] > 0
    assert cli.main([*arguments[:2], str(source), *arguments[3:]]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "missing"], "missing: No such file"),
        (["--baselines", "bmp"], "bmp: no such baseline"),
        (["--anchor", "avif"], "avif: no such anchor"),
        (["--external", "missing.toml"], "missing.toml: No such file"),
        (["--inception", "missing"], "missing"),
        (["--metrics", "vmaf"], "vmaf: no such metric"),
    ],
)
def test_what_cannot_be_is_refused(source, tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    base = ["eval", "--images", str(source), "--out", str(out), "--models", "none"]
    base += ["--metrics", "none", "--baselines", "jpeg"]
    assert cli.main([*base, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("onedc: ") and not out.exists()


@pytest.mark.parametrize("option", ["--models", "--baselines", "--metrics"])
@pytest.mark.parametrize("names", ["", "jpeg,"])
def test_an_empty_name_is_not_none(source, tmp_path, capsys, option, names):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["eval", "--images", str(source), "--out", str(tmp_path / "out"), option, names])
    assert f"argument {option}: an empty name" in capsys.readouterr().err


def test_where_nothing_could_be_done_the_code_is_2(tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"none")
    arguments = ["--images", str(tmp_path / "bad.png"), "--out", str(tmp_path / "out")]
    arguments += ["--models", "none", "--metrics", "none", "--baselines", "jpeg"]
    assert cli.main(["eval", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("bad.png") == 1 and "0 of 1 codecs, 1 failure\n" in printed.out
