"""Real vLLM, which compiles: its second start finds what the first one compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.e2e.service_under_test import BIN, MODEL, NAME, ROOT, prepare
from tests.parts.ports import free_port

pytestmark = pytest.mark.timeout(900)
HIT, MISS = "fx graph cache hit", "fx graph cache miss"
TWO_LAYERS = ["--load-format", "dummy", "--hf-overrides", '{"num_hidden_layers": 2}']
# vLLM 0.32 cannot load on a CPU what it compiles ahead of time, and compiles again.
VARIABLES = {"VLLM_USE_AOT_COMPILE": "0", "TORCH_LOGS": "torch._inductor.codecache"}


def test_a_second_start_of_real_vllm_compiles_nothing(tmp_path: Path) -> None:
    home, engine, file = tmp_path / "home", tmp_path / "engine", tmp_path / "spec.yaml"
    prepare(home)
    shutil.copytree(ROOT / "engines" / "vllm-cpu", engine)
    toml = (engine / "engine.toml").read_text()
    assert '"--enforce-eager"' in toml
    toml = toml.replace(', "--enforce-eager"', "").replace('timeout = "300s"', 'timeout = "600s"')
    (engine / "engine.toml").write_text(toml)
    spec = {
        "apiVersion": "model-delivery/v1",
        "name": NAME,
        "model": {"source": "local", "path": str(MODEL)},
        "serving": {"args": ["--max-model-len", "256", "--dtype", "bfloat16", *TWO_LAYERS], "env": VARIABLES},
        "target": {"kind": "process", "engine": str(engine), "port": free_port()},
        "gates": {"smoke": None, "throughput": None},
        "rollout": {"watch": "0s", "standby": "0s"},
    }
    file.write_text(yaml.safe_dump(spec))

    environ = {**os.environ, "MODEL_DELIVERY_HOME": str(home)}

    def deliver(*words: str) -> None:
        done = subprocess.run(
            [str(BIN / "deliver"), *words],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=700,
        )
        assert done.returncode == 0, done.stderr

    compiled = list[dict[str, float]]()
    try:
        for _ in range(2):
            deliver("up", str(file))
            libraries = (home / "deliveries" / NAME / "cache").rglob("*.so")
            compiled.append({library.name: library.stat().st_mtime for library in libraries})
            deliver("down", NAME)
    finally:
        deliver("down", NAME)
    first, second = (log.read_text() for log in sorted((home / "deliveries" / NAME / "logs").glob("*-[12].log")))
    assert compiled[0], first[-4000:]
    assert compiled[1] == compiled[0], second[-4000:]
    assert (MISS in first, HIT in first) == (True, False), first[-4000:]
    assert (MISS in second, HIT in second) == (False, True), second[-4000:]
