"""First and last layers that a student has from its teacher, and keeps."""

from torch import nn

from ban_hf.errors import BANError

from .modeling_cifar import CifarNetForImageClassification


def share_ends(
    student: CifarNetForImageClassification, teacher: CifarNetForImageClassification
) -> None:
    """Copy the teacher's first convolution and last linear layer into the student and freeze them.

    As in Table 5 of Born-Again Networks, for residual students of a DenseNet. The student's copies
    are its own and learn no more; its BatchNorm layers, and the teacher, stay as they are. A saved
    student holds their weights, not that they are frozen: call this again to train it further.

    Raises:
        ValueError: the layers differ in shape, or the two models are one.
    """
    if student is teacher:
        raise BANError("student and teacher are the same model: build the student anew")
    names = ("first convolution", "last linear layer")
    pairs = list(zip(names, student.network.ends, teacher.network.ends, strict=True))
    for name, mine, other in pairs:
        if _shapes(mine) != _shapes(other):
            raise BANError(
                f"the {name} is {_shapes(mine)} in the student ({student.config.architecture}) "
                f"and {_shapes(other)} in the teacher ({teacher.config.architecture}): build both "
                "with the same num_labels, num_channels and compression, the student as one of "
                "cifar_densenet_DEPTH_GROWTH_wide_UNITS_RATIO or ..._preact_UNITS_RATIO with the "
                "DEPTH and GROWTH of its teacher"
            )
    for _, mine, other in pairs:
        mine.load_state_dict(other.state_dict())
        mine.requires_grad_(False)


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}
