"""Engine logs as users of vLLM report them: the process that failed is asked, whatever
its lines begin with, and what only says that another one failed is never the answer.
"""

from __future__ import annotations

import pytest

from model_delivery.diagnosis.engine_log import diagnose

WORKER = "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause."
CORE = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
OLD = "RuntimeError: Engine process failed to start. See stack trace for the root cause."
TRACE = "Traceback (most recent call last):"
FRAME = '  File "/x/y.py", line 7, in z'
AT = "11-04 18:02:58 [multiproc_executor.py:597]"


def test_the_cause_is_the_workers_own_exception_and_never_what_only_followed_from_it() -> None:
    for core in (f"(EngineCore_DP0 pid=9) ERROR 11-04 18:03:00 [core.py:708] {WORKER}\n", ""):
        log = f"(Worker_TP1 pid=5) ERROR {AT} KeyError: 'rope'\n{core}(APIServer pid=1) {CORE}"
        found = diagnose(log, 1).finding
        assert (found.what, found.evidence) == ("the engine failed: KeyError: 'rope'", ("KeyError: 'rope'",))


@pytest.mark.parametrize(
    ("cause", "log"),
    [
        ("KeyError: 'rope'", f"\x1b[1;36m(EngineCore_DP0 pid=1)\x1b[0;0m ERROR 11-04 18:03:00 [core.py:7] KeyError: 'rope'\n{CORE}"),
        ("KeyError: 'rope'", f"2026-11-04T18:02:58.123456789Z stderr F (EngineCore pid=1) KeyError: 'rope'\n{OLD}"),
        ("KeyError: 'rope'", f"ERROR 07-23 19:34:55 [core.py:586] {TRACE}\nERROR 07-23 19:34:55 [core.py:586] KeyError: 'rope'\n{CORE}"),
        (
            "KeyError: 'rope'",
            (f"(EngineCore_DP0 pid=7) \x1b[36m(RayWorkerWrapper pid=71, ip=10.0.0.2)\x1b[0m ERROR 11-04 18:02:58 [worker_base.py:9] KeyError: 'rope'\n"
            "(EngineCore_DP0 pid=7) ray.exceptions.RayTaskError(KeyError): ray::RayWorkerWrapper.execute_method() (pid=71, ip=10.0.0.2)\n"
            f"{CORE}"),
        ),
        (
            "ValueError: odd",
            (f"[rank1]: {TRACE}\n[rank1]: {FRAME}\n[rank1]: ValueError: odd\n"
            "E1104 18:02:58.123000 140 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: 1) local_rank: 1 (pid: 151) of binary: /usr/bin/python3\n"
            f"{TRACE}\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n==========\nserve.py FAILED"),
        ),
        (
            "torch.multiprocessing.spawn.Odd: nothing fits",
            (f"{TRACE}\n{FRAME}\ntorch.multiprocessing.spawn.ProcessRaisedException: \n\n-- Process 1 terminated with the following error:\n"
            f"{TRACE}\n{FRAME}\ntorch.multiprocessing.spawn.Odd: nothing fits\n"),
        ),
        ("Unheard: of", f"(EngineCore pid=1) {TRACE}\n(EngineCore pid=1) {FRAME}\n(EngineCore pid=1) Unheard: of\n(APIServer pid=2) {CORE}"),
        ("StopIteration", f"(Worker pid=1) {TRACE}\n(Worker pid=1) {FRAME}\n(Worker pid=1) StopIteration\n(APIServer pid=2) {CORE}"),
        (
            "OSError: odd",
            (f"  + Exception Group {TRACE}\n  |   File x\n  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)\n"
            f"  +-+---------------- 1 ----------------\n    | {TRACE}\n    |   File x\n    | OSError: odd\n    +------------------------------------\n"),
        ),
        # chained: the first is the cause; the others and the other ranks followed from it
        (
            "ZeroDivisionError: first",
            (f"(Worker_TP0 pid=5) ERROR {AT} WorkerProc failed to start.\n(Worker_TP0 pid=5) ERROR {AT} ZeroDivisionError: first\n"
            f"(Worker_TP0 pid=5) ERROR {AT} During handling of the above exception, another exception occurred:\n"
            f"(Worker_TP0 pid=5) ERROR {AT} ValueError: second\n(Worker_TP1 pid=6) ERROR {AT} EOFError\n"
            f"(Worker_TP1 pid=6) ERROR {AT} torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error\n{CORE}"),
        ),
        # of a fallback the first is what was handled, unless it is said to be the cause
        *(
            ("RuntimeError: no backend", f"{TRACE}\n{FRAME}\n{first}\n\nDuring handling of the above exception, another exception occurred:\n\n{TRACE}\n{FRAME}\nRuntimeError: no backend\n")
            for first in ("StopIteration", "importlib.metadata.PackageNotFoundError: No package metadata was found for x", "KeyError: 'x'", "ModuleNotFoundError: No module named 'fast'")
        ),
        ("KeyError: 'x'", f"{TRACE}\n{FRAME}\nKeyError: 'x'\n\nThe above exception was the direct cause of the following exception:\n\n{TRACE}\n{FRAME}\nRuntimeError: second\n"),
        # what it survived before it failed is not what it failed of
        (
            "ValueError: the end",
            ("(EngineCore pid=8) KeyError: 'survived'\n(EngineCore pid=8) ERROR 05-07 09:00:00 [core.py:1] EngineCore failed to start.\n"
            f"(EngineCore pid=8) ERROR 05-07 09:00:00 [core.py:1] ValueError: the end\n{CORE}"),
        ),
        # nothing but an effect is there: it is quoted
        (CORE, f"(APIServer pid=1) {TRACE}\n(APIServer pid=1) {CORE}"),
    ],
)  # fmt: skip
def test_an_exception_without_a_remedy_is_quoted_whatever_it_is_called_and_whoever_wraps_it(
    cause: str, log: str
) -> None:
    found = diagnose(log, 1).finding
    assert (found.code, found.what) == ("engine.failed", f"the engine failed: {cause}")
    assert cause in found.evidence


@pytest.mark.parametrize(
    ("said", "code", "fix"),
    [
        ("RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)", "nccl", "NCCL_DEBUG: INFO"),
        ("RuntimeError: Error raised in subprocess:\nKeyError: 'getpwuid(): uid not found: 1000'", "no-user", "USER"),
        ("  Value error, torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16] [type=value_error]", "dtype", "--dtype float16"),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has compute capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI, for example: --dtype=half.", "dtype", "--dtype half"),
        ("  Value error, The model type 'gemma2' does not support float16. Reason: Numerical instability. Please use bfloat16 or float32 instead.", "dtype", "--dtype bfloat16"),
        ("torch._inductor.exc.InductorError: PermissionError: [Errno 13] Permission denied: '/.triton'", "not-writable", "TRITON_CACHE_DIR"),
        ("OSError: [Errno 30] Read-only file system: '/root/.cache'", "not-writable", "HOME"),
        ("ValueError: VLLM_PORT 'tcp://10.96.1.2:8000' appears to be a URI.", "service-links", "enableServiceLinks"),
        ("x.py:180: UserWarning: CUDA initialization: The NVIDIA driver on your system is too old (found version 12040).\nRuntimeError: Failed to infer device type", "old-driver", "update the driver"),
        ("RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on non supported HW", "driver", "older CUDA"),
        ("ValueError: Tokenizer class TokenizersBackend does not exist or is not currently imported.", "unknown-tokenizer", "newer engine"),
        ("Exception: data did not match any variant of untagged enum ModelWrapper at line 9 column 3", "unknown-tokenizer", "newer engine"),
        ("Exception: expected value at line 1 column 1", "broken-json", "git-LFS pointer"),
        ("OSError: [Errno 28] No space left on device: '/home/x/.cache/vllm'", "disk-full", "VLLM_CACHE_ROOT"),
        ("torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27\nLast error:\nError while creating shared memory segment /dev/shm/nccl-H (size 33030528), error: No space left on device (28)", "shared-memory", "more room"),
        ('KeyError: "invalid tool call parser: qwen3coder (chose from { hermes,qwen3_coder })"', "unknown-parser", "did you mean qwen3_coder?"),
        ("KeyError: \"Reasoning parser 'deepseek-r1' not found. Available parsers: deepseek_r1, qwen3\"", "unknown-parser", "did you mean deepseek_r1?"),
        ("ImportError: Please install bitsandbytes>=0.46.1 via `pip install bitsandbytes>=0.46.1`", "missing-package", "an image that has it"),
        ("ModuleNotFoundError: No module named 'flash_attn'", "missing-package", "an image that has it"),
        ("ImportError: libcudart.so.12: cannot open shared object file: No such file or directory", "missing-library", "an image that has it"),
        ("ImportError: /x/flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2", "missing-library", "as it was built"),
        ("PermissionError: [Errno 13] Permission denied: '/dev/nvidia0'", "no-right", "use /dev/nvidia0"),
        ("ValueError: No supported config format found in /m", "no-configuration", "config.json"),
        ("OSError: It looks like the config file at '/m/config.json' is not a valid JSON file.", "broken-json", "first line"),
        ("ValueError: Couldn't instantiate the backend tokenizer from one of: \n(1) a file\nYou need to have sentencepiece or tiktoken installed", "no-tokenizer", "sentencepiece"),
        ("RuntimeError: 512 MiB required, 300 MiB free in /dev/shm", "failed", "read its log"),
        ("RuntimeError: /dev/shm: 512 MiB required, 300 MiB free", "shared-memory", "of medium Memory"),
        ("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", "no-compiler", "nvcc"),
        ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", "no-compiler", "gcc"),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "no-cache-memory", "--gpu-memory-utilization"),
        ("ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be stored in KV cache (54896).", "cache-too-small", "--max-model-len 54896 or less, raise --gpu-memory-utilization"),
        ("torch.AcceleratorError: CUDA error: out of memory", "gpu-out-of-memory", "--gpu-memory-utilization"),
        ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", "out-of-memory", "limits.memory"),
        ("RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests.", "gpu-out-of-memory", "lower --max-num-seqs"),
        ("  Value error, The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. Current capability: 75.", "gpu-too-old", "another quantization"),
        ("ValueError: The output_size of gate's and up's weight = 192 is not divisible by weight quantization block_n = 128.", "heads-indivisible", "--tensor-parallel-size"),
        ("torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use", "inner-port-taken", "ss -ltnp"),
        ("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:53147')", "inner-port-taken", "ss -ltnp"),
        ("[Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use", "port-taken", "run again"),
        ("  Value error, The repository /m contains custom code. Please pass the argument `trust_remote_code=True` to allow it.", "remote-code", "--trust-remote-code"),
        ("AssertionError: Torch not compiled with CUDA enabled", "wrong-build", "built for GPUs"),
        ("OSError: [Errno 24] Too many open files", "limit", "ulimit -n"),
        ("TimeoutError: Timed out waiting for engine core processes to start.", "slow-start", "VLLM_ENGINE_READY_TIMEOUT_S"),
        ("vllm: error: unrecognized arguments: --shutdown-timeout 30", "too-old", "vLLM 0.18 or newer"),
    ],
)  # fmt: skip
def test_a_reported_failure_has_a_name_and_a_remedy_made_of_what_the_text_says(said: str, code: str, fix: str) -> None:
    for who in ("", "(APIServer pid=1) ", "\x1b[0;36m(Worker_TP0 pid=1)\x1b[0m ERROR 11-04 18:02:58 [x.py:1] "):
        found = diagnose(
            "".join(f"{who}{line}\n" for line in said.splitlines()) + f"(APIServer pid=1) {CORE}", 1
        ).finding
        assert found.code == f"engine.{code}"
        assert fix in found.fix
        assert found.evidence


@pytest.mark.parametrize(
    "said",
    [
        "PermissionError: [Errno 13] Permission denied",
        "ModuleNotFoundError: No module named 'transformers_modules.v1'",
        "ModuleNotFoundError: No module named 'vllm._C'",
        "ModuleNotFoundError: No module named '_lzma'",
        "RuntimeError: Please install the latest driver",
        "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
        "NotImplementedError: FlashAttention does not support kv_cache dtype fp8_e5m2 on this device",
        "ValueError: the KV cache does not support bfloat16 here",
        "RuntimeError: workspace allocation failed: 512 MiB required, 300 MiB free on GPU 0",
        "ValueError: The argument is to be used along with --trust-remote-code only",
        "ValueError: `trust_remote_code=True` and a GGUF file exclude each other",
        "OSError: [Errno 12] Cannot allocate memory: mlock",
        "FileNotFoundError: [Errno 2] No such file or directory: '/models/my-gcc'",
        "RuntimeError: call to bind failed: Cannot assign requested address",
        "RuntimeError: pthread_create failed: Operation not permitted",
    ],
)
def test_where_the_text_says_no_remedy_it_is_quoted_and_none_is_made_up(said: str) -> None:
    found = diagnose(f"{TRACE}\n{FRAME}\n{said}\n", 1).finding
    assert (found.code, found.what) == ("engine.failed", f"the engine failed: {said}")
    assert found.fix == "read its log above that line"


DRIVER = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)"
TOO_LONG = "ValueError: User-specified max_model_len (9999) is greater than the derived max_model_len (max_position_embeddings=2048 or x)"


@pytest.mark.parametrize("warning", [DRIVER, "CUDA initialization: Found no NVIDIA driver on your system.", "/dev/shm/x: No space left on device"])  # fmt: skip  # noqa: S108
@pytest.mark.parametrize(
    "before", ["WARNING 11-27 10:00:00 [cuda.py:1] ", "/x/torch/cuda/__init__.py:129: UserWarning: "]
)
@pytest.mark.parametrize(
    ("last", "exit_code", "code"),
    [
        ("vllm serve: error: unrecognized arguments: --max-modl-len", 2, "unknown-argument"),
        (f"{TRACE}\n{FRAME}\nImportError: survived\nvllm serve: error: argument --x: no", 2, "refused-argument"),
        (TOO_LONG, 1, "max-model-len"),
        ("KeyError: 'rope'", 1, "failed"),
        ("", -9, "killed"),
    ],
)
def test_a_warning_is_not_told_for_a_failure_of_another_cause(
    warning: str, before: str, last: str, exit_code: int, code: str
) -> None:
    assert diagnose(f"{before}{warning}\n{last}", exit_code).finding.code == f"engine.{code}"


def test_a_warning_is_told_where_it_is_why_it_failed() -> None:
    log = f"WARNING 11-27 10:00:00 [cuda.py:1] {DRIVER}\n{TRACE}\n{FRAME}\nRuntimeError: No CUDA GPUs are available"
    assert diagnose(log, 1).finding.code == "engine.old-driver"


def test_a_usage_that_names_every_argument_is_not_what_failed() -> None:
    usage = "usage: api_server.py [-h]\n                     [--trust-remote-code | --no-trust-remote-code]\n"
    said = f"{usage}                     [model_tag]\napi_server.py: error: unrecognized arguments: --no-such-flag\n"
    finding = diagnose(said, 2).finding
    assert finding.code == "engine.unknown-argument"
    assert "--no-such-flag" in finding.what


def test_an_input_that_pydantic_repeats_is_not_what_failed() -> None:
    log = "  Value error, odd [type=value_error, input_value=ArgsKwargs((), {'--trust-remote-code': True, 'x': 'CUDA out of memory'})]"
    assert diagnose(log, 1).finding.what == "the engine failed: odd"


def test_an_exception_that_says_nothing_is_shown_with_where_it_was_raised() -> None:
    assert diagnose(f"{TRACE}\n{FRAME}\n    assert fits\nAssertionError\n", 1).finding.evidence[-1] == "assert fits"


@pytest.mark.parametrize(
    ("log", "exit_code", "code", "what"),
    [
        (CORE.replace("{}", "{'EngineCore': -4}"), 1, "illegal-instruction", "one of its processes met an instruction"),
        (CORE.replace("{}", "{'EngineCore_DP0': -11}"), 1, "crashed", "one of its processes crashed in native code (SIGSEGV)"),
        (CORE.replace("{}", "{'EngineCore_DP0': 1, 'EngineCore_DP1': -15}"), 1, "failed", "Engine core initialization failed"),
        ("failed (exitcode: -9) local_rank: 0 (pid: 151) of binary: python3\nChildFailedError: ", 1, "process-killed", "was killed"),
        ("  traceback : Signal 7 (SIGBUS) received by PID 151", 1, "bus-error", "(SIGBUS)"),
        ("torch.multiprocessing.spawn.ProcessExitedException: process 0 terminated with signal SIGABRT", 1, "crashed", "(SIGABRT)"),
        ("Fatal Python error: Illegal instruction", 1, "illegal-instruction", "one of its processes"),
        ("!!!!!!! Segfault encountered !!!!!!!\nSegmentation fault (core dumped)", 1, "crashed", "(SIGSEGV)"),
        ("INFO 11-27 03:50:22 [x.py:1] up", -4, "illegal-instruction", "it met an instruction"),
        ("INFO 11-27 03:50:22 [x.py:1] up", 132, "illegal-instruction", "it met an instruction"),
        ("INFO 11-27 03:50:22 [x.py:1] up", -11, "crashed", "it crashed in native code (SIGSEGV)"),
        ("INFO 11-27 03:50:22 [x.py:1] up", 137, "killed", "the engine was killed"),
        ("INFO 11-27 03:50:22 [x.py:1] up", 143, "stopped", "was told to stop"),
        ("INFO 11-27 03:50:22 [x.py:1] up", -40, "crashed", "(signal 40)"),
        ("INFO 11-27 03:50:22 [x.py:1] up", 255, "ended", "the engine ended"),
        # Ray lists what may have been: none of it is known
        ("ray.exceptions.ActorDiedError: died. There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer. (3) crashed due to SIGSEGV", 1, "failed", "ActorDiedError"),
        ("terminate called after throwing an instance of 'c10::Error'\n  what():  CUDA error: odd", 134, "failed", "what():  CUDA error: odd"),
    ],
)  # fmt: skip
def test_an_end_by_a_signal_is_told_by_its_name(log: str, exit_code: int, code: str, what: str) -> None:
    found = diagnose(log, exit_code).finding
    assert found.code == f"engine.{code}"
    assert what in found.what
