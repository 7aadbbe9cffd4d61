"""Every head, exactly: its own loss, the gradient by formula, and the same in parts as in one."""

import pytest
import torch
import torch.nn.functional as F
from heads import (
    BLANK,
    CASES,
    FIRST,
    LABEL_WEIGHT,
    TEMPERATURE,
    batch_of,
    model_of,
    rows_of,
    trainer,
)
from tiny import distance
from torch import Tensor

# (a) The loss that the model reports


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[1:])))
def test_the_label_loss_is_the_models_own(case, tmp_path):
    inputs, model = batch_of(case), model_of(case, 1)
    with torch.no_grad():
        own = model(**inputs).loss.item()
    if case[0] == "AutoModelForCTC" and model.config.ctc_loss_reduction == "sum":
        own /= 8
    for teacher in (None, 2):
        found = trainer(case, tmp_path, rows_of(inputs), teacher, per_device_eval_batch_size=8)
        metrics = found.evaluate()
        assert metrics["eval_loss"] == pytest.approx(own, rel=1e-5)
    assert metrics["eval_teacher_kl"] > 0


# (b) The gradient of a step


def of_classes(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The gradient in z of T^2 KL(p || q) / n + 0.5 H(y, q) / n: `(N, C)`; y is -100 or a class."""
    count = (y != -100).sum()
    gradient = torch.zeros_like(z)
    for i in range(len(z)):
        if y[i] == -100:
            continue
        q, p = (z[i] / TEMPERATURE).softmax(0), (t[i] / TEMPERATURE).softmax(0)
        gradient[i] = TEMPERATURE * (q - p)
        gradient[i] += LABEL_WEIGHT * z[i].softmax(0)
        gradient[i, y[i]] -= LABEL_WEIGHT
    return gradient / count


def closed_form(case, student, teacher, inputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Tensors of the student, and the gradient of the loss in each, by formula."""
    auto_class, name, kind = case
    head, labels = auto_class.removeprefix("AutoModelFor"), inputs.get("labels")
    if head == "QuestionAnswering":
        pairs = []
        for part in ("start", "end"):
            z, t = getattr(student, f"{part}_logits"), getattr(teacher, f"{part}_logits")
            y = inputs[f"{part}_positions"].clamp(min=0)
            y = y.where(y < z.shape[1], -100)
            pairs.append((z, of_classes(z, t, y) / 2))
        return pairs
    z, t = student.logits, teacher.logits
    if kind == "multi_label_classification":
        gradient = TEMPERATURE * ((z / TEMPERATURE).sigmoid() - (t / TEMPERATURE).sigmoid())
        return [(z, (gradient + LABEL_WEIGHT * (z.sigmoid() - labels)) / z.numel())]
    if kind == "regression":
        return [(z, (2 * (z - t) + LABEL_WEIGHT * 2 * (z - labels)) / z.numel())]
    if head == "SemanticSegmentation":
        size = labels.shape[1:]
        z, t = (F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (z, t))
        z, t = z.movedim(1, -1), t.movedim(1, -1)  # (B, H, W, C)
        labels = labels.masked_fill(labels == 255, -100)
    if head == "AudioFrameClassification":
        labels = labels.argmax(-1)
    shifts = head in ("CausalLM", "ImageTextToText") and name.split("For")[0] not in (
        "Bart",
        "Florence2",
        "XLNetLMHeadModel",
    )
    if shifts:
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
    if head == "CTC":
        gradient = TEMPERATURE * ((z / TEMPERATURE).softmax(-1) - (t / TEMPERATURE).softmax(-1))
        of_text = ctc_gradient(z, labels, name.startswith("Hubert"))
        return [(z, gradient / z[..., 0].numel() + LABEL_WEIGHT * of_text)]
    classes = z.shape[-1]
    flat = of_classes(z.reshape(-1, classes), t.reshape(-1, classes), labels.reshape(-1))
    return [(z, flat.view(z.shape))]


def ctc_gradient(z: Tensor, labels: Tensor, by_length: bool) -> Tensor:
    """The gradient in z of the mean over rows of the CTC loss, row by row."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        for row, text in zip(z, labels, strict=True):
            text = text[text != -100]
            logp, lengths = row.log_softmax(-1)[:, None], ([len(row)], [len(text)])
            loss = F.ctc_loss(logp, text[None], *lengths, blank=BLANK, reduction="sum")
            (loss / len(z) / (len(text) if by_length else 1)).backward()
    return z.grad


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[1:])))
def test_the_gradient_of_a_step_is_that_of_the_formula(case, tmp_path):
    inputs, model, teacher = batch_of(case), model_of(case, 1).train(), model_of(case, 2)
    outputs = model(**inputs)
    with torch.no_grad():
        pairs = closed_form(case, outputs, teacher(**inputs), inputs)
    student, gradients = zip(*closed_form_in_graph(case, outputs, pairs, inputs), strict=True)
    torch.autograd.backward(student, gradients)
    found = trainer(case, tmp_path, rows_of(inputs))
    found.train()
    largest = max(p.grad.abs().max() for p in model.parameters() if p.grad is not None)
    assert largest > 1e-4
    trained = dict(found.model.named_parameters())
    before = dict(model_of(case, 1).named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            moved = before[name] - trained[name]  # the learning rate is 1
            torch.testing.assert_close(moved, parameter.grad, rtol=1e-3, atol=2e-5 * float(largest))


def closed_form_in_graph(case, outputs, pairs, inputs) -> list[tuple[Tensor, Tensor]]:
    """The same pairs with the student's tensors as its graph has them."""
    if case[0] == "AutoModelForQuestionAnswering":
        return [
            (outputs.start_logits, pairs[0][1]),
            (outputs.end_logits, pairs[1][1]),
        ]
    z = outputs.logits
    if case[0] == "AutoModelForSemanticSegmentation":
        size = inputs["labels"].shape[1:]
        z = F.interpolate(z, size, mode="bilinear", align_corners=False).movedim(1, -1)
    return [(z, pairs[0][1])]


# (c) In parts as in one


@pytest.mark.parametrize("case", FIRST, ids=lambda case: "-".join(map(str, case[1:])))
@pytest.mark.parametrize("objective", ["kd", "cwtm"])
def test_accumulated_batches_equal_one_large_batch(case, objective, tmp_path):
    if objective == "cwtm" and (case[2] == "regression" or case[0] == "AutoModelForCTC"):
        pytest.skip("which has no meaning")
    data, steps = rows_of(batch_of(case)), dict(max_steps=2, learning_rate=0.1, objective=objective)
    accumulated = dict(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    whole = trainer(case, tmp_path, data, **steps)
    parts = trainer(case, tmp_path, data, **steps, **accumulated)
    for found in (whole, parts):
        for module in found.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # whose statistics are of a batch
                module.train = lambda mode=True, module=module: module
        found.train()
    moved = distance(whole.model, model_of(case, 1))
    assert moved > 1e-4
    assert distance(whole.model, parts.model) < 1e-4 * moved + 1e-6
