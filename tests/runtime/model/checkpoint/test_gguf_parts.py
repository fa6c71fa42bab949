"""GGUF models in several parts: found, read together, and refused when one is missing or of another model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf_converter import add_parameters, converted
from model_builders import Reference, make_gguf_engine, make_model, run_to_end, write_gguf
from runtime_builders import make_request

from stoker_runtime.errors import ModelError
from stoker_runtime.gguf_file import find_gguf, read_gguf
from stoker_runtime.gguf_parts import gguf_models, part_names
from stoker_runtime.model.checkpoint.gguf_metadata import architecture_from_gguf
from stoker_runtime.model.checkpoint.weights import GgufSource

PER_PART = 7  # tensors


def write_parts(folder: Path, name: str = "m") -> tuple[list[Path], Reference]:
    """A llama model as the `gguf` package's writer splits it, as llama.cpp's own program does."""
    model = make_model("llama")
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama", split_max_tensors=PER_PART)
    add_parameters(writer, model.config)
    for tensor, values in converted(model, "llama"):
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{name}-*.gguf")), Reference(model)


def test_a_model_is_loaded_from_any_of_its_parts_or_their_folder(tmp_path: Path) -> None:
    parts, reference = write_parts(tmp_path)
    assert len(parts) == 3
    request = make_request([5, 80, 3, 9, 120], max_tokens=8)
    outputs = [
        run_to_end(make_gguf_engine(path), {0: [request]})[request.request_id]
        for path in (parts[0], parts[2], tmp_path)
    ]
    assert outputs[0] == outputs[1] == outputs[2]
    assert reference.num_near_ties(request.prompt_token_ids, outputs[0]) == 0


def test_tensors_know_their_part_and_metadata_is_the_first_ones(tmp_path: Path) -> None:
    parts, _ = write_parts(tmp_path)
    read = read_gguf(parts[1])
    assert (read.path, read.paths) == (parts[0], tuple(parts))
    assert read.metadata["llama.block_count"] == 2
    assert [sum(t.part == part for t in read.tensors.values()) for part in range(3)] == [
        PER_PART,
        PER_PART,
        7,
    ]
    assert find_gguf(tmp_path) == parts[0]


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts, _ = write_parts(tmp_path)
    for lost in (parts[2], parts[0]):
        kept = lost.rename(tmp_path / "elsewhere")
        with pytest.raises(ModelError, match=f"{lost.name} is missing: m-0000") as caught:
            read_gguf(parts[1])
        assert caught.value.reason == "ModelNotFound"
        found = find_gguf(tmp_path)
        assert found is not None
        with pytest.raises(ModelError, match=f"{lost.name} is missing"):
            read_gguf(found)
        kept.rename(lost)


def rename(parts: list[Path]) -> Path:
    return parts[0].rename(parts[0].with_name("first.gguf"))


def swap(parts: list[Path]) -> Path:
    shutil.copy(parts[2], parts[1])
    return parts[0]


def replace_part(parts: list[Path]) -> Path:
    write_gguf(parts[1], make_model("llama"), "llama")
    return parts[0]


def state_another_count(parts: list[Path]) -> Path:
    content = bytearray(parts[0].read_bytes())
    place = content.index(b"split.tensors.count") + len("split.tensors.count") + 4
    content[place] += 1
    parts[0].write_bytes(content)
    return parts[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename, r"first\.gguf is one of 3 parts, .* NAME-00001-of-00003\.gguf .*llama-gguf-split --merge"),
        (swap, r"m-00002-of-00003\.gguf is no part 2 of 3: its split\.no is 2, .* download all parts anew"),
        (replace_part, r"m-00002-of-00003\.gguf is no part 2 of 3: its split\.no is None"),
        (state_another_count, r"have 21 tensors, split\.tensors\.count is 22; download"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    damage: Callable[[list[Path]], Path], message: str, tmp_path: Path
) -> None:
    parts, _ = write_parts(tmp_path)
    with pytest.raises(ModelError, match=message):
        read_gguf(damage(parts))


def test_a_part_that_is_cut_short_is_named(tmp_path: Path) -> None:
    parts, _ = write_parts(tmp_path)
    parts[1].write_bytes(parts[1].read_bytes()[:-4096])
    read = read_gguf(parts[0])
    last = max((t for t in read.tensors.values() if t.part == 1), key=lambda tensor: tensor.offset)
    ours = {
        stored.name: name for name, stored in GgufSource(read, architecture_from_gguf(read))._tensors.items()
    }
    with (
        GgufSource(read, architecture_from_gguf(read)) as source,
        pytest.raises(ModelError, match=r"m-00002-of-00003\.gguf is cut short.*download it anew"),
    ):
        source.copy_into(ours[last.name], torch.empty(last.shape))


def test_two_models_in_one_folder_need_a_name(tmp_path: Path) -> None:
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"several GGUF models \(a-00001-of-00002\.gguf, b\.gguf\); name"):
        find_gguf(tmp_path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("m.gguf", ("m.gguf",)),
        ("x/m-00002-of-00002.gguf", ("x/m-00001-of-00002.gguf", "x/m-00002-of-00002.gguf")),
        ("m-00001-of-00001.gguf", ("m-00001-of-00001.gguf",)),
        ("m-00003-of-00002.gguf", ("m-00003-of-00002.gguf",)),
        ("m-00000-of-00002.gguf", ("m-00000-of-00002.gguf",)),
        ("m-1-of-2.gguf", ("m-1-of-2.gguf",)),
    ],
)
def test_names_of_parts(name: str, parts: tuple[str, ...]) -> None:
    assert part_names(name) == parts


def test_files_for_images_are_no_models() -> None:
    names = ["q/mmproj-F16.gguf", "mmproj.gguf", "m.gguf", "README.md"]
    assert gguf_models(names) == {"m.gguf": ("m.gguf",)}
