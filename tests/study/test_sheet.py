"""The sheet and the config: what is accepted, what is refused with which words, what decides a latent."""

from __future__ import annotations

import json
import re

import items
import pytest
import yaml
from helpers.study import ROOT, draw


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with two pictures."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    return tmp_path


def read(folder, text, encoding="utf-8", **config):
    (folder / "sheet.csv").write_bytes(text.encode(encoding))
    return items.read_items(items.load_config({"items": "sheet.csv", "model_id": "demo", **config}))


def refused(folder, text, encoding="utf-8", **config):
    with pytest.raises(items.InputError) as caught:
        read(folder, text, encoding, **config)
    return str(caught.value)


@pytest.mark.fault("sheet")
def test_cells_stay_as_they_are_written(folder):
    for name in ("001", "NA", "1e5"):
        draw(folder / f"{name}.png")
    text = 'image,prompt,id,group\n001.png,null,001,007\nNA.png,"a, ""b""\nc",NA,None\n1e5.png,,1e5,1e400\n'
    table = read(folder, text, encoding="utf-8-sig")
    assert table["id"].tolist() == ["001", "NA", "1e5"]
    assert table["prompt"].tolist() == ["null", 'a, "b"\nc', ""]
    assert table["group"].tolist() == ["007", "None", "1e400"]
    assert table.index.tolist() == [2, 3, 4]


def test_ids_default_to_stems(folder):
    assert read(folder, "image,prompt\na.png,x\nb.png,y\n")["id"].tolist() == ["a", "b"]
    draw(folder / "other/a.png")
    message = refused(folder, "image,prompt\na.png,x\nother/a.png,y\n")
    assert "row 3, column id: 'a' stands in row 2 already" in message
    assert "column id to choose another" in message


def test_a_row_overrides_the_config_and_a_blank_cell_does_not(folder):
    text = "image,prompt,strength,seed,num_inference_steps\na.png,x,0.5,18446744073709551615,20.0\nb.png,y,,,\n"
    table = read(folder, text, strength=0.25, seed=7, num_inference_steps=30)
    assert table["strength"].tolist() == [0.5, 0.25]
    assert table["seed"].tolist() == [2**64 - 1, 7]
    assert table["num_inference_steps"].tolist() == [20, 30]


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompt\nx\n", ["column 'image' is missing"]),
        ("picture,text\na.png,x\n", ["column 'image' is missing", "column 'prompt' is missing"]),
        ("image,Prompt\na.png,x\n", ["unknown column 'Prompt': did you mean 'prompt'?"]),
        ("image,promt\na.png,x\n", ["unknown column 'promt': did you mean 'prompt'?"]),
        ("image,prompt,Guidance Scale\na.png,x,1\n", ["did you mean 'guidance_scale'?"]),
        ("image,prompt,guidence_scale\na.png,x,1\n", ["did you mean 'guidance_scale'?"]),
        ("image,prompt,prompt\na.png,x,y\n", ["column 'prompt' stands there 2 times"]),
        ("image,prompt,sha256\na.png,x,y\n", ["column 'sha256' has a name that the index table needs"]),
        ("image,prompt\n,x\n", ["row 2, column image: it is empty"]),
        ("image,prompt\na.png,x\nno.png,y\n", ["row 3, column image: no such file: 'no.png'"]),
        ("image,prompt\n.,x\n", ["row 2, column image: no such file: '.'"]),
        ("image,prompt\na{b}.png,x\n", ["row 2, column image: 'a{b}.png' is not a valid text", "without braces"]),
        ("id,image,prompt\nu,a.png,x\nu,b.png,y\n", ["row 3, column id: 'u' stands in row 2 already"]),
        ("id,image,prompt\n../u,a.png,x\n", ["row 2, column id: '../u' is not a valid text"]),
        ("id,image,prompt\n.u,a.png,x\n", ["row 2, column id: '.u'"]),
        ('id,image,prompt\n"u\n",a.png,x\n', ["row 2, column id: 'u\\n'"]),
        (f"id,image,prompt\n{'u' * 129},a.png,x\n", ["row 2, column id:", "at most 128 characters"]),
        ("image,prompt,strength\na.png,x,1.5\n", ["row 2, column strength: 1.5 must be at most 1"]),
        ("image,prompt,strength\na.png,x,-0.1\n", ["row 2, column strength: -0.1 must be at least 0"]),
        ("image,prompt,strength\na.png,x,0.01\n", ["row 2, column strength: strength 0.01 of 50 steps makes no step"]),
        ('image,prompt,strength\na.png,x,"0,5"\n', ["'0,5' is not a number; decimals are written with a point"]),
        ("image,prompt,strength\na.png,x,nan\n", ["row 2, column strength: 'nan' is not a number"]),
        ("image,prompt,guidance_scale\na.png,x,1e400\n", ["row 2, column guidance_scale: '1e400' is too large"]),
        ("image,prompt,num_inference_steps\na.png,x,0\n", ["column num_inference_steps: 0 must be at least 1"]),
        ("image,prompt,num_inference_steps\na.png,x,2.5\n", ["'2.5' is not a whole number"]),
        ("image,prompt,guidance_scale\na.png,x,-1\n", ["column guidance_scale: -1.0 must be at least 0"]),
        ("image,prompt,seed\na.png,x,-1\n", ["row 2, column seed: -1 must be at least 0"]),
        (f"image,prompt,seed\na.png,x,{2**64}\n", ["column seed:", "must be at most 18446744073709551615"]),
        ("image,prompt\n", ["has a header but no rows"]),
        ("", ["is empty"]),
        ("image;prompt\na.png;x\n", ["separated by ';', not by commas"]),
        ("image,prompt\na.png,x,y\n", ["not a regular CSV file", "Expected 2 fields in line 2, saw 3"]),
        ("image,prompt\na.png\n", ["row 2: 1 cells, the header has 2"]),
        ("image,prompt\na.png,x\0\n", ["line 2 has a NUL byte"]),
    ],
)
def test_a_bad_sheet_is_refused_with_row_and_column(folder, text, told):
    message = refused(folder, text)
    assert "sheet.csv" in message
    for part in told:
        assert part in message


@pytest.mark.fault("sheet")
def test_latin_1_is_refused_with_its_line(folder):
    assert "not UTF-8 (line 3)" in refused(folder, "image,prompt\na.png,x\nb.png,café\n", encoding="latin-1")


@pytest.mark.fault("sheet")
def test_all_faults_come_at_once_and_twenty_are_shown(folder):
    rows = "".join(f"none{number}.png,x,{2 + number}\n" for number in range(30))
    message = refused(folder, "image,prompt,strength\n" + rows)
    assert "has 60 faults" in message
    assert message.count("  - row") == 20
    assert "... and 40 more" in message


@pytest.mark.fault("config")
def test_all_config_faults_come_at_once():
    with pytest.raises(items.InputError) as caught:
        items.load_config({"seeds": 1, "strength": 2, "items": 5, "resize": "padd", "image_size": 100})
    message = str(caught.value)
    assert "unknown key 'seeds': did you mean 'seed'?" in message
    assert "key strength: 2 must be at most 1" in message
    assert "key items: 5 is not of type string" in message
    assert "items: '...'" in message
    assert "key resize: 'padd' is not one of" in message
    assert "key image_size: 100 must be a multiple of 8" in message


@pytest.mark.fault("config")
@pytest.mark.parametrize("path", ["/tmp/x", "../x", "a/../../x", "~/x", "a{b}", "."])
def test_results_stay_below_the_working_directory(path):
    with pytest.raises(items.InputError, match="key output_hidden_dir"):
        items.load_config({"output_hidden_dir": path})


@pytest.mark.fault("config")
@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"strength": float("nan")}, "key strength: nan is not a finite number"),
        ({"model_id": "m{o}del"}, "key model_id: 'm{o}del' has braces"),
        ({"model_id": "no such model"}, "is neither 'demo' nor a folder"),
        ({"stacked": "results/hidden/hidden_a.pt"}, "key stacked:"),
        ({"resize": "contain", "image_size": [64, 96]}, "it takes one number"),
    ],
)
def test_a_config_that_cannot_work_is_refused(config, told):
    with pytest.raises(items.InputError, match=re.escape(told)):
        items.load_config(config)


def test_the_files_of_a_local_model_that_snakemake_watches_are_those_that_decide_it():
    import model

    folder = ROOT / "config/demo/model"
    config = items.load_config({"model_id": str(folder)})
    assert items.model_files(config) == [str(folder / name) for name in model.resolve(str(folder))["sha256"]]


def test_the_command_lines_texts_become_the_schemas_types():
    given = {"output_image_dir": "null", "resident": "false", "image_size": ["64", "96"], "strength": "0.5"}
    config = items.load_config(given, given)
    assert config["output_image_dir"] is None
    assert config["resident"] is False
    assert config["image_size"] == [64, 96]
    assert config["strength"] == 0.5
    with pytest.raises(items.InputError, match="is kept in the config file as items"):
        items.load_config({"items": 1}, ["items"])  # was 001 on the command line


def test_a_recipe_holds_what_decides_the_latent_and_nothing_else(folder):
    text = "image,prompt,strength,guidance_scale,negative_prompt\na.png,x,0,,\na.png,x,0.5,3,n\na.png,x,0.5,1,n\n"
    text = "id," + text.replace("a.png", "1,a.png", 1).replace("\na.png", "\n2,a.png", 1).replace(
        "\na.png", "\n3,a.png"
    )
    config = items.load_config({"items": "sheet.csv", "model_id": "demo"})
    still, guided, free = (items.recipe(config, row) for row in read(folder, text).itertuples())
    assert not {"prompt", "negative_prompt", "guidance_scale", "num_inference_steps", "scheduler"} & still.keys()
    assert guided["prompt"] == "x"
    assert guided["negative_prompt"] == "n"
    assert "negative_prompt" not in free
    assert "seed" in still
    row = next(read(folder, text).itertuples())
    assert "seed" not in items.recipe(config | {"posterior": "mode"}, row)


def test_one_and_one_point_zero_are_the_same_recipe(folder):
    one, other = (
        items.canonical(items.recipe(items.load_config({"model_id": "demo", "strength": strength}), row))
        for strength in (1, 1.0)
        for row in read(folder, "image,prompt\na.png,x\n", strength=strength).itertuples()
    )
    assert one == other


def test_schema_config_file_and_documentation_agree():
    """Every key and column has a description; config.yaml shows each key with its default; the README lists all."""
    schema = items.schema()
    readme = (ROOT / "config/README.md").read_text()
    shown = (ROOT / "config/config.yaml").read_text()
    for name, rule in schema["properties"].items():
        assert f"| `{name}` | `{json.dumps(rule['default'])}` | {rule['description']} |" in readme
        lines = re.findall(rf"^#? ?({name}: .*?)(?:  +#| #|$)", shown, re.MULTILINE)
        assert lines, f"config.yaml does not show {name}"
        assert rule["default"] in [yaml.safe_load(line)[name] for line in lines]
    for name, rule in schema["$defs"]["item"]["properties"].items():
        text = rule.get("description") or f"As the config's key `{name}`, for this row; blank takes the config's."
        assert f"| `{name}` | {text} |" in readme
    documented = set(re.findall(r"^\| `(\w+)`", readme, re.MULTILINE))
    assert documented == {*schema["properties"], *schema["$defs"]["item"]["properties"]}
