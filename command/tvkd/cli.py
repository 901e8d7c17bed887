"""`tvkd`: one command, each part imported only when it is asked for, so that a trainer needs no server package."""

import sys

from tvkd_shared.dispatch import Entry, dispatch

COMMANDS = {
    "serve": Entry("tvkd_server.serve:Serve", "server", "serve a teacher's values over HTTP and keep them"),
    "prefetch": Entry("tvkd_client.prefetch:Prefetch", "train", "fill a server's store with a data set's values"),
    "train": Entry("tvkd_client.train_command:train", "train", "align a student with TVKD under TRL's DPOTrainer"),
    "preview": Entry(
        "tvkd_client.preview:Preview", "train", "say what the teacher's values would do to pairs, before any training"
    ),
    "show": Entry("tvkd_client.show:Show", "train", "show one pair, coloured token by token by its shaping"),
    "eval": Entry("tvkd.evaluation.command:Eval", "train", "measure a trained student beside what it began as"),
    "study": Entry("tvkd.study.command:StudyCommand", "study", "find out which objective helps a student"),
    "store": Entry("tvkd.store.command:store", "server", "check, merge and publish what a store holds"),
    "demo": Entry("tvkd.demo.demo:Demo", "demo", "run the whole job on a small real teacher, in minutes"),
}


def main(argv: list[str] | None = None) -> int:
    """Run `tvkd COMMAND …`. Returns the exit code; see `dispatch`."""
    return dispatch("tvkd", COMMANDS, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
