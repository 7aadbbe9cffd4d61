"""From the arguments of a dataset to its splits."""

from ban_hf.data.arguments import IMAGES, QUICKSTART, DataArguments
from ban_hf.data.images import ImageSplits, load_images
from ban_hf.data.text import TextSplits, load_text


def load_splits(arguments: DataArguments, task: str) -> ImageSplits | TextSplits:
    """Load the training, validation and test data of a task.

    Args:
        arguments: of the dataset; see :func:`load_images` and :func:`load_text`.
        task: `"image-classification"` or `"text-generation"`.

    Raises:
        BANError: an argument that has no meaning for the task, and all that the two functions
            refuse.
    """
    arguments.check_task(task)
    name = arguments.dataset_name or QUICKSTART[task]
    if task == IMAGES:
        return load_images(
            name,
            config=arguments.dataset_config,
            revision=arguments.dataset_revision,
            image_column=arguments.image_column,
            label_column=arguments.label_column,
            image_size=arguments.image_size,
            flip=arguments.flip,
            validation=arguments.validation,
            train_samples=arguments.train_samples,
            seed=arguments.split_seed,
        )
    return load_text(
        name,
        config=arguments.dataset_config,
        revision=arguments.dataset_revision,
        text_column=arguments.text_column,
        vocabulary_size=arguments.vocabulary_size,
        train_words=arguments.train_words,
    )
