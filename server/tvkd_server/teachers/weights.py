"""The files of a checkpoint: which hold the weights, whether each is whole, and the digest of its content.

What a broken copy or a failed download leaves is named here, because the engines' own messages do not say what to do.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import platformdirs

from tvkd_shared.errors import InvalidRequest

DIGEST_BYTES = 16

# The order in which transformers looks for weights: it loads the first that exists.
_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LFS_POINTER = b"version https://git-lfs"
_COPY_AGAIN = "download or copy it again"


def files(directory: Path) -> list[Path]:
    """The files that hold the weights, by name. Raises InvalidRequest when there are none, or one is not whole."""
    first = next((directory / name for name in _NAMES if (directory / name).exists()), None)
    if first is None:
        raise InvalidRequest(f"{directory} has no weights; tvkd looked for {', '.join(_NAMES)}{other_form(directory)}")
    shards = [first]
    if first.suffix == ".json":
        parts = json_object(first).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise InvalidRequest(f"{first} has no weight_map, which names the files of weights; {_COPY_AGAIN}")
        shards = sorted({directory / str(shard) for shard in parts.values()})
    if missing := [shard.name for shard in shards if not shard.exists()]:
        raise InvalidRequest(f"{directory} lacks {', '.join(missing)} of {first.name}; copy it too")
    for shard in shards:
        check_whole(shard)
    return shards


_MAKERS_FORM = "its makers' own form; get the same model in Hugging Face's (config.json and model*.safetensors)"
_OTHER_FORMS = {
    "params.json": _MAKERS_FORM,
    "consolidated*": _MAKERS_FORM,
    "pytorch_model_fsdp_*": "the shards of a training; merge them with `accelerate merge-weights`",
    "global_step*": "the shards of a DeepSpeed training; merge them with zero_to_fp32.py, which lies beside them",
    "*.gguf": "a GGUF file, which tvkd does not read; get the weights as safetensors, or convert it",
    "*/config.json": "a folder that may be the checkpoint; name that one",
}


def other_form(directory: Path) -> str:
    """What a folder that is no checkpoint of Hugging Face's form holds instead, as the end of a sentence."""
    found = ((next(directory.glob(pattern), None), what) for pattern, what in _OTHER_FORMS.items())
    return next((f", and there is {path.relative_to(directory)}, {what}" for path, what in found if path), "")


def check_whole(path: Path) -> None:
    """Raises InvalidRequest when a file of weights is a pointer, or is shorter or longer than it says itself."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise InvalidRequest(f"{path} is a pointer of Git LFS and not the weights; run `git lfs pull` there")
        if path.suffix == ".safetensors":
            wanted = _safetensors_size(path)
            if wanted != size:
                raise InvalidRequest(f"{path} has {size:,} bytes, and its header says {wanted:,}; {_COPY_AGAIN}")
        # torch.save writes a zip archive, and before torch 1.6 a pickle, which begins with \x80.
        elif not zipfile.is_zipfile(path) and not start.startswith(b"\x80"):
            raise InvalidRequest(f"{path} is no file of PyTorch weights, or not all of one; {_COPY_AGAIN}")


def _safetensors_size(path: Path) -> int:
    """The size in bytes that the file's header gives it: its length, then JSON with the place of each tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise InvalidRequest(f"{path} is no safetensors file, or not all of one; {_COPY_AGAIN}") from error


def json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises InvalidRequest when it is not an object."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidRequest(f"{path} is not JSON: {error}; {_COPY_AGAIN}") from error
    if not isinstance(content, dict):
        raise InvalidRequest(f"{path} holds a {type(content).__name__} and not an object; {_COPY_AGAIN}")
    return content


def refuse_gguf(model: Path) -> None:
    """Raises InvalidRequest, with the way to convert it, for a GGUF file or a folder of nothing else."""
    folder, gguf = (model.parent, model) if model.suffix == ".gguf" else (model, next(model.glob("*.gguf"), None))
    if gguf is None or not gguf.exists() or (model.is_dir() and (model / "config.json").exists()):
        return
    load = f"from_pretrained({str(folder)!r}, gguf_file={gguf.name!r}, quantization_config=GgufConfig(dequantize=True))"
    raise InvalidRequest(
        f"{gguf} is a GGUF file, which tvkd does not read; load it in Python with AutoModelForCausalLM.{load} of "
        "transformers, and its AutoTokenizer, and write both to a folder with save_pretrained"
    )


def file_digest(path: Path) -> str:
    """Digest of one file's content, remembered in the user's cache by path, size and modification time."""
    state = path.stat()
    version = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    name = hashlib.blake2b(version.encode(), digest_size=DIGEST_BYTES).hexdigest()
    cached = platformdirs.user_cache_path("tvkd") / "weights" / name
    with contextlib.suppress(OSError):
        digest = cached.read_text()
        if len(digest) == 2 * DIGEST_BYTES:  # a crash of the machine can leave the file short
            return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()
    # When the cache folder cannot be written, the file is hashed again next time.
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        draft = cached.with_suffix(f".{os.getpid()}")
        draft.write_text(digest)
        draft.replace(cached)
    return digest
