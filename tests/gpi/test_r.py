"""From R to the sheet, and from the results to R: base R reads what load reads, to the same bits."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gpi_latents as gpi
import numpy as np
import pytest
from gpi_latents.gpi.cells import TEXTS
from gpi_latents.plan import MISSING
from gpi_latents.tensors.tensor_file import tensor_writer
from helpers.made_results import edit, make_results
from helpers.sheets import read
from helpers.study import ROOT, Study, draw

READER = ROOT / "scripts/gpi_latents/R/read_latents.R"


@pytest.fixture(autouse=True)
def _has_r():
    if not shutil.which("Rscript"):
        reason = "R is not installed: apt-get install r-base-core r-cran-digest"
        (pytest.fail if os.environ.get("REQUIRE_R") else pytest.skip)(reason)


def run_r(code: str, folder: Path, fails: bool = False, **environment: str) -> str:
    """Run R code in a folder; returns what it prints and says."""
    ascii_code = re.sub(r"[^\x00-\x7f]", lambda letter: f"\\u{ord(letter[0]):04x}", code)  # for every locale
    (folder / "code.R").write_text(ascii_code)
    command = ["Rscript", "--vanilla", "code.R"]
    ran = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | environment, timeout=300
    )
    output = ran.stdout.decode()
    assert (ran.returncode != 0) == fails, output
    return " ".join(output.split())  # R breaks lines of messages where it likes


def read_code(results: Path, arguments: str = "") -> str:
    return f'source("{READER}")\nread <- read_latents("{results}"{arguments})\n'


@pytest.fixture
def results(tmp_path):
    """Results with values that a reader could lose: the sign of zero, the smallest and the largest numbers."""
    folder = make_results(tmp_path / "results", "results/latents.npy")
    values = np.random.default_rng(1).normal(size=(6, 4, 2, 3)).astype(np.float32)
    smallest = np.float32(1e-45)
    values[:, 0, 0, :] = [-0.0, smallest, np.finfo(np.float32).max]
    write(folder, values)
    return folder


def write(folder, values):
    with tensor_writer(folder / "latents.npy", values.shape, {}) as file:
        file.write(values.tobytes())
    digests = [hashlib.sha256(latent.tobytes()).hexdigest() for latent in values]
    edit(folder, lambda index: index.assign(sha256=digests))


def test_the_array_in_r_has_the_bits_of_numpys_in_the_same_order(tmp_path, results):
    output = run_r(
        read_code(results) + "stopifnot(identical(dim(read$R), c(6L, 4L, 2L, 3L)))\n"
        'writeBin(as.vector(aperm(read$R, 4:1)), "numbers", endian = "little")\n'
        'for (latent in list(c(1, 1, 1, 2), c(6, 4, 2, 3), c(2, 3, 1, 2))) cat(sprintf("%.9g ", read$R[t(latent)]))\n',
        tmp_path,
    )
    R = gpi.load(results)[0]
    assert (tmp_path / "numbers").read_bytes() == R.astype("<f8").tobytes()
    assert [np.float32(number) for number in output.split()] == [R[0, 0, 0, 1], R[5, 3, 1, 2], R[1, 2, 0, 1]]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_index_in_r_has_the_types_that_load_gives(tmp_path, results, locale):
    edit(
        results,
        lambda index: index.assign(
            **{"größe": [" 1 ", "2", "NA", "-4", "+5", ""], "Haus Nr.": ["1e5", "-.5", "3.", "", "0", "n/a"]},
            female=["TRUE", "false", "NA", "True", "true", "FALSE"],
            fips=["06", "48", "NA", "1", "2", "3"],
            gone=["NA", "", " ", "NULL", "nan", "N/A"],
            large=["9007199254740993", "1", "2", "3", "4", "5"],
            person=["p1", "p1 ", "\u00a0p1\u2003", "p 2", "\u00a0", "größe\t"],
            price=["1", "2.50", "0.1", "1e300", "\u00a0", "3"],
            prompt=['a "b", c', "two\nlines\n\nand more", "TRUE", "NA", " ", "ein Mädchen #1 'x' \\n"],
            negative_prompt=["06", "NA", "", "1", "2", "3"],
        ),
    )
    code = """
index <- read$index
stopifnot(
  identical(index$row, 0:5),
  identical(index$id, c("001", "bob", "eve", "kim", "lee", "mia")),
  identical(index[["größe"]], c(1L, 2L, NA, -4L, 5L, NA)),
  identical(index[["Haus Nr."]], c("1e5", "-.5", "3.", NA, "0", "n/a")),
  identical(index$female, c(TRUE, FALSE, NA, TRUE, TRUE, FALSE)),
  identical(index$fips, c("06", "48", NA, "1", "2", "3")),
  identical(index$gone, rep(NA_real_, 6)),
  identical(index$large, c("9007199254740993", "1", "2", "3", "4", "5")),
  identical(index$person, c("p1", "p1", "p1", "p 2", NA, "größe")),
  identical(index$price, c(1, 2.5, 0.1, 1e300, NA, 3)),
  identical(index$prompt, c('a "b", c', "two\\nlines\\n\\nand more", "TRUE", "NA", " ", "ein Mädchen #1 'x' \\\\n")),
  identical(index$negative_prompt, c("06", "NA", "", "1", "2", "3"))
)
"""
    run_r(read_code(results) + code, tmp_path, LC_ALL=locale)


def test_r_knows_the_same_marks_of_missing_values_and_the_same_columns_of_texts(tmp_path, results):
    marks = {f"mark{number}": ["1", mark] + ["2"] * 4 for number, mark in enumerate(sorted(MISSING))}
    names = [name for name in TEXTS if name not in ("id", "sha256")]
    edit(results, lambda index: index.assign(**marks, **{key: ["1", "", "NA", "TRUE", "5", "6"] for key in names}))
    code = f"""
for (name in c({", ".join(map(repr, marks))})) stopifnot(identical(read$index[[name]], c(1L, NA, 2L, 2L, 2L, 2L)))
for (name in c({", ".join(map(repr, names))})) {{
  stopifnot(identical(read$index[[name]], c("1", "", "NA", "TRUE", "5", "6")))
}}
"""
    run_r(read_code(results) + code, tmp_path)


def test_ids_of_items_with_several_draws_stay_texts_in_r(tmp_path, results):
    items, draws = ["1", "1", "2", "2", "3", "3"], ["1", "2"] * 3
    edit(results, lambda index: index.assign(item=items, draw=draws))
    run_r(read_code(results) + "stopifnot(identical(read$index$item, rep(1:3, each = 2L)))", tmp_path)  # the user's own
    ids = [f"{item}_{draw}" for item, draw in zip(items, draws, strict=True)]
    edit(results, lambda index: index.assign(id=ids))
    code = 'stopifnot(identical(read$index$item, c("1", "1", "2", "2", "3", "3")), is.integer(read$index$draw))'
    run_r(read_code(results) + code, tmp_path)


def test_a_latent_of_another_run_is_refused_in_r_or_said_to_be_unchecked(tmp_path, results):
    digest = 'requireNamespace("digest", quietly = TRUE)'
    if run_r(f"cat({digest})", tmp_path) != "TRUE":
        assert not os.environ.get("REQUIRE_R"), "apt-get install r-cran-digest"
        pytest.skip("R's package digest is not installed: apt-get install r-cran-digest")
    edit(results, lambda index: index.assign(sha256=[*index["sha256"][:3], "0" * 64, *index["sha256"][4:]]))
    said = run_r(read_code(results), tmp_path, fails=True)
    assert "1 of 6 latents are not those in the index table (row 3, kim): they come from another run" in said
    assert "not compared" not in run_r(read_code(results, ", check = FALSE"), tmp_path)
    missing = "requireNamespace <- function(...) FALSE\n"
    said = run_r(missing + read_code(results), tmp_path)
    assert f"The latents were not compared with the digests in {results}/index.csv" in said


def fortran(folder):
    np.save(folder / "latents.npy", np.asfortranarray(np.load(folder / "latents.npy")))


def double(folder):
    np.save(folder / "latents.npy", np.load(folder / "latents.npy").astype(float))


def cut(folder):
    os.truncate(folder / "latents.npy", (folder / "latents.npy").stat().st_size - 1)


REFUSED = {
    "latents.npy is missing: write `stacked: results/latents.npy` into config/config.yaml and run snakemake": (
        lambda folder: (folder / "latents.npy").rename(folder / "latents.pt")
    ),
    "index.csv is missing: run snakemake without a target": lambda folder: (folder / "index.csv").unlink(),
    "its values are in Fortran's order": fortran,
    "its numbers are <f8, not little-endian float32": double,
    "latents.npy is cut short": cut,
    "no .npy file: write `stacked: results/": lambda folder: (folder / "latents.npy").write_text("PK and so on"),
    "its shape is not (N, C, H, W)": lambda folder: np.save(folder / "latents.npy", np.zeros((6, 24), np.float32)),
    "has 6 latents, but": lambda folder: edit(folder, lambda index: index[:5]),
    "are no longer in their order": lambda folder: edit(folder, lambda index: index[::-1]),
    "has no column sha256": lambda folder: edit(folder, lambda index: index.drop(columns="sha256")),
}


def test_what_r_cannot_read_is_refused_in_plain_words(tmp_path, results):
    for number, change in enumerate(REFUSED.values()):
        change(shutil.copytree(results, tmp_path / f"case{number}"))
    code = f'''source("{READER}")
for (number in 1:{len(REFUSED)} - 1) {{
  said <- tryCatch(read_latents(paste0("case", number)), error = conditionMessage)
  cat(as.character(said), "\\n---\\n")
}}
'''
    said = run_r(code, tmp_path).split(" ---")
    for number, message in enumerate(REFUSED):
        assert message in said[number]


def test_the_second_version_of_npy_is_read_too(tmp_path, results):
    values = np.load(results / "latents.npy")
    with (results / "latents.npy").open("wb") as file:
        np.lib.format.write_array(file, values, version=(2, 0))
    run_r(read_code(results) + 'writeBin(as.vector(aperm(read$R, 4:1)), "numbers", endian = "little")', tmp_path)
    assert (tmp_path / "numbers").read_bytes() == values.astype("<f8").tobytes()


@pytest.mark.fault("skip")
def test_items_that_failed_and_were_left_out_are_a_warning_in_r_too(tmp_path, results):
    (results / "failed.csv").write_text("sheet_row,id,image,reason\n")
    assert "failed" not in run_r(read_code(results), tmp_path)
    (results / "failed.csv").write_text('sheet_row,id,image,reason\n8,zoe,a.png,"cut, off"\n')
    assert re.search(
        r"Warning message:\s1 of \d+ items failed and are not in these", run_r(read_code(results), tmp_path)
    )


def test_a_sheet_that_r_wrote_is_read_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        draw(tmp_path / f"{name}.png", seed=number)
    code = """
sheet <- data.frame(
  id = c("001", "002", "003"), image = c("a.png", "b.png", "c.png"), prompt = c('a "b", c', "", "ein Mädchen"),
  strength = c(0.5, NA, 0), treatment = c(TRUE, FALSE, NA), group = factor(c("x", "y", NA)), Y = c(0.1, NA, 1e-20)
)
write.csv(sheet, "plain.csv", row.names = FALSE)
write.csv(sheet, "numbered.csv")
write.csv(sheet, "named.csv", row.names = c("one", "two", "three"))
"""
    run_r(code, tmp_path, LC_ALL="C.UTF-8")
    for name in ("plain", "numbered", "named"):
        items = read((tmp_path / f"{name}.csv").read_bytes(), strength=0.25)
        assert items["id"].tolist() == ["001", "002", "003"]
        assert items["prompt"].tolist() == ['a "b", c', "", "ein Mädchen"]
        assert items["strength"].tolist() == [0.5, 0.25, 0]
        assert items["treatment"].tolist() == ["TRUE", "FALSE", "NA"]
        assert items["group"].tolist() == ["x", "y", "NA"]
        assert items["Y"].tolist() == ["0.1", "NA", "1e-20"]
        assert list(items.columns)[-3:] == ["treatment", "group", "Y"]


@pytest.mark.long
def test_the_page_for_users_of_r_works_from_the_sheet_to_a_regression(study: Study):
    """In the study's folder."""
    study.pictures(12)
    study.config(stacked="results/latents.npy", output_image_dir=None)
    (study.folder / "config/items.csv").unlink()
    page = (ROOT / "docs/r.md").read_text(encoding="utf-8")
    page = page.replace("PATH_TO_REPO/.venv/bin", str(Path(sys.executable).parent)).replace("PATH_TO_REPO", str(ROOT))
    blocks = re.findall(r"^```r\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    said = run_r("\n".join(blocks), study.folder)
    R, Y, T, _ = gpi.arrays(*gpi.load(study.folder / "results"), "outcome", "treatment", flat=True)
    u, d, _ = np.linalg.svd(R.astype(float) - R.mean(axis=0, dtype=float), full_matrices=False)
    design = np.column_stack([np.ones(12), T, u[:, :3] * d[:3]])
    assert float(said.split("Pr(>|t|)")[1].split()[0]) == pytest.approx(np.linalg.lstsq(design, Y)[0][1], rel=1e-5)
