"""Configuration: what a YAML may say, and what a wrong one is told."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.names import plain
from cellkit.config import reading
from cellkit.config.places import data_path, data_root
from cellkit.config.reading import describe, known_keys, load_config, published_schema, set_strings
from cellkit.config.sections import STAGES, Config, ConvertConfig, EvaluateConfig, FinetuneConfig
from cellkit.errors import UserError
from cellkit.machine import here

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes configs/demo.yaml in an empty current folder and returns its path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()

    def write_text(text: str) -> str:
        (tmp_path / "configs" / "demo.yaml").write_text(text, encoding="utf-8")
        return "configs/demo.yaml"

    return write_text


def refused(path, overrides=None) -> tuple[str, str]:
    """Return the two lines of the error that `path` raises."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2, lines
    return lines[0], lines[1]


def test_empty_file_gives_the_defaults_and_the_name_of_the_file(write):
    cfg = load_config(write(""))
    assert cfg.model_dump(exclude={"recipes"}) == Config(name="demo").model_dump(exclude={"recipes"})
    assert set(dict(cfg.recipes).values()) <= {None}, "a recipe is run where it is named"
    assert cfg.convert.percentiles == (0.3, 99.8)
    assert cfg.label.diameter_px is None
    assert cfg.maskrcnn.fpn_channels == 96


def test_file_states_only_what_differs(write):
    cfg = load_config(write("finetune: {steps: 7, learning_rate: 1e-3}\nconvert: {split: {train: 0.5, val: 0.3}}"))
    assert cfg.finetune == FinetuneConfig(steps=7, learning_rate=0.001)
    assert dict(cfg.convert.split) == {"train": 0.5, "val": 0.3, "test": 0.2}


def test_shared_values_reach_every_section_unless_it_sets_its_own(write):
    cfg = load_config(
        write(
            "seed: 5\nworkers: 3\ndata: d\nconvert: {source: folder}\nclasses: [HEK, N2a]\nmaskrcnn: {seed: 9}\nlabel:"
        )
    )
    sections = [cfg.section(stage) for stage in STAGES]
    assert [section.seed for section in sections] == [5, 5, 5, 5, 9, 5]
    assert {section.classes for section in sections} == {("HEK", "N2a")}
    assert {section.workers for section in sections} == {3}
    assert cfg.convert.data == "d"


def test_the_precision_reaches_the_sections_whose_backend_computes_in_one(write):
    cfg = load_config(write("precision: float32\nlabel: {backend: threshold}\nmaskrcnn: {precision: auto}\n"))
    assert (cfg.finetune.precision, cfg.maskrcnn.precision) == ("float32", "auto")
    assert not hasattr(cfg.label, "precision") and load_config(write("")).label.precision == "auto"
    with pytest.raises(UserError, match="precision is 'half'.*wanted one of 'auto', 'float32', 'bfloat16'"):
        load_config(write("precision: half\n"))


def test_data_that_no_source_reads_is_refused(write, monkeypatch):
    for text in ("data: d", "convert: {data: d}", "data: d\nconvert: {source: drawn}"):
        with pytest.raises(UserError, match="data is set .'d'., but convert.source is drawn.*\nname the layout"):
            load_config(write(text))
    monkeypatch.setenv("CELLKIT_DATA", "d")
    assert load_config(write("seed: 1")).convert.source == "drawn"


def test_fingerprint_holds_what_a_result_depends_on_and_not_the_number_of_workers(write):
    one, four = (load_config(write(f"workers: {n}")).finetune for n in (1, 4))
    assert one != four
    assert one.fingerprint() == four.fingerprint()
    assert one.fingerprint() != load_config(write("seed: 1")).finetune.fingerprint()
    assert "classes" in one.fingerprint()
    for name, told in (("finetune", False), ("maskrcnn", True)):  # a detector draws otherwise in several processes
        changed = load_config(write(f"{name}: {{gpus: 2}}")).section(name).fingerprint()
        assert (changed != load_config(write("")).section(name).fingerprint()) == told


def test_every_stage_has_a_section(write):
    cfg = load_config(write(""))
    assert isinstance(cfg.section("03_finetune_cellpose"), FinetuneConfig)
    assert isinstance(cfg.section("evaluate"), EvaluateConfig)
    with pytest.raises(UserError, match="did you mean '03_finetune_cellpose'"):
        cfg.section("03_finetune_celpose")


def test_a_config_cannot_be_changed(write):
    cfg = load_config(write(""))
    with pytest.raises(ValueError, match="frozen"):
        cfg.finetune.steps = 1


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        (
            "finetune: {stps: 1}",
            "unknown key 'finetune.stps' (did you mean 'steps'?)",
            "known keys of finetune: backend",
        ),
        ("steps: 4", "unknown key 'steps' (did you mean 'finetune.steps'?)", "known keys: name, data, seed"),
        ("finetun: {steps: 4}", "unknown key 'finetun' (did you mean 'finetune'?)", "known keys: name"),
        ("convert: {drawn: {size: 3}}", "unknown key 'convert.drawn.size' (did you mean 'size_px'?)", "size_px"),
        ("finetune: {steps: many}", "finetune.steps is 'many' (text), wanted a whole number >= 1", "default 300"),
        ("finetune: {steps: true}", "finetune.steps is true (true/false), wanted a whole number", "optimiser steps"),
        ("finetune: {steps: 1.5}", "finetune.steps is 1.5 (a number), wanted a whole number", "optimiser steps"),
        ("finetune: {steps: '5'}", "finetune.steps is '5' (text), wanted a whole number", "optimiser steps"),
        ("finetune: {steps: 0}", "finetune.steps is 0 (a whole number), wanted a whole number >= 1", "default 300"),
        (
            "finetune: {crop_px: 100}",
            "crop_px is 100 (a whole number), wanted a whole number >= 32, a multiple of 8, such as 96 or 104",
            "160",
        ),
        ("maskrcnn: {crop_px: 36}", "a multiple of 8, such as 32 or 40", "default 192"),
        (
            "seed: 18446744073709551616",
            "seed is 18446744073709551616 (a whole number), wanted a whole number >= 0",
            "0",
        ),
        ("finetune: {base: 3}", "finetune.base is 3 (a whole number), wanted text", "weights to start from"),
        ("finetune: {backend: 5}", "finetune.backend is 5 (a whole number), wanted text", "default 'cellpose_unet'"),
        ("label: {backend: [a]}", "label.backend is ['a'] (a list), wanted text", "default 'cellpose_unet'"),
        ("maskrcnn: {backend: {a: 1}}", "maskrcnn.backend is {'a': 1} (a table), wanted text", "maskrcnn_torchvision"),
        ("finetune: 3", "finetune is 3 (a whole number), wanted a table of keys", "keys: seed"),
        (
            "maskrcnn: {mask_threshold: 1}",
            "mask_threshold is 1 (a whole number), wanted a number > 0 and < 1",
            "best on",
        ),
        ("maskrcnn: {freeze_backbone: 1}", "freeze_backbone is 1 (a whole number), wanted true or false", "heads"),
        ("convert: {scale: .nan}", "convert.scale is .nan (a number), wanted a number > 0", "resize"),
        ("convert: {projection: median}", "projection is 'median' (text), wanted one of 'max', 'mean'", "z-stack"),
        ("convert: {percentiles: [3, 1]}", "convert.percentiles is [3, 1], wanted two rising numbers", "[0.3, 99.8]"),
        (
            "convert: {pair: [img]}",
            "convert.pair is ['img'] (a list), wanted a list of 2 texts, or null",
            "label image",
        ),
        ("convert: {source: bbbc}", "convert.source is 'bbbc' (text), wanted one of 'bbbc039', 'box_csv'", "layout"),
        ("convert: {box_units: px}", "box_units is 'px' (text), wanted one of 'fractions', 'pixels', or null", "boxes"),
        ("convert: {split: {train: 0.9}}", "convert.split sums to 1.3 (train + val + test), wanted 1", "train"),
        ("evaluate: {profile: sartorus}", "profile is 'sartorus' (text), wanted one of 'dsb2018'", "submission"),
        ("classes: HEK", "classes is 'HEK' (text), wanted a list of names", "cell classes"),
        ("classes: [a, a]", "classes is ['a', 'a'], wanted at least one name, all different", "cell classes"),
        (
            "classes: [a]\nconvert: {class_names: {x: b}}",
            "class_names has x: 'b', wanted null, ignore or one of: a",
            "unknown",
        ),
        (
            "convert: {class_names: {x: 3}}",
            "convert.class_names.x is 3 (a whole number), wanted text, or null",
            "label",
        ),
        ("name: ../up", "name is '../up', wanted a name fit for a folder", "name of the run"),
        ("- a", "configs/demo.yaml holds ['a'] (a list)", "wanted YAML keys"),
        ("a: [", "configs/demo.yaml, line 1: ", "plain YAML"),
        ("classes: [NO, SE]", "classes is [NO, 'SE'] (a list), wanted a list of names", "such as 'NO' or '1.10'"),
        ("classes: [yes, on]", "classes is [yes, on] (a list)", "put a name in quotes"),
        ("classes: [1.10, 2024-01-02]", "classes is [1.10, 2024-01-02] (a list)", "put a name in quotes"),
        ("convert: {class_names: {x: NO}}", "class_names.x is NO (true/false), wanted text", "put a name in quotes"),
        ("label: {model: 1.10}", "label.model is 1.10 (a number), wanted text", "put a name in quotes"),
        ("seed: 010", "line 1: 010 would be read as 8: write a number in plain digits, a name in quotes", "plain YAML"),
        ("classes: [a, 3:1]", "line 1: 3:1 would be read as 181", "plain YAML"),
        ("label: {diameter_px: 1:30}", "line 1: 1:30 would be read as 90", "plain YAML"),
        ("label: {diameter_px: 1:30.5}", "line 1: 1:30.5 would be read as 90.5", "plain YAML"),
        ("label: {diameter_px: 1_0.5}", "line 1: 1_0.5 would be read as 10.5", "plain YAML"),
        ("seed: 12_5", "line 1: 12_5 would be read as 125", "plain YAML"),
        ("seed: 0x1F", "line 1: 0x1F would be read as 31", "plain YAML"),
        ("convert: {channels: {nuclei: 0405}}", "line 1: 0405 would be read as 261", "plain YAML"),
        ("classes: [\u201cHEK\u201d]", "line 1: \u201cHEK\u201d is in typographic quotes", "plain YAML"),
        ("\u201cseed\u201d: 1", "line 1: \u201cseed\u201d is in typographic quotes", "plain YAML"),
        ("data: \u2018d', x\u2019", "is in typographic quotes", "plain YAML"),
        ("name: &plate", "&anchors and *aliases are not read", "plain YAML"),
        ("seed: 1\nseed: 2", "configs/demo.yaml, line 2: key 'seed' is given twice", "each key once"),
        ("1: 2", "configs/demo.yaml, line 1: key 1 is not text (quote it)", "plain YAML"),
        ("name: !!python/object/apply:os.getcwd []", "could not determine a constructor", "plain YAML"),
    ],
)
def test_a_wrong_config_is_told_what_came_and_what_was_wanted(write, text, first, second):
    problem, remedy = refused(write(text))
    assert first in problem
    assert problem.startswith("configs/demo.yaml")
    assert second in remedy


def test_aliases_do_not_multiply(write):
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert "aliases are not read" in refused(write(bomb))[0]


def test_a_giant_file_is_not_parsed(write):
    assert "bytes" in refused(write("#" * (reading.MAX_CONFIG_BYTES + 1)))[0]


def test_text_of_another_encoding_is_named(write, tmp_path):
    path = write("")
    (tmp_path / path).write_bytes(b"name: \xff\xfe")
    assert "is not UTF-8 text" in refused(path)[0]


@pytest.mark.parametrize("path", ["configs/dmo.yaml", "demo.yaml", "demo"])
def test_a_missing_file_names_those_near_it(write, path):
    write("")
    problem, remedy = refused(path)
    assert f"'{path}' does not exist (did you mean 'configs/demo.yaml'?)" in problem
    assert "configs/demo.yaml" in remedy


def test_a_missing_file_with_none_near_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("x.yaml")[1].startswith("name a YAML file")


def test_overrides_go_through_the_same_checks(write):
    path = write("finetune: {steps: 7}")
    cfg = load_config(path, {"finetune.steps": 1, "classes": ("a", "b"), "convert.split": {"train": 0.8, "val": 0.0}})
    assert (cfg.finetune.steps, cfg.finetune.classes, cfg.convert.split.train) == (1, ("a", "b"), 0.8)
    assert refused(path, {"finetune.stps": 1})[0] == "overrides: unknown key 'finetune.stps' (did you mean 'steps'?)"
    assert refused(path, {"finetune.steps": "x"})[0].startswith("overrides: finetune.steps is 'x' (text)")
    assert "finetune.steps is not a section" in refused(path, {"finetune.steps.more": 1})[0]


def test_set_strings_are_yaml_values():
    found = set_strings(["a.b=1", "a.c=true", "d=null", "e=x=y", "f=[p, q]", "g=1e-3", "h="])
    assert found == {"a.b": 1, "a.c": True, "d": None, "e": "x=y", "f": ["p", "q"], "g": "1e-3", "h": None}


def test_what_is_written_plainly_is_read(write):
    text = "classes: ['NO', '010', \"\u201cX\u201d\", 5\u2019]\nseed: 10\nlabel: {diameter_px: 0.5e+1}\n"
    text += "maskrcnn: {freeze_backbone: no}"
    cfg = load_config(
        write(text), set_strings(["convert.path='plate #3'", "convert.channels.nuclei=450", "workers=+2"])
    )
    assert cfg.classes == ("NO", "010", "\u201cX\u201d", "5\u2019")
    assert (cfg.seed, cfg.label.diameter_px, cfg.maskrcnn.freeze_backbone) == (10, 5.0, False)
    assert (cfg.convert.path, cfg.convert.channels.nuclei, cfg.workers) == ("plate #3", 450, 2)


@pytest.mark.parametrize("value", ["plate #3", "#3", "[a, b] # c", "'a' #b"])
def test_nothing_after_set_is_dropped_as_a_comment(value):
    with pytest.raises(UserError, match="takes what follows # for a comment"):
        set_strings([f"convert.path={value}"])
    assert set_strings(["convert.path=plate#3"]) == {"convert.path": "plate#3"}


def test_a_value_after_set_is_shown_as_it_was_written(write):
    path = write("classes: [yes]\nfinetune: {steps: 5}")
    assert "classes is [NO] (a list)" in refused(path, set_strings(["classes=[NO]"]))[0]
    assert "finetune.base is 1.10 (a number)" in refused(path, set_strings(["finetune.base=1.10", "classes=[a]"]))[0]
    assert "classes is [false] (a list)" in refused(path, {"classes": [False]})[0]


@pytest.mark.parametrize("strings", [["steps"], ["=1"], ["a=1", "a=2"], ["a=["], ["a=*b"]])
def test_bad_set_strings_are_refused(strings):
    with pytest.raises(UserError):
        set_strings(strings)


@given(
    st.integers(1, 10**6),
    st.floats(1e-9, 1),
    st.lists(st.text("abcXYZ é-", min_size=1), min_size=1, unique_by=plain).filter(
        lambda names: all(map(plain, names))
    ),
)
def test_what_is_written_as_yaml_is_what_is_read(tmp_path_factory, steps, rate, classes):
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    path.write_text(yaml.safe_dump({"classes": classes, "finetune": {"steps": steps, "learning_rate": rate}}))
    cfg = load_config(path)
    assert (cfg.finetune.steps, cfg.finetune.learning_rate, list(cfg.classes)) == (steps, rate, classes)
    again = load_config(path, {"finetune.steps": steps})
    assert again == cfg


def test_every_field_says_what_it_is():
    for key, field in known_keys().items():
        assert field["description"], key
        unit = key.rpartition("_")[2]
        assert unit not in ("px", "um", "s") or f"({unit})" in field["description"], key
    table = describe()
    assert "| `maskrcnn.mask_threshold` | `null` | a number > 0 and < 1, or null |" in table
    assert len({line.count("|") - 2 * line.count("\\|") for line in table.splitlines()}) == 1


def test_the_schema_beside_the_configs_is_current_and_every_config_names_it():
    """`make schema` writes it anew."""
    assert json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8")) == published_schema()
    for path in sorted(CONFIGS.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").split("\n")[0]
        assert first == "# yaml-language-server: $schema=schema.json", path.name


def test_the_schema_accepts_and_refuses_what_the_reader_does():
    validator = jsonschema.Draft202012Validator(published_schema())
    for path in sorted(CONFIGS.glob("*.yaml")):
        assert not list(validator.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))), path.name
    assert not list(validator.iter_errors({"finetune": {"backend": "threshold", "diameter_px": 30}}))
    for wrong in (
        {"finetune": {"backend": "threshold", "steps": 3}},
        {"finetune": {"fpn_channels": 96}},
        {"stps": 1},
        {"label": {"diameter_px": 0}},
        {"finetune": {"crop_px": 33}},
        {"evaluate": {"profile": "x"}},
    ):
        assert len(list(validator.iter_errors(wrong))) == 1, wrong


def test_paths_in_a_file_count_from_the_current_folder_else_from_its_own(tmp_path, monkeypatch):
    for folder in ("there/mine/HEK", "here/both", "there/both", "there/truth"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "there/w.pt").touch()
    text = "data: {}\nconvert: {{source: folder}}\nlabel: {{use: {}, model: w.pt}}\nfinetune: {{base: cyto3}}\n"
    text += "maskrcnn: {{start: tuned}}\n"
    (tmp_path / "there/c.yaml").write_text(text.format("mine", "truth"))
    monkeypatch.chdir(tmp_path / "here")
    cfg = load_config("../there/c.yaml")
    assert data_root(cfg).samefile(tmp_path / "there/mine") and data_root(cfg.convert) == data_root(cfg)
    assert Path(cfg.label.model).samefile(tmp_path / "there/w.pt")
    assert (cfg.label.use, cfg.finetune.base, cfg.maskrcnn.start) == ("truth", "cyto3", "tuned"), "words, not paths"
    (tmp_path / "there/c.yaml").write_text(text.format("both", "nowhere"))
    cfg = load_config("../there/c.yaml")
    assert (cfg.data, cfg.label.use) == ("both", "nowhere"), "the current folder comes first; what is nowhere stays"
    assert load_config("../there/c.yaml", {"data": "mine"}).data == "mine", "--set counts from the current folder"


def test_data_root_is_the_config_else_the_variable(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name / "set").mkdir(parents=True)
        (tmp_path / name / "set" / "a.png").touch()
    monkeypatch.setenv("CELLKIT_DATA", str(tmp_path / "two"))
    assert data_root(Config(data=str(tmp_path / "one"))) == tmp_path / "one"
    assert data_root(Config()) == tmp_path / "two"
    assert data_path(ConvertConfig(path="set")) == tmp_path / "two" / "set"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "no data folder is set"),
        ({"data": "nowhere"}, "data is 'nowhere', no such folder"),
        ({"data": "file"}, "data is 'file', not a folder"),
        ({"data": "empty"}, "data is 'empty', an empty folder"),
        (
            {"data": "full", "path": "sett"},
            "convert.path is 'sett', not in the data folder 'full' (did you mean 'set'?)",
        ),
        ({"data": "full", "path": "hollow"}, "'full/hollow' is an empty folder"),
        ({"data": "full", "path": "../empty"}, "which leads out of 'full'"),
        ({"data": "full", "path": "link"}, "which leads out of 'full'"),
    ],
)
def test_a_bad_data_folder_is_named(tmp_path, monkeypatch, fields, problem):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELLKIT_DATA", raising=False)
    for folder in ("empty", "full/set", "full/hollow"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "full" / "set" / "a.png").touch()
    (tmp_path / "full" / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        data_path(ConvertConfig(**fields))
    first, second = str(caught.value).splitlines()
    assert problem in first
    if "path" not in fields:
        assert "--set data=FOLDER" in second
        assert "CELLKIT_DATA=FOLDER" in second


def test_relative_paths_of_a_notebook_opened_by_hand_count_from_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "notebooks" / "recipes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "recipes")
    assert str(here("configs/a.yaml")) == "configs/a.yaml"  # not in a kernel
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.delenv("CELLKIT_HEADLESS", raising=False)
    assert here("configs/a.yaml") == tmp_path / "configs" / "a.yaml"
    monkeypatch.setenv("CELLKIT_HEADLESS", "1")  # under the runner, which starts kernels where the user started it
    assert str(here("configs/a.yaml")) == "configs/a.yaml"


def test_the_config_of_the_drawn_example_fits_the_function_that_draws():
    import inspect

    from cellkit.sources.drawn.files import write_fields

    assert set(dict(ConvertConfig().drawn)) <= set(inspect.signature(write_fields).parameters)


@pytest.mark.parametrize(
    ("choose", "report", "told"),
    [
        ("test", "test", "lets test images choose .*set evaluate.choose_split: val"),
        ("test", "val", "lets test images choose"),
        ("train", "test", "lets train images choose .*set evaluate.choose_split: val"),
        ("train", "train", "lets train images choose"),
        ("val", "train", "reports on train images.*set evaluate.report_split: test"),
    ],
)
def test_validation_images_choose_and_training_images_are_no_report(write, choose, report, told):
    with pytest.raises(UserError, match=f"evaluate {told}"):
        load_config(write(f"evaluate: {{choose_split: {choose}, report_split: {report}}}\n"))
    with pytest.raises(UserError, match=f"evaluate {told}"):
        load_config(write(""), {"evaluate.choose_split": choose, "evaluate.report_split": report})


def test_validation_images_may_report_where_there_is_no_test_image(write):
    told = load_config(write(""), {"evaluate.report_split": "val"}).evaluate
    assert told.choose_split == "val" and "flatter" in told.caution and not EvaluateConfig().caution
    named = load_config(write(""), {"evaluate.report_split": "val", "evaluate.submit": "maskrcnn"}).evaluate
    assert named.caution == "", "the setting chose"


def test_a_section_shows_each_key_with_value_unit_and_meaning():
    section = load_config(CONFIGS / "demo.yaml", {"convert.group_from": "(?P<group>[A-H])<b>"}).convert
    lines = repr(section).split("\n")
    assert lines[0].split() == ["key", "value", "unit", "meaning"]
    keys = [line.split()[0] for line in lines[1:]]
    wanted = [key.removeprefix("convert.") for key, field in known_keys().items() if key.startswith("convert.")]
    groups = {key.rpartition(".")[0] for key in wanted}
    assert set(keys) == set(wanted) - groups and len(keys) == len(set(keys))
    (size,) = [line for line in lines if line.startswith("drawn.size_px ")]
    assert size.split(maxsplit=3) == ["drawn.size_px", "256", "px", "height and width of an image (px)"]
    page = section._repr_html_()
    assert page.count("<tr>") == len(lines) and "&lt;b&gt;" in page and "<b>" not in page


def test_weights_that_know_something_move_slowly_and_scratch_fast(write):
    known, scratch = (load_config(write(f"finetune: {{base: {base}}}")).finetune for base in ("starter", "scratch"))
    assert (known.learning_rate, known.fixed_norms, known.average_steps) == (2e-4, True, 20)
    assert (scratch.learning_rate, scratch.average_steps) == (1e-3, 20)
    set_by_hand = load_config(write("finetune: {base: scratch, learning_rate: 0.5}"), {"finetune.steps": 3}).finetune
    assert set_by_hand.learning_rate == 0.5
