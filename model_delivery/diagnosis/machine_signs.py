"""The tables of what a machine, its GPUs and the engine's environment do to an engine."""

from __future__ import annotations

from signal import SIGBUS, SIGILL, SIGINT, SIGKILL, SIGTERM

from model_delivery.diagnosis.engine_signs import Sign

WRONG_PLATFORM = Sign(
    "image.wrong-platform",
    r"exec format error",
    "the image is not made for the node's processor",
    "name an image of the node's architecture, or select other nodes in serving.pod.node_selector",
)
LESS = "--gpu-memory-utilization"
NO_CUDA = r"infer device type|No CUDA GPUs|no CUDA-capable|cudaGetDeviceCount|0 devices|libcuda\.so|NVML"
# Looked for in warnings too, where they explain what failed: that alone would mislead.
TELLING = (
    Sign(
        "engine.old-driver",
        r"driver on your system is too old(?: \(found version (\d+)\))?|driver version is insufficient",
        "the machine's NVIDIA driver is too old for this engine",
        "update the driver, or use an engine that was built for an older CUDA",
        explains=NO_CUDA,
    ),
    Sign(
        "engine.driver",
        r"Error 804: ([\w /]+)",
        r"the machine's NVIDIA driver does not serve CUDA: \1",
        "update the driver, or use an image for an older CUDA: the image's is newer than the driver allows on this GPU",
        explains=NO_CUDA,
    ),
    Sign(
        "engine.driver",
        r"Error 80[23]: ([\w /]+)|(Driver/library version mismatch|Driver Not Loaded|Found no NVIDIA driver.*)",
        r"the machine's NVIDIA driver does not serve CUDA: \1\2",
        "update or restart the driver until nvidia-smi works there",
        explains=NO_CUDA,
    ),
    Sign(
        "engine.shared-memory",
        r"/dev/shm/.*No space left on device|No space left on device.*/dev/shm/",  # noqa: S108
        "shared memory is too small",
        "give /dev/shm more room: serving.pod.shm in a cluster (a container: --shm-size or --ipc=host)",
        explains=r"NCCL|[Ss]hared memory|No space left",
    ),
    Sign(
        "engine.no-user",
        r"getpwuid\(\): uid not found: (\d+)",
        r"it runs as user \1, who has no name there",
        "set USER in serving.env to any name (and HOME to a folder that it may write)",
        explains=r"[Uu]sername|getuser|in subprocess",
    ),
    Sign(
        "engine.service-links",
        r"(VLLM_\w+) '?(\S*?)'? appears to be a URI",
        r"a Kubernetes Service called vllm sets \1 to \2",
        "set enableServiceLinks: false in the pod, or rename that Service",
    ),
)
MEMORY = (
    Sign(
        "engine.cache-too-small",
        r"estimated maximum model length is (\d+)",
        "the KV cache cannot hold one request of full length",
        rf"use --max-model-len \1 or less, raise {LESS}, or give it more memory",
    ),
    Sign(
        "engine.cache-too-small",
        r"max seq len \(\d+\) is larger than the maximum number of tokens that can be stored in KV cache \((\d+)\)",
        r"the KV cache holds \1 tokens, less than one request of full length",
        rf"use --max-model-len \1 or less, raise {LESS}, or give it more memory",
    ),
    Sign(
        "engine.no-cache-memory",
        r"No available memory for the cache blocks",
        "no memory is left for the KV cache",
        f"raise {LESS}, use a smaller model or dtype, or more memory",
    ),
    Sign(
        "engine.no-cache-memory",
        r"Available memory on node .* less than requested memory for kv",
        "the machine has too little free memory for the KV cache",
        "lower VLLM_CPU_KVCACHE_SPACE (GiB) in serving.env, or end what holds the memory",
    ),
    Sign(
        "engine.gpu-memory-held",
        r"Free memory on device .* less than desired GPU memory utilization",
        "another process holds the GPU's memory",
        f"end that process, or give each a share with {LESS}",
    ),
    Sign(
        "engine.gpu-shared",
        r"release GPU memory while vLLM is profiling",
        "another engine stopped on its GPU meanwhile",
        "run again",
        retryable=True,
    ),
    Sign(
        "engine.gpu-out-of-memory",
        r"out of memory occurred when warming up",
        "the GPU ran out of memory while it warmed up",
        f"lower --max-num-seqs or {LESS}",
    ),
    Sign(
        "engine.gpu-out-of-memory",
        r"(?i)(?:CUDA|HIP)(?: error:?)?[: ]+out of memory|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED"
        r"|torch(?:\.cuda)?\.OutOfMemoryError|RayTaskError\(OutOfMemoryError\)",
        "the GPU ran out of memory",
        f"see with nvidia-smi whether another process holds it; else lower {LESS}, --max-model-len or --max-num-seqs, "
        "or use a smaller model or dtype",
    ),
    Sign(
        "engine.out-of-memory",
        r"^MemoryError|^(?!.*mlock).*Cannot allocate memory|DefaultCPUAllocator: (?:can't|not enough)|std::bad_alloc"
        r"|due to the node running low on memory",
        "the machine ran out of memory",
        "free memory, ask for more in serving.resources.limits.memory, or use a smaller model",
    ),
    Sign(
        "engine.shared-memory",
        r"(?i)(?:shared memory|/dev/shm).*?(\d+ MiB) required, (\d+ MiB) free",
        r"shared memory is too small: it needs \1, \2 are free",
        "give /dev/shm more room (a volume of medium Memory)",
    ),
)
GPU = (
    Sign(
        "engine.no-gpu",
        r"out of bounds for 0 devices|No CUDA GPUs are available|Failed to infer device type|no CUDA-capable device"
        r"|libcuda\.so\.1: cannot open",
        "it sees no GPU",
        "ask for one in serving.resources.limits (nvidia.com/gpu), and check that nvidia-smi shows it",
    ),
    Sign(
        "engine.too-few-gpus",
        r"World size \(\d+\) is larger than|set '--nnodes' appropriately|exceeds the total number of available GPUs"
        r"|invalid device ordinal|Duplicate GPU detected",
        "it was told to use more GPUs than there are",
        "lower --tensor-parallel-size, or raise nvidia.com/gpu",
    ),
    Sign(
        "engine.gpu-too-old",
        r"quantization method '?([\w-]+)'? is not supported for the current GPU\. "
        r"Minimum capability: (\d+)\. Current capability: (\d+)",
        r"the quantization \1 needs a GPU of compute capability \2, this one has \3",
        "use a newer GPU, or the model in another quantization",
    ),
    Sign(
        "engine.gpu-too-old",
        r"no kernel image is available for execution on the device|CUDA capability sm_\w+ is not compatible",
        "it was not built for this GPU",
        "use an image that was built for it, or another GPU",
    ),
    Sign(
        "engine.gpu-broken",
        r"(uncorrectable ECC error|GPU has fallen off the bus|GPU is lost)",
        r"a GPU is broken: \1",
        "take the node out of use; `nvidia-smi -q` and dmesg (Xid) say more",
    ),
    Sign(
        "engine.wrong-build",
        r"Torch not compiled with CUDA enabled",
        "its torch was built without CUDA",
        "use an image (on a host: an engine) that was built for GPUs",
    ),
    Sign(
        "engine.nccl",
        r"NCCL error(?: in)?: (?:.*?, )?(un\w+ \w+ error|[^(]+?)(?: \(run with (NCCL_DEBUG=\w+).*|, NCCL version.*|$)",
        r"its GPUs cannot talk to each other (NCCL: \1)",
        "set NCCL_DEBUG: INFO in serving.env, run again, and read its log for the lines of NCCL",
    ),
)
SYSTEM = (
    Sign(
        "engine.inner-port-taken",
        r"(?i)port: (\d+).*EADDRINUSE|address (?:already )?in use \(addr='\w+://[^']*:(\d+)'\)|"
        r"EADDRINUSE.*?:(\d+)|call to bind failed.*in use",
        r"a port (\1\2\3) over which its processes talk is taken",
        "see what listens on it (`ss -ltnp`), end that, or run again",
        retryable=True,
    ),
    Sign(
        "engine.port-taken",
        r"[Aa]ddress already in use",
        "its port is taken",
        "run again: on a host it will be given another port",
        retryable=True,
    ),
    Sign(
        "engine.disk-full",
        r"(?:No space left on device|Disk quota exceeded)(: '[^']*')?",
        r"a disk is full\1",
        "make room there, or name a folder with room in serving.env (VLLM_CACHE_ROOT, TRITON_CACHE_DIR, TMPDIR)",
    ),
    Sign(
        "engine.not-writable",
        r"(?:Permission denied|Read-only file system): '((?:[^']*/)?(?:\.(?:cache|triton|config|local|nv|flashinfer)"
        r"|torchinductor_)[^']*|/\.[^']*)'",
        r"it may not write where it caches: \1",
        "name a folder that it may write in serving.env (HOME, VLLM_CACHE_ROOT, TRITON_CACHE_DIR)",
    ),
    Sign(
        "engine.no-right",
        r"Permission denied: '([^']+)'",
        r"its user has no right to \1",
        r"let the user that it runs as use \1",
    ),
    Sign(
        "engine.no-compiler",
        r"(?i)(could not find nvcc|CUDA_HOME (?:environment variable )?is not set|failed to find C compiler"
        r"|nvcc: (?:command )?not found|No such file or directory: '(?:[^']*/)?(?:nvcc|gcc|ninja)')",
        r"it wants to compile, and has no compiler: \1",
        "use an image that has CUDA's toolkit (nvcc) and gcc",
    ),
    Sign(
        "engine.missing-package",
        # a part of a package, or of the model's own code, is no package
        r"ImportError: .*?[Pp]lease install (?!(?:the|an?|it|them|newer|latest)\b)([\w.-]+)"
        r"|No module named '(?!_|transformers_modules|(?:configuration|modeling|tokenization|processing)_)([\w-]+)'"
        r"|requires the (\w+) (?:library|package) but",
        r"it lacks the Python package \1\2\3",
        "use an image that has it (on a host: add it to the engine's uv.lock)",
    ),
    Sign(
        "engine.missing-library",
        r"(lib[\w.+-]+): cannot open shared object file",
        r"it lacks the library \1",
        "use an image that has it (on a host: install what has it)",
    ),
    Sign(
        "engine.missing-library",
        r"(undefined symbol: \w+)",
        r"a part of it does not fit the rest: \1",
        "use the image as it was built (on a host: packages that were built for one another)",
    ),
    Sign(
        "engine.limit",
        r"(Too many open files|can't start new thread|pthread_create.*failed(?!.*permitted))",
        r"a limit of the system was reached: \1",
        "raise it: open files (ulimit -n), or processes (pids) of the container",
    ),
)
SIGNS = (*MEMORY, *GPU, *SYSTEM, WRONG_PLATFORM)
# Looked for when no real exception is there: these say that, not why.
LAST = (
    Sign(
        "engine.slow-start",
        r"waiting for engine core|VLLM_ENGINE_READY_TIMEOUT_S",
        "its core was not ready in vLLM's own time",
        "raise VLLM_ENGINE_READY_TIMEOUT_S (seconds) in serving.env, and serving.startup_timeout with it",
    ),
    Sign(
        "engine.not-inspected",
        r"[Aa]rchitectures \[.*\] failed",
        "it could not look at the model's architecture",
        "read its log above that line",
    ),
    Sign(
        "engine.core-died",
        r"Engine\w*DeadError|[Bb]ackground loop|Engine loop|Worker proc \S+ died unexpectedly",
        "its core died while it served",
        "read its log above the first line shown, then run again",
        retryable=True,
    ),
)
MEANS = "look at dmesg; if it says out of memory, give it more, else run again"
CRASHED = Sign(
    "engine.crashed",
    r"",
    "crashed in native code",
    "read its log above; dmesg says more (Xid: the GPU's driver)",
)
BY_SIGNAL: dict[int, Sign] = {
    SIGKILL: Sign(
        "engine.process-killed", r"", "was killed, as the kernel does when memory runs out", MEANS, retryable=True
    ),
    SIGILL: Sign(
        "engine.illegal-instruction",
        r"",
        "met an instruction that this CPU has not",
        "use an image that was built for this CPU, or a newer machine (lscpu: vLLM on the CPU wants AVX-512 or AVX2)",
    ),
    SIGBUS: Sign(
        "engine.bus-error",
        r"",
        "met memory that is not there, as with a full /dev/shm or a file that was cut meanwhile",
        "give /dev/shm more room (serving.pod.shm); `deliver verify` finds a cut file",
    ),
    **dict.fromkeys(
        (SIGTERM, SIGINT),
        Sign("engine.stopped", r"", "was told to stop", "find out who stopped it, then run again", retryable=True),
    ),
}
