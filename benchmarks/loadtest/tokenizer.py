"""A small word tokenizer for the peers that want one: ``tokenizer.py OUTDIR WORDS_FILE``,
run with an environment that has transformers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

out, words = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8").split()
entries = ["<s>", "</s>", "<unk>", *dict.fromkeys([*words, *(f"w{n}" for n in range(2000))])]
inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(entries)}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
outer = PreTrainedTokenizerFast(
    tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
)
outer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
outer.save_pretrained(out)
(out / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(entries)}), encoding="utf-8")
