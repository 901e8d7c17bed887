"""Flags of the commands that read one data set, apart from the data set itself: TRL takes long to import."""

from typing import TYPE_CHECKING

from pydantic import Field

from tvkd_shared.errors import InvalidRequest
from tvkd_shared.settings import Command

if TYPE_CHECKING:
    import datasets

PROMPT_COLUMN = "column that has the prompt, if not named so; none where chosen and rejected both begin with it"


class DatasetFlags(Command):
    """The flags of a command that reads one data set."""

    dataset: str | None = Field(
        None,
        description="pairs: JSON, JSON lines, CSV or Parquet (file, folder or glob), a save_to_disk folder, or a "
        "hub id (only then is the network used)",
    )
    dataset_config: str | None = Field(None, description="configuration of the data set, where it has several")
    split: str | None = Field(None, description="split of the data set; needed when it has several")
    prompt_column: str | None = Field(None, description=PROMPT_COLUMN)
    chosen_column: str | None = Field(None, description="column of the better completion, where it is not named chosen")
    rejected_column: str | None = Field(None, description="column of the worse one, where it is not named rejected")

    def pairs(self) -> "datasets.Dataset":
        """The rows that the flags name. Raises InvalidRequest, as `load_preferences` does."""
        if self.dataset is None:
            raise InvalidRequest("--dataset is needed (or TVKD_DATASET in the environment)")
        # TRL takes seconds to import, and `--help` does not need it.
        from tvkd_client.dataset import Columns, load_preferences  # noqa: PLC0415

        columns = Columns(self.prompt_column, self.chosen_column, self.rejected_column)
        return load_preferences(self.dataset, self.split, self.dataset_config, columns)
