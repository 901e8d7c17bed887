"""Merges a LoRA adapter into its base model: `python merge.py out/T0-lora out/T0`.

After SFT with LoRA, DPO needs one folder with all weights: its reference must be the SFT model, and TRL would take the
base model without its adapter.
"""

import sys

from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer


def main(adapter: str, target: str) -> None:
    # "auto" keeps the precision of the base model's file.
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype="auto").merge_and_unload()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(adapter).save_pretrained(target)
    print(f"{target}: the weights of {adapter} and its base model in one")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python merge.py ADAPTER TARGET")
    main(*sys.argv[1:])
