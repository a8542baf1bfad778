"""What is a model: all shards that an index names, files that are what their names say,
code only where it is allowed. What is none is told with what there is.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_delivery.base import Progress, Refused, Trouble, sink
from model_delivery.models.sources.huggingface import HuggingFaceModel
from model_delivery.models.sources.local import LocalModel
from model_delivery.run.resolve import resolve_model
from model_delivery.spec import parse_spec
from model_delivery.steps import verify
from model_delivery.steps.fetch import run as fetch
from model_delivery.values import Snapshot
from tests.fetch.fetching import WEIGHTS, given, models, whole
from tests.parts.hubs import files_of
from tests.parts.hubs.huggingface import REPO, HuggingFaceHub, running_hub
from tests.parts.tiny_model import tiny_model

INDEX = "model.safetensors.index.json"
THREE = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
PAGE = "\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "mine")


def put(folder: Path, files: dict[str, str | bytes | None]) -> Path:
    """Write ``files`` into ``folder``; None removes one."""
    for name, body in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if body is None:
            path.unlink()
        else:
            path.write_bytes(body.encode() if isinstance(body, str) else body)
    return folder


def sharded(folder: Path, shards: list[str], named: list[str] | None = None, index: str = INDEX) -> Path:
    """The weights of ``folder`` as ``shards``; the index names ``named`` (all)."""
    text = json.dumps({"weight_map": {f"w{n}": name for n, name in enumerate(named or shards)}})
    return put(folder, {index: text, **{name: weights(f"w{n}") for n, name in enumerate(shards)}, WEIGHTS: None})


def weights(*tensors: str) -> bytes:
    spans = {name: {"dtype": "U8", "shape": [8], "data_offsets": [8 * n, 8 * n + 8]} for n, name in enumerate(tensors)}
    header = json.dumps(spans).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8 * len(tensors))


def resolved(folder: Path, **more: object) -> Snapshot:
    return resolve_model(LocalModel.model_validate({"source": "local", "path": str(folder), **more}))


def names(folder: Path, **more: object) -> list[str]:
    return [file.path for file in resolved(folder, **more).files]


def refused(folder: Path, **more: object) -> str:
    with pytest.raises(Refused) as said:
        resolved(folder, **more)
    return said.value.text


# shards


def test_an_index_that_names_a_shard_that_is_not_there_is_refused(folder: Path) -> None:
    told = refused(sharded(folder, THREE[:2], THREE))
    assert f"{INDEX} names 1 of 3 files that are not there: '{THREE[2]}' [source.no-shard]" in told
    assert "model.exclude" not in told


@pytest.mark.parametrize("named", ["model-00003-of-00003", "model-00003-of-00003.SAFETENSORS", ""])
def test_an_index_that_names_what_is_no_weights_file_is_refused(folder: Path, named: str) -> None:
    assert "that are not there" in refused(sharded(folder, THREE[:2], [*THREE[:2], named]))


def test_an_index_that_names_a_tensor_that_its_shard_does_not_hold_is_refused(folder: Path) -> None:
    told = refused(put(sharded(folder, THREE), {THREE[1]: weights("other")}))
    assert f"{INDEX} names 1 tensors of {THREE[1]} that are not in it: 'w1' [source.no-tensor]" in told


@pytest.mark.parametrize("spans", [((0, 4), (8, 16)), ((0, 8), (4, 16)), ((4, 8), (8, 16))])
def test_weights_with_a_gap_or_an_overlap_are_refused(folder: Path, spans: tuple[tuple[int, int], ...]) -> None:
    tensors = {
        f"w{n}": {"dtype": "U8", "shape": [end - at], "data_offsets": [at, end]} for n, (at, end) in enumerate(spans)
    }
    header = json.dumps(tensors).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    assert "overlap, or leave a gap" in refused(folder)


def test_a_tensor_whose_shape_does_not_fill_its_bytes_is_refused(folder: Path) -> None:
    header = json.dumps({"w0": {"dtype": "F32", "shape": [400], "data_offsets": [0, 16]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    assert "the shape of tensor w0 does not fill its bytes" in refused(folder)


@pytest.mark.parametrize("name", ["merges.txt", "vocab.txt", "tokenizer.model"])
def test_an_empty_file_of_a_tokenizer_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b" \n")
    assert f"{name} is empty" in refused(folder)


def test_a_shard_that_is_there_and_not_wanted_is_told_so(folder: Path) -> None:
    assert "correct model.include and model.exclude" in refused(sharded(folder, THREE), exclude=["*00003-of*"])


def test_a_second_set_of_weights_is_left_out_and_said(folder: Path) -> None:
    weights = (folder / WEIGHTS).read_bytes()
    second = {f"model-0000{n}-of-00002.safetensors": weights for n in (1, 2)} | {WEIGHTS: weights}
    put(sharded(folder, THREE), dict(second))
    heard: list[Progress] = []
    with sink(heard.append):
        assert names(folder) == ["config.json", *THREE, INDEX, "tokenizer.json"]
    assert [news.note for news in heard] == [f"left out, a second set of weights: {', '.join(sorted(second))}"]


def test_shards_without_an_index_are_counted_by_their_names(folder: Path) -> None:
    put(sharded(folder, THREE[:2]), {INDEX: None})
    assert "2 of 3 files model-*-of-00003.safetensors are there: " in refused(folder)


def test_shards_beside_a_whole_file_are_left_out_and_said(folder: Path) -> None:
    put(folder, {f"model-0000{n}-of-00002.safetensors": weights("w") for n in (1, 2)})
    heard: list[Progress] = []
    with sink(heard.append):
        assert names(folder) == ["config.json", WEIGHTS, "tokenizer.json"]
    assert "left out, a second set of weights: model-00001-of-00002" in heard[0].note


def test_of_two_numbered_sets_one_is_taken_and_the_other_is_said(folder: Path) -> None:
    put(
        folder,
        {f"model-0000{n}-of-0000{total}.safetensors": weights("w") for total in (1, 2) for n in range(1, total + 1)},
    )
    put(folder, {WEIGHTS: None})
    assert names(folder) == ["config.json", "model-00001-of-00001.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        (WEIGHTS, struct.pack("<Q", 2) + b"{}", "holds no tensor"),
        (WEIGHTS, weights(), "holds no tensor"),
        ("config.json", b"{}", "says no model"),
        ("tokenizer.json", b"[]", "is no JSON object"),
        ("tokenizer_config.json", b'"x"', "is no JSON object"),
        ("tokenizer.model", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        ("tokenizer.model", b'{"error": "not found"}', "is a web page"),
        ("tokenizer.model", b"\xef\xbb\xbf" + POINTER.encode(), "is a git-LFS pointer"),
        ("vocab.txt", b"<!-- error -->\n<!-- x --><HTML>404</html>", "is a web page"),
    ],
)
def test_what_holds_no_model_is_refused_by_name(folder: Path, name: str, body: bytes, told: str) -> None:
    assert f"{name} {told}" in refused(put(folder, {name: body}))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02"),
        ("config.json", b'{"architectures": ["X"]}'),
        ("config.json", b'{"model_type": "x"}'),
        ("modules.json", b"[]"),
        ("openvino.xml", b"<?xml version='1.0'?><net/>"),
        ("README.md", b"<!-- a note --># Model"),
    ],
)
def test_what_real_models_hold_is_kept(folder: Path, name: str, body: bytes) -> None:
    assert name in names(put(folder, {name: body}), include=["*"])


def test_a_name_that_is_a_file_and_a_folder_is_refused_before_a_byte_moves(hub: HuggingFaceHub, root: Path) -> None:
    hub.files |= {"tokenizer": b"x", "Tokenizer/a.json": b"{}"}
    with pytest.raises(Refused, match=r"tokenizer would be a file and a folder: Tokenizer/a\.json is listed too"):
        given(root, of_the_hub())
    assert hub.sent == 0


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": 1}}', "{", ""])
def test_an_index_that_is_none_is_refused_by_name(folder: Path, text: str) -> None:
    assert f"{INDEX} is " in refused(put(folder, {INDEX: text}))


def test_an_index_of_pickles_that_nobody_wants_refuses_nothing(folder: Path) -> None:
    put(folder, {"pytorch_model.bin.index.json": '{"weight_map": {"w": "pytorch_model-00001-of-00002.bin"}}'})
    assert WEIGHTS in names(folder)


def test_a_folder_filled_by_hand_may_hold_the_set_that_its_index_does_not_name(folder: Path) -> None:
    weights = (folder / WEIGHTS).read_bytes()
    put(sharded(folder, THREE), {WEIGHTS: weights})
    done = verify.run(verify.VerifyInput(snapshot=resolved(folder), folder=str(folder)))
    assert WEIGHTS in done.others


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceHub]:
    with running_hub(sharded(tiny_model(tmp_path / "hub"), THREE)) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def of_the_hub(**more: object) -> HuggingFaceModel:
    return HuggingFaceModel.model_validate({"source": "huggingface", "repo": REPO, **more})


def test_a_hubs_index_is_read_before_a_byte_is_moved(hub: HuggingFaceHub, root: Path) -> None:
    single = {WEIGHTS: hub.files[THREE[0]]}
    shards = dict(hub.files)
    hub.files |= single
    whole(fetch(given(root, of_the_hub())), shards)
    del hub.files[THREE[1]]
    with pytest.raises(Refused, match="names 1 of 3 files that are not there"):
        given(root, of_the_hub())


def test_a_tensor_that_no_file_of_a_hub_holds_is_told_before_there_is_a_model(hub: HuggingFaceHub, root: Path) -> None:
    hub.files[THREE[2]] = weights("w0", "w1")
    with pytest.raises(Refused, match=rf"names 1 tensors of {THREE[2]} that are not in it: 'w2'"):
        fetch(given(root, of_the_hub()))
    assert models(root) == []


def test_an_index_that_is_not_what_was_listed_is_no_success(hub: HuggingFaceHub, root: Path) -> None:
    hub.missing = INDEX
    with pytest.raises(Refused, match=r"status 404"):
        given(root, of_the_hub())
    hub.missing, hub.files[INDEX] = "", hub.files[INDEX] + b" "
    hub.lying_size = INDEX
    with pytest.raises(Trouble, match=r"index\.json is not what was listed"):
        given(root, of_the_hub())


# files that are not what their names say


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "tokenizer.model", "merges.txt", WEIGHTS])
def test_a_git_lfs_pointer_is_refused_by_name(folder: Path, name: str) -> None:
    assert f"{name} is a git-LFS pointer [" in refused(put(folder, {name: POINTER})).replace(": the", " [")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "chat_template.jinja"])
def test_a_page_that_was_saved_as_a_file_is_refused_by_name(folder: Path, name: str) -> None:
    assert f"{name} is a web page" in refused(put(folder, {name: PAGE}))


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json", "tokenizer.model", WEIGHTS])
def test_an_empty_file_is_refused_by_name(folder: Path, name: str) -> None:
    assert f"{name} is empty" in refused(put(folder, {name: ""}))


@pytest.mark.parametrize("text", [" ", "{", "oops", "\ufeff{}", b"\xff{}", "[" * 100_000])
def test_a_json_that_is_none_is_refused_by_name(folder: Path, text: str | bytes) -> None:
    assert "special_tokens_map.json is not JSON" in refused(put(folder, {"special_tokens_map.json": text}))


@pytest.mark.parametrize("text", ["[]", "null", '"text"'])
def test_a_configuration_is_an_object(folder: Path, text: str) -> None:
    assert "config.json is no JSON object" in refused(put(folder, {"config.json": text}))


def test_infinity_is_what_configurations_really_hold(folder: Path) -> None:
    assert "generation_config.json" in names(put(folder, {"generation_config.json": '{"time_step": [0.0, Infinity]}'}))


@pytest.mark.parametrize(("name", "body"), [("tokenizer.json", b"<html>"), ("tokenizer.json", POINTER.encode())])
def test_what_a_hub_gives_is_looked_into_as_well(hub: HuggingFaceHub, root: Path, name: str, body: bytes) -> None:
    hub.files[name] = body
    with pytest.raises(Refused, match=rf"{name} is a"):
        fetch(given(root, of_the_hub()))
    assert models(root) == []


# links, and files that do not count


@pytest.mark.parametrize(("target", "why"), [("gone", "leads nowhere"), ("tokenizer.model", "leads nowhere"), ("..", "is a link to a folder")])  # fmt: skip
def test_a_wanted_link_that_leads_to_no_file_is_refused(folder: Path, target: str, why: str) -> None:
    (folder / "tokenizer.model").symlink_to(target)
    assert f"tokenizer.model {why}" in refused(folder)


def test_a_dangling_shard_is_not_left_out_in_silence(folder: Path) -> None:
    (folder / "model-2.safetensors").symlink_to("../blobs/gone")
    assert "model-2.safetensors leads nowhere" in refused(folder)


def test_a_wanted_name_that_is_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "vocab.json")
    assert "vocab.json is no file" in refused(folder)


def test_what_nobody_wants_refuses_nothing(folder: Path) -> None:
    for name, target in {"README.md": "/etc/hostname", "gone.md": "nowhere", "onnx": "/etc"}.items():
        (folder / name).symlink_to(target)
    put(folder, {"LICENSE": "x", "license": "y", "LICENSE.txt": "x", "license.txt": "y"})
    assert [name for name in names(folder) if "icense" in name.lower()] == ["LICENSE.txt"]


def test_two_files_of_the_model_that_differ_in_case_only_are_still_refused(folder: Path) -> None:
    assert "differ only in case" in refused(put(folder, {"Tokenizer.json": "{}", "tokenizer.JSON": "{}"}))


def test_a_snapshot_of_hugging_faces_cache_is_a_folder_like_any_other(tmp_path: Path, root: Path) -> None:
    cache = tmp_path / "models--org--model"
    files = files_of(tiny_model(cache / "blobs"))
    snapshot = cache / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for name in files:
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    whole(fetch(given(root, LocalModel(source="local", path=str(snapshot)))), files)
    (snapshot / "generation_config.json").symlink_to("../../../elsewhere.json")
    put(tmp_path, {"elsewhere.json": "{}"})
    assert "leads out of the model's folder" in refused(snapshot)


def test_a_trainings_checkpoints_are_left_out_unless_they_are_named(folder: Path) -> None:
    put(folder, {"checkpoint-500/config.json": "{}", "run/checkpoint-9/trainer_state.json": "{}"})
    assert names(folder) == ["config.json", WEIGHTS, "tokenizer.json"]
    assert "checkpoint-500/config.json" in names(folder, include=["*.json", "*.safetensors", "checkpoint-500/*"])


def test_a_model_in_mistrals_own_form_is_served_as_one(folder: Path) -> None:
    weights = (folder / WEIGHTS).read_bytes()
    put(folder, {"params.json": "{}", "tekken.json": "{}", "consolidated.safetensors": weights})
    assert "consolidated.safetensors" not in names(folder), "beside the usual form it is a second set"
    put(folder, {"config.json": None, WEIGHTS: None})
    snapshot = resolved(folder)
    assert [file.path for file in snapshot.files] == [
        "consolidated.safetensors",
        "params.json",
        "tekken.json",
        "tokenizer.json",
    ]
    asked = {"apiVersion": "model-delivery/v1", "name": "m", "target": {"kind": "deployment"}}
    spec = parse_spec({**asked, "model": {"source": "huggingface", "repo": REPO}})
    assert spec.served(snapshot).serving.args == ("--config-format", "mistral", "--load-format", "mistral")


@pytest.mark.parametrize(
    ("files", "told", "fix"),
    [
        (["m-Q4_K_M.gguf", "README.md"], "it holds GGUF files: m-Q4_K_M.gguf", "was made from"),
        (["adapter_config.json", "adapter_model.safetensors"], "it holds an adapter: adapter_config.json", "merge"),
        (["config.json", "adapter_config.json", "adapter_model.safetensors"], "it holds an adapter", "merge"),
        (["config.json", "pytorch_model.bin"], "it holds pickles: pytorch_model.bin", "allow: [pickle]"),
        (["consolidated.00.pth", "params.json"], "it holds pickles: consolidated.00.pth", "*.safetensors"),
        (["config.json", "model.onnx"], "weights in another form: model.onnx", "*.safetensors"),
        (["model_index.json", "unet/config.json", "unet/x.safetensors"], "models in folders: unet/config.json", "name"),
        (["README.md"], "1 files are listed: README.md", "right repository"),
    ],
)
def test_what_is_no_model_is_told_with_what_there_is(tmp_path: Path, files: list[str], told: str, fix: str) -> None:
    said = refused(put(tmp_path / "none", dict.fromkeys(files, "{}")))
    assert told in said
    assert fix in said


def test_pickles_alone_come_where_they_are_allowed(folder: Path) -> None:
    put(folder, {WEIGHTS: None, "pytorch_model.bin": "x", "training_args.bin": "x"})
    assert names(folder, allow=["pickle"]) == ["config.json", "pytorch_model.bin", "tokenizer.json"]


@pytest.mark.parametrize("name", ["weights.PT", "extra.npy", "x.joblib"])
def test_a_pickle_by_another_name_is_one(folder: Path, name: str) -> None:
    assert f"the weights file {name} is refused" in refused(put(folder, {name: "x"}), include=["*"])


def test_a_json_of_gigabytes_is_refused_unread(folder: Path) -> None:
    with (folder / "trace.json").open("wb") as sparse:
        sparse.truncate(3 << 30)
    assert "trace.json is too large" in refused(folder)
