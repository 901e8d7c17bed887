"""Under torchrun, the first step of each training of a file, from weights that are away from the reference's.

Beside the file, each gives the trained weights after the step and what was logged of it, by its place in the file.
"""

import pickle
import sys
from pathlib import Path

import torch
from runs import moved_weights, trainer_of

if __name__ == "__main__":
    file = Path(sys.argv[1])
    for place, training in enumerate(pickle.loads(file.read_bytes())):
        trainer = trainer_of(**training, output=file.parent / "out", ddp_backend="gloo")
        trained = moved_weights(trainer)
        trainer.train()
        if trainer.is_world_process_zero():
            weights = [weight.detach() for weight in trained]
            torch.save((weights, trainer.state.log_history[0]), file.parent / f"{place}.pt")
        # DDP's reducer must go before the process group.
        trainer.model_wrapped = trainer.model
        trainer.accelerator.free_memory()
    trainer.accelerator.end_training()
