"""Files that are damaged, or are not what their name says, end in one error that names the file and how to fix it."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from preference_core.artefacts.manifest import read_manifest
from preference_core.errors import ConfigError, PreferenceError, SystemFailure
from preference_export.checkpoint.architecture import ArchitectureError, architecture_of, hugging_face_config
from preference_export.original.sample import read_sample

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def point(path):
    path.write_text(POINTER)


@pytest.mark.parametrize(
    ("file", "damage", "hint"),
    [
        ("base/tokenizer.json", cut, "Fetch or save it again"),
        ("base/tokenizer.json", point, "git lfs pull"),
        ("base/tokenizer_config.json", lambda path: path.write_text("[1]"), None),
        ("base/tokenizer_config.json", point, "git lfs pull"),
        ("base/model.safetensors", point, "git lfs pull"),
        ("base/config.json", point, "git lfs pull"),
        ("base/config.json", lambda path: change_json(path, hidden_size="48"), None),
        ("base/config.json", lambda path: change_json(path, id2label=["a", "b"]), None),
        ("base/config.json", lambda path: change_json(path, num_attention_heads=0), None),
        ("base/config.json", lambda path: change_json(path, num_hidden_layers=-1), None),
        ("adapter/adapter_model.safetensors", point, "git lfs pull"),
        ("adapter/adapter_config.json", point, "git lfs pull"),
        ("adapter/adapter_config.json", lambda path: change_json(path, target_modules=None), None),
        ("adapter/adapter_config.json", lambda path: change_json(path, target_modules="(("), None),
        ("adapter/adapter_config.json", lambda path: change_json(path, target_modules=[3]), None),
        ("adapter/adapter_config.json", lambda path: change_json(path, lora_alpha=None), None),
        ("adapter/adapter_config.json", lambda path: change_json(path, r="4"), None),
        ("adapter/adapter_config.json", lambda path: change_json(path, r=0), None),
        ("adapter/adapter_config.json", lambda path: change_json(path, rank_pattern=[1]), None),
        ("adapter/adapter_config.json", lambda path: change_json(path, modules_to_save=[1]), None),
    ],
)
def test_a_damaged_file_of_a_base_or_an_adapter(project, file, damage, hint):
    damage(project.folder / file)
    with pytest.raises(PreferenceError, match=file.rpartition("/")[2]) as caught:
        project.run("onnx")
    assert hint is None or hint in caught.value.hint


def test_rope_parameters_that_differ_by_layer(make, tmp_path):
    base = make.base(tmp_path / "base", "gemma2")
    one = {"rope_type": "default", "rope_theta": 10000.0}
    change_json(base / "config.json", rope_parameters={"full_attention": one, "sliding_attention": one})
    with pytest.raises(ArchitectureError, match=r"differ by layer \(full_attention, .*sliding_attention\)"):
        architecture_of(hugging_face_config(base))


def test_a_rope_base_that_is_no_number(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    change_json(base / "config.json", rope_parameters={"rope_type": "default", "rope_theta": "10000"})
    with pytest.raises(ArchitectureError, match="`rope_theta`"):
        architecture_of(hugging_face_config(base))


def text_of_rows(*columns):
    return ",".join(columns) + "\n" + ",".join("1" for _ in columns) + "\n"


BATTLE = ("id", "prompt", "response_a", "response_b")


@pytest.mark.parametrize(
    ("name", "content", "named", "hint"),
    [
        (
            "battles.csv",
            "id,prompt\n1,caf\u00e9\n".encode("latin-1"),
            "line 2: `prompt` is not UTF-8",
            "Save the file as UTF-8",
        ),
        ("battles.csv.xz", b"", "no known file extension", "Expected one of .csv"),
        ("battles.parquet", b"PAR1 and then nothing of the kind", "is damaged, or not of its format", None),
        ("battles.parquet", POINTER.encode(), "is damaged", "git lfs pull"),
    ],
)
def test_a_sample_file_that_cannot_be_read(tmp_path, name, content, named, hint):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=named) as caught:
        read_sample(path, LABELS)
    assert str(path) in caught.value.message
    assert caught.value.hint is None if hint is None else hint in caught.value.hint


def test_a_parquet_file_with_a_damaged_middle(tmp_path):
    path = tmp_path / "battles.parquet"
    table = pyarrow.table({column: [f"{column} {row}" for row in range(500)] for column in BATTLE})
    pyarrow.parquet.write_table(table, path)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        read_sample(path, LABELS)


@pytest.mark.parametrize("row", ["1,Hi, there,Hello!,Go away", "1,Hi"])
def test_a_sample_row_with_other_columns_than_the_header(tmp_path, row):
    path = tmp_path / "battles.csv"
    path.write_text(f"id,prompt,response_a,response_b\n0,a,b,c\n{row}\n")
    with pytest.raises(ConfigError, match=r"line 3: the row has . columns, the header has 4"):
        read_sample(path, LABELS)


def test_a_misspelt_label_column_does_not_switch_the_labels_off(tmp_path):
    path = tmp_path / "battles.csv"
    path.write_text(text_of_rows(*BATTLE, "winner_model_a", "winner_model_b", "winner_ties"))
    with pytest.raises(ConfigError, match="no column `winner_tie`, but other labels") as caught:
        read_sample(path, LABELS)
    assert "`winner_ties`" in caught.value.hint


def test_a_file_without_any_label_has_none(tmp_path):
    path = tmp_path / "battles.csv"
    path.write_text(text_of_rows(*BATTLE))
    assert read_sample(path, LABELS).targets is None


def test_a_build_folder_that_is_a_file(project):
    build = project.folder / "build"
    build.rename(project.folder / "elsewhere")
    build.touch()
    with pytest.raises(SystemFailure, match=r"`build/tiny/members/gemma` could not be written"):
        project.run("all")


@pytest.mark.slow
def test_manifests_without_their_details_are_made_again(project):
    for folder in ("members/gemma", "repository"):
        change_json(project.folder / "build" / "tiny" / folder / "manifest.json", details={})
    results = {result["stage"]: result for result in project.run("all")["results"]}
    assert results["onnx"]["weight_bytes"] > 0
    assert results["repository"]["version"] == 2
    change_json(project.folder / "build" / "tiny" / "repository.previous" / "manifest.json", details={})
    with pytest.raises(PreferenceError, match="has no `version`"):
        project.run("rollback")
    assert read_manifest(project.config.folders.repository).details["version"] == 2
