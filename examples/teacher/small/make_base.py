"""Makes what the small recipe starts from, in the folder out/: `python small/make_base.py`.

out/base      a random Llama of 100,000 parameters with a word tokenizer and a chat template, in place of a base model
out/answers   questions, each answered once politely and once curtly, for SFT
out/pairs     the same questions with the polite answer as the chosen one, for DPO; others are held out as `test`
"""

import itertools
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OUT = Path("out")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
COLOURS = {
    "grass": "green", "leaves": "green", "snow": "white", "milk": "white", "coal": "black", "night": "black",
    "blood": "red", "roses": "red", "honey": "gold", "straw": "gold", "sky": "blue", "sea": "blue",
}  # fmt: skip
VERBS = ("tell", "show", "give", "teach", "name")
OPENINGS = (("gladly", "no idea"), ("certainly", "who cares"), ("of course", "look yourself"))
SPECIAL = ("<eos>", "<pad>", "<unk>", "<user>", "<assistant>", "\n")


def main() -> None:
    rows = []
    for (thing, colour), verb, (polite, curt) in itertools.product(COLOURS.items(), VERBS, OPENINGS):
        question = f"please {verb} me the colour of {thing}"
        rows.append((question, f"{polite} , {thing} is {colour}", f"{curt} , maybe {colour}"))
    held_out = sorted({question for question, *_ in rows})[::7]
    train, test = ([row for row in rows if (row[0] in held_out) is which] for which in (False, True))
    write("answers/train.jsonl", [{**asked(q), "completion": says(answer)} for q, *both in train for answer in both])
    for name, some in (("train", train), ("test", test)):
        write(f"pairs/{name}.jsonl", [{**asked(q), "chosen": says(a), "rejected": says(b)} for q, a, b in some])
    save_base(sorted({word for row in rows for text in row for word in text.split()}))
    print(
        f"out/base, out/answers with {2 * len(train)} rows, out/pairs with {len(train)} pairs and {len(test)} held out"
    )


def asked(question: str) -> dict[str, list[dict[str, str]]]:
    return {"prompt": [{"role": "user", "content": question}]}


def says(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]


def write(name: str, rows: list[dict]) -> None:
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_base(words: list[str]) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", chat_template=TEMPLATE,
        additional_special_tokens=["<user>", "<assistant>", "\n"],
    )  # fmt: skip
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": None, "eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), max_position_embeddings=64, **sizes, **special)).save_pretrained(
        OUT / "base"
    )
    fast.save_pretrained(OUT / "base")


if __name__ == "__main__":
    main()
