"""The CIFAR networks as a transformers model.

`save_pretrained` copies this file and `cifar_networks.py` beside the weights, so a saved model
loads with `trust_remote_code=True` where torch, timm and transformers are installed and this
package is not.
"""

from typing import Any

from torch import FloatTensor, LongTensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration import CifarNetConfig


class CifarNetForImageClassification(PreTrainedModel):
    """A CIFAR network with labels and loss, for the Auto classes, pipelines and trainers."""

    config_class = CifarNetConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: CifarNetConfig) -> None:
        # timm takes seconds to import: not before a network is built
        from .cifar_networks import build_cifar_network

        super().__init__(config)
        self.num_labels = config.num_labels
        self.network = build_cifar_network(
            config.architecture,
            num_classes=config.num_labels,
            in_chans=config.num_channels,
            **(config.model_args or {}),
        )
        self.post_init()

    def init_weights(self) -> None:
        """Keep the initialization that the network was built with.

        `post_init` calls this to draw every weight again, from N(0, 0.02). `from_pretrained` takes
        another path (`initialize_weights`) and still fills in what a checkpoint lacks.
        """

    @can_return_tuple
    def forward(
        self, pixel_values: FloatTensor, labels: LongTensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Logits, and the label cross-entropy where there are labels.

        Shapes: `pixel_values` `(B, num_channels, H, W)`, `labels` `(B,)`, logits
        `(B, num_labels)`. The loss is the mean over the batch, or, where a trainer passes
        `num_items_in_batch`, the sum divided by it.
        """
        logits = self.network(pixel_values)  # (B, C)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits)
