"""What vLLM would make of a checkpoint's files that the teacher's id does not mean."""

import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from tvkd_server.teachers import weights
from tvkd_shared.errors import InvalidRequest

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OF_A_TRAINER = ("training_args.bin", "optimizer.bin")
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def refuse_other_weights(directory: Path) -> None:
    """Raises InvalidRequest for files that vLLM would load beside those that the id covers, or in their place."""
    first, *_ = used = weights.files(directory)
    if first.suffix == ".safetensors" and first.name != _WHOLE:
        return  # vLLM keeps to the index
    patterns = ["*.safetensors"] if first.name == _WHOLE else ["*.safetensors", "*.bin"]
    others = {path.name for pattern in patterns for path in directory.glob(pattern)} - {path.name for path in used}
    others |= {_INDEX} if (directory / _INDEX).exists() else set()
    if others := others.difference(_OF_A_TRAINER):
        raise InvalidRequest(f"{directory} has {min(others)} beside {first.name}, and vLLM would read it; move it away")


def refuse_untied_head(directory: Path) -> None:
    """Raises InvalidRequest where config.json ties the head to the embeddings and the weights have another head.

    transformers uses that head, and vLLM the embeddings. Adapters that trained a head are often merged into such files.
    """
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    # Some families say it of the language model, and some of the whole.
    said = [getattr(part, "tie_word_embeddings", None) for part in (config.get_text_config(decoder=True), config)]
    if not next((tied for tied in said if tied is not None), False):
        return
    head, embeddings = (_tensor(directory, ends) for ends in ((_HEAD,), _EMBEDDINGS))
    if head is not None and embeddings is not None and not torch.equal(head, embeddings):
        raise InvalidRequest(
            f"{directory} has an {_HEAD} that is not its embeddings, and vLLM would not use it, because config.json "
            "has tie_word_embeddings: set that to false"
        )


def _tensor(directory: Path, ends: tuple[str, ...]) -> Tensor | None:
    """The first tensor whose name ends so, None where there is none."""
    tensor: Tensor
    for path in weights.files(directory):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    if name.endswith(ends):
                        tensor = file.get_tensor(name)
                        return tensor
        else:
            # Mapped, so that only this tensor is read; the oldest form of such files cannot be.
            state = torch.load(path, "cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
            for name, tensor in state.items():
                if name.endswith(ends):
                    return tensor
    return None
