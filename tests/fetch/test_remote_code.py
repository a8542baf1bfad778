"""Code that a model brings: refused, or allowed and told to the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_delivery.base import Trouble
from model_delivery.spec import parse_spec
from tests.fetch.test_whole_models import folder, names, put, refused, resolved

__all__ = ["folder"]
CODE = {"auto_map": {"AutoConfig": "configuration_my.My", "AutoModelForCausalLM": "modeling_my.My"}}
NATIVE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MINE = {"architectures": ["MyForCausalLM"], "model_type": "my", **CODE}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("config.json", MINE),
        ("config.json", MINE | {"architectures": ["LlamaForCausalLM"]}),
        ("config.json", MINE | {"model_type": "llama"}),
        ("config.json", {"auto_map": "x.Y"}),
        ("tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil/repo--processing.Evil"}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "e.E"}, "image_processor_type": "E"}),
        ("video_preprocessor_config.json", {"auto_map": ["e.E"]}),
        ("config.json", NATIVE | {"text_config": {"auto_map": {"AutoConfig": "evil.Evil"}}}),
        ("config.json", NATIVE | {"a": [{"b": {"vision_config": {"model_type": "my", "auto_map": "evil.Evil"}}}]}),
        ("config.json", NATIVE | {"text_config": NATIVE | {"architectures": ["My"], "auto_map": "evil.Evil"}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "evil.Evil"}}}),
        ("generation_config.json", {"a": {"auto_map": {"x": None}}}),
    ],
)
def test_code_of_the_models_own_is_refused_wherever_it_is_named(folder: Path, name: str, config: object) -> None:
    told = refused(put(folder, {name: json.dumps(config), "evil.py": "import os"}), include=["*"])
    assert f"the model wants to run code of its own: {name} has auto_map [source.remote-code]" in told


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("config.json", {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", **CODE}),
        ("config.json", {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **CODE}),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": ["t.T", None]}}),
        ("config.json", {"model_type": "llama", "auto_map": {}}),
        ("config.json", NATIVE | {"language_config": NATIVE | CODE, "vision_config": {"model_type": "llama", **CODE}}),
    ],
)
def test_what_vllm_serves_natively_needs_no_allowance_and_brings_no_code(
    folder: Path, name: str, config: object
) -> None:
    put(folder, {name: json.dumps(config), "modeling_my.py": "import os"})
    assert "modeling_my.py" not in names(folder, include=["*"])


def test_allowed_code_comes_with_the_model(folder: Path) -> None:
    put(folder, {"config.json": json.dumps(MINE), "configuration_my.py": "", "modeling_my.py": "x"})
    assert {"configuration_my.py", "modeling_my.py"} <= set(names(folder, allow=["remote-code"]))


@pytest.mark.parametrize("named", ["gone.My", "other/repo--modeling_my.My"])
def test_allowed_code_that_is_elsewhere_is_told(folder: Path, named: str) -> None:
    put(folder, {"config.json": json.dumps({"auto_map": {"AutoModel": named}}), "modeling_my.py": "x"})
    assert "is not in the repository" in refused(folder, allow=["remote-code"])


def test_the_engine_is_told_to_trust_the_code_that_the_spec_allows(folder: Path) -> None:
    asked = {"apiVersion": "model-delivery/v1", "name": "m", "target": {"kind": "process", "engine": "vllm"}}
    model = {"source": "local", "path": str(folder), "allow": ["remote-code"]}
    spec = parse_spec({**asked, "model": model, "serving": {"args": ["--max-model-len=9"]}})
    assert spec.served(resolved(folder)).serving.args == ("--trust-remote-code", "--max-model-len=9")
    own = parse_spec({**asked, "model": model, "serving": {"args": ["--trust-remote-code"]}})
    assert own.served(resolved(folder)).serving.args == ("--trust-remote-code",)
    with pytest.raises(Trouble, match=r"serving\.args: --trust-remote-code .* model\.allow: \[remote-code\]"):
        parse_spec({**asked, "model": {**model, "allow": []}, "serving": {"args": ["--trust-remote-code"]}})


# what is there instead
