"""The tables: by which words an engine's fault is known, what they mean, what to do. Seen
in real logs of vLLM 0.26 (GPU) and 0.32 (CPU), and in what users of 0.8 to 0.11 report.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sign:
    """A row of a table. ``what`` and ``fix`` may use the groups of ``pattern`` (``\\1``);
    of a group ``said`` the nearest word of the group ``known`` is proposed.

    A remedy uses what the text says; where that says nothing, it proposes nothing.
    ``retryable``: starting again, as it stands, may help. ``explains``: the failures that
    these words, in a warning, are the reason of.
    """

    code: str
    pattern: str
    what: str
    fix: str
    retryable: bool = False
    explains: str = ""


ARGUMENTS = (
    Sign(
        "engine.too-old",
        r"unrecognized arguments:.*--shutdown-timeout",
        "this vLLM is older than 0.18, the oldest that can be delivered: it does not know --shutdown-timeout",
        "use vLLM 0.18 or newer in target.image (on a host: in the engine's uv.lock)",
    ),
    Sign(
        "engine.unknown-argument",
        r"unrecognized arguments: (.*)",
        r"it does not know the argument \1",
        "correct serving.args: misspelt, or not in this version",
    ),
    Sign(
        "engine.refused-argument",
        r"error: argument (\S+): (.*)",
        r"it refuses the argument \1: \2",
        "correct serving.args",
    ),
    Sign(
        "engine.unknown-parser",
        r"invalid (tool call|reasoning) parser: (?P<said>\S+) \(chose from \{ *(?P<known>[^}]*?) *\}",
        r"it has no \1 parser \2",
        r"correct serving.args, or use a newer engine: this one has \3",
    ),
    Sign(
        "engine.unknown-parser",
        r"([Tt]ool|[Rr]easoning) parser '?(?P<said>[\w.-]+)'? (?:is )?not found(?:.*?: *(?P<known>.*))?",
        r"it has no \1 parser \2",
        "correct serving.args, or use a newer engine",
    ),
    Sign(
        "engine.max-model-len",
        r"max_model_len \((\d+)\) is greater than the derived max_model_len "
        r"\((?:max_position_embeddings|model_max_length)=(\d+)",
        r"--max-model-len \1 is above the model's \2",
        r"use --max-model-len \2, or leave it out",
    ),
    Sign(
        "engine.max-model-len",
        r"is greater than the derived max_model_len",
        "--max-model-len is above what the model can",
        "lower it, or leave it out",
    ),
    Sign(
        "engine.heads-indivisible",
        r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)",
        r"--tensor-parallel-size \2 does not divide the model's \1 heads",
        "choose one that does",
    ),
    Sign(
        "engine.heads-indivisible",
        r"weight = (\d+) is not divisible by weight quantization (block_\w) = (\d+)",
        r"a GPU's share of the weights (\1) is no multiple of the quantization's \2 (\3)",
        "lower --tensor-parallel-size, or use --enable-expert-parallel where the model has experts",
    ),
    Sign(
        "engine.no-chat-template",
        r"chat template .* appears path-like, but doesn't exist",
        "the chat template does not exist",
        "use serving.chat_template, not an argument",
    ),
    Sign(
        "engine.dtype",
        r"(?:torch\.)?(\w+) is not supported for quantization method '?([\w-]+)'?\. "
        r"Supported dtypes: \[(?:torch\.)?(\w+)",
        r"the quantization \2 does not run in \1",
        r"set --dtype \3",
    ),
    Sign(
        "engine.dtype",
        r"(?i)(b?float\w+) is only supported on GPUs with compute capability of at least (\d+\.\d+)\. "
        r"Your (.*?) GPU has compute capability (\d+\.\d+).*--dtype[= ](\w+)",
        r"\1 needs a GPU of compute capability \2, the \3 has \4",
        r"set --dtype \5, or use a newer GPU",
    ),
    Sign(
        "engine.dtype",
        r"does not support (b?float\d+)\. Reason: (.*?)\.? (?:Please use|Use) (b?float\d+)",
        r"the model does not run in \1: \2",
        r"set --dtype \3",
    ),
    Sign(
        "engine.dtype",
        r"(?i)^(?!.*(?:kv|cache|scale))(?:[\w.]+: )?(.*does not support (?:torch\.)?(b?float(?:16|32))\b.*)",
        r"it refuses the dtype: \1",
        r"set another --dtype than \2",
    ),
    Sign(
        "engine.remote-code",
        r"contains custom code|requires you to execute the .* in that repo|[Pp]ass.*trust_remote_code=True.* to allow",
        "the model wants to run code of its own",
        "use a model that needs none; or, after you have read that code, model.allow: [remote-code] and "
        "--trust-remote-code in serving.args",
    ),
)
MODEL = (
    Sign(
        "engine.not-safetensors",
        r"parse_safetensors_file_metadata|header too large|HeaderTooLarge|InvalidHeader",
        "a weights file is not safetensors",
        "it may be a git-LFS pointer (a small text file): fetch the real file; `deliver verify` finds it",
    ),
    Sign(
        "engine.safetensors-cut",
        r"incomplete metadata, file not fully covered|MetadataIncompleteBuffer",
        "a safetensors file is cut short",
        "fetch the model again; `deliver verify` finds the file",
    ),
    Sign(
        "engine.broken-json",
        r"file at ('[^']*') is not a valid JSON file",
        r"the file \1 is not JSON",
        "it may be a git-LFS pointer or a web page: look at its first line, then fetch the real file",
    ),
    Sign(
        "engine.broken-json",
        r"^Exception: expected value at line 1 column 1",  # as only `tokenizers` says it
        "the model's tokenizer.json is not JSON",
        "it may be a git-LFS pointer or a web page: look at its first line, then fetch the real file",
    ),
    Sign(
        "engine.unknown-tokenizer",
        r"did not match any variant of untagged enum",
        "it does not know the form of the model's tokenizer.json",
        "use a newer engine: the file was written by newer `tokenizers`",
    ),
    Sign(
        "engine.unknown-tokenizer",
        r"Tokenizer class (\S+) does not exist or is not currently imported",
        r"it does not know the model's tokenizer class \1",
        r"use a newer engine, or name a class that it knows as tokenizer_class in tokenizer_config.json",
    ),
    Sign(
        "engine.no-weights",
        r"Cannot find any model weights",
        "the model's folder has no weights",
        "*.safetensors must be among model.include, and not in model.exclude",
    ),
    Sign(
        "engine.no-tokenizer",
        r"Couldn't instantiate the backend tokenizer",
        "the model's tokenizer is missing or incomplete, or a package that reads it",
        "tokenizer* and *.model must be among model.include; if they are there, use an image that has sentencepiece "
        "and tiktoken (on a host: add them to the engine's uv.lock)",
    ),
    Sign(
        "engine.no-tokenizer",
        r"Can't load tokenizer",
        "the model's tokenizer is missing or incomplete",
        "tokenizer* and *.model must be among model.include",
    ),
    Sign(
        "engine.no-configuration",
        r"Invalid repository ID or local directory|contains a recognized configuration file"
        r"|[Nn]o supported config format found",
        "the model has no configuration",
        "config.json must be among model.include",
    ),
    Sign(
        "engine.looked-on-a-hub",
        r"Cannot find an appropriate cached snapshot|couldn't connect to .* to load|GatedRepoError"
        r"|RepositoryNotFoundError|Cannot access gated repo",
        "it looked for a model on a hub",
        "an argument names a repository: give it a folder, or fetch it with the model",
    ),
    Sign(
        "engine.no-model",
        r"HFValidationError: Repo id must be(?:.*?'namespace/repo_name': ('[^']*'))?",
        r"a folder does not exist: \1",
        "if it is the model's, fetch the model again; else correct the argument that names it",
    ),
    Sign(
        "engine.unknown-architecture",
        r"does not recognize this architecture|[Aa]rchitectures \[.*\] (?:are|is) not supported",
        "it does not know the model's architecture",
        "use a newer engine, or another model",
    ),
)
