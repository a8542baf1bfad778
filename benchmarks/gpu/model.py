"""A 7B Llama's shape without weights, a tokenizer with all its entries, and prompts of
exactly 256 tokens: ``model.py OUTDIR [PROMPTS]``.

Random token ids must decode to text, or clients see empty deltas: so the tokenizer is
trained (on Python's own library) to the full vocabulary.
"""

from __future__ import annotations

import json
import random
import sys
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY, TOKENS = 32016, 256
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 16384,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "rope_theta": 1000000,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": VOCABULARY,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    random.Random(0).shuffle(files)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator((file.read_text(errors="ignore") for file in files[:1500]), trainer)
    outer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    outer.chat_template = "{% for m in messages %}{{m['role']}}: {{m['content']}}\n{% endfor %}assistant:"
    return outer


def prompts(known: PreTrainedTokenizerFast, number: int) -> list[str]:
    """All different from their first words on, each of 256 tokens with the template.
    RuntimeError when one cannot be made so.
    """
    dice = random.Random(7)
    words = [
        text
        for text in (known.decode([n]) for n in range(400, len(known)))
        if text.startswith(" ") and text[1:].isalpha() and text.isascii()
    ]

    def length(text: str) -> int:
        asked = [{"role": "user", "content": text}]
        return len(known.apply_chat_template(asked, tokenize=True, add_generation_prompt=True, return_dict=False))

    made = []
    for at in range(number):
        text = f"Q{at}" + "".join(dice.choices(words, k=TOKENS - 26))
        for _ in range(60):
            short = TOKENS - length(text)
            if not short:
                break
            text = (
                text + "".join(dice.choices(words, k=max(1, short // 2))) if short > 0 else text.rsplit(" ", -short)[0]
            )
        else:
            raise RuntimeError(f"no prompt of {TOKENS} tokens came of {text[:40]!r}")
        made.append(text)
    return made


def main() -> None:
    out, number = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    out.mkdir(parents=True, exist_ok=True)
    known = tokenizer()
    known.save_pretrained(out)
    (out / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    with (out / "prompts.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": text}) + "\n" for text in prompts(known, number))
    print(f"{len(known)} entries, {number} prompts in {out}")


if __name__ == "__main__":
    main()
