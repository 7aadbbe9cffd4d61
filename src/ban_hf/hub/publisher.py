"""What a run publishes while it trains, and at its end."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ban_hf.errors import PublishError
from ban_hf.hub.client import clean_token
from ban_hf.hub.location import LOCAL_GENERATION
from ban_hf.hub.publishing import (
    full_name,
    generation_repository,
    prepare_family,
    push_family,
    push_generation,
)
from ban_hf.training.arguments import BANTrainingArguments

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
        self.unpublished: dict[int, Path] = {}
        self.options: dict[str, Any] = {
            "private": args.hub_private_repo,
            "license": args.hub_license,
            "token": clean_token(args.hub_token),
        }

    def prepare(self, missing: Sequence[int], first: int, teacher: str | None) -> None:
        """Hold, before anything is trained for hours, that it can be published.

        Args:
            missing: the generations that are to be trained.
            first: the first generation of the family.
            teacher: of that, `"ns/name@commit"`; one that stands in a folder cannot be named there.

        Raises:
            PublishError: see `prepare_family`.
            HubError: see `prepare_family`.
        """
        if not self.is_on:
            return
        if teacher is not None and LOCAL_GENERATION.fullmatch(teacher):
            raise PublishError(
                "push_to_hub publishes each student after its teacher, which stands in a folder: "
                "leave it out, and publish the family when it is finished, by ban-hf push FOLDER "
                "ns/name."
            )
        private, token = self.options["private"], self.options["token"]
        self.repo_id = full_name(self.repo_id, token)
        if missing:
            before = [generation_repository(self.repo_id, k) for k in range(first, missing[0])]
            before += [teacher.partition("@")[0]] if teacher else []
            prepare_family(self.repo_id, missing, before, private, token)

    def publish_generation(self, generation: int, folder: Path) -> None:
        """Publish a generation, after those that could not be: no outage stops a training."""
        if not self.is_on:
            return
        self.unpublished[generation] = folder
        for number, folder in list(self.unpublished.items()):
            name = generation_repository(self.repo_id, number)
            try:
                print(f"Published {push_generation(folder, name, **self.options)}", flush=True)
            except (ValueError, OSError) as error:  # at the end it is raised
                logger.warning(
                    "%s is not published yet, but will be tried again: %s", folder, error
                )
                return
            del self.unpublished[number]

    def publish_family(self, output_dir: Path) -> None:
        """Publish all that is not yet, and the ensemble.

        Raises:
            PublishError: see `push_family`.
            HubError: see `push_family`.
        """
        if self.is_on:
            print(f"Published {push_family(output_dir, self.repo_id, **self.options)[-1]}")
