"""What a run publishes while it trains, and at its end."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ban_hf.errors import HubError, LineageError, PublishError
from ban_hf.hub import (
    full_name,
    generation_repository,
    prepare_family,
    push_family,
    push_generation,
)
from ban_hf.network import clean_token
from ban_hf.training_args import BANTrainingArguments

logger = logging.getLogger(__name__)


class Publisher:
    """Publishes the generations of a run as they are finished, and its family at the end.

    On the main process, and with `push_to_hub`; otherwise it does nothing.

    Args:
        args: of the run: `push_to_hub`, `hub_model_id` (by default the name of `output_dir`),
            `hub_private_repo`, `hub_license` and `hub_token`.
    """

    def __init__(self, args: BANTrainingArguments) -> None:
        self.is_on = args.push_to_hub and args.process_index == 0
        self.repo_id = args.hub_model_id or Path(args.output_dir).resolve().name
        self.options: dict[str, Any] = {
            "private": args.hub_private_repo,
            "license": args.hub_license,
            "token": clean_token(args.hub_token),
        }

    def prepare(self, generations: Sequence[int], teacher: str | None, *, is_new: bool) -> None:
        """Hold, before a new run trains for hours, that its generations can be published."""
        if not self.is_on:
            return
        self.repo_id = full_name(self.repo_id, self.options["token"])
        if is_new:
            private, token = self.options["private"], self.options["token"]
            prepare_family(self.repo_id, generations, teacher, private, token)

    def publish_generation(self, folder: Path) -> None:
        """Publish a generation; a Hub that is away costs no training."""
        if not self.is_on:
            return
        number = int(folder.name.removeprefix("generation-"))
        try:
            name = generation_repository(self.repo_id, number)
            print(f"Published {push_generation(folder, name, **self.options)}", flush=True)
        except (HubError, LineageError, PublishError) as error:
            logger.warning(
                "%s is not published yet: %s It will be tried again at the end.", folder, error
            )

    def publish_family(self, output_dir: Path) -> None:
        """Publish all that is not yet, and the ensemble.

        Raises:
            PublishError: see `push_family`.
            HubError: see `push_family`.
        """
        if self.is_on:
            print(f"Published {push_family(output_dir, self.repo_id, **self.options)[-1]}")
