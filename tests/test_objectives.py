"""The objectives against their formulas: gradients in closed form, limits, and every relation."""

import math

import pytest
import torch
import torch.nn.functional as F

from ban_hf import OBJECTIVES
from ban_hf.objectives import confidence, dkd, item_weights, permute_dark_knowledge

N, C = 6, 5
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    student = torch.randn(N, C, generator=rng, dtype=torch.float64).requires_grad_()
    teacher = 3 * torch.randn(N, C, generator=rng, dtype=torch.float64)
    return student, teacher, torch.randint(0, C, (N,), generator=rng)


def gradient(loss, student):
    return torch.autograd.grad(loss.sum(), student)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_value_and_gradient_in_closed_form(batch, temperature):
    student, teacher, _ = batch
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    loss = OBJECTIVES["kd"](student, teacher, None, temperature=temperature)
    assert loss.shape == (N,)
    torch.testing.assert_close(loss, temperature**2 * (p * (p.log() - q.log())).sum(1))
    torch.testing.assert_close(gradient(loss, student), temperature * (q - p))
    cross_entropy = F.cross_entropy(student / temperature, p, reduction="none")
    same = temperature**2 * gradient(cross_entropy, student)
    torch.testing.assert_close(same, temperature * (q - p))


def test_the_gradient_of_a_huge_logit_is_still_q_minus_p():
    student = torch.tensor([[3e38, 0.0, -3e38]], requires_grad=True)
    expected = torch.tensor([[1.0, 0.0, 0.0]]) - 1 / 3
    loss = OBJECTIVES["kd"](student, torch.zeros(1, 3))
    torch.testing.assert_close(gradient(loss, student), expected)


def test_kd_equals_label_cross_entropy_for_a_certain_teacher(batch):
    student, _, labels = batch
    certain = 1000 * F.one_hot(labels, C).double()
    expected = F.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(OBJECTIVES["kd"](student, certain, None), expected)


def test_kd_is_zero_where_teacher_and_student_agree(batch):
    student, _, _ = batch
    loss = OBJECTIVES["kd"](student, student.detach() + 7, None, temperature=2)
    torch.testing.assert_close(loss, torch.zeros(N, dtype=torch.float64))
    torch.testing.assert_close(gradient(loss, student), torch.zeros_like(student))


def test_kd_tends_to_centred_logit_matching_for_a_high_temperature(batch):
    student, teacher, _ = batch
    z, t = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    loss = OBJECTIVES["kd"](student, teacher, None, temperature=1e4)
    torch.testing.assert_close(loss, (z - t).pow(2).sum(1) / (2 * C), rtol=1e-3, atol=0)


def test_cwtm_value_and_gradient_in_closed_form(batch):
    student, teacher, labels = batch
    w = teacher.softmax(1).amax(1)
    w = w / w.sum()
    loss = OBJECTIVES["cwtm"](student, teacher, labels)
    torch.testing.assert_close(loss, N * w * F.cross_entropy(student, labels, reduction="none"))
    expected = (N * w)[:, None] * (student.softmax(1) - F.one_hot(labels, C))
    torch.testing.assert_close(gradient(loss, student), expected)


@pytest.mark.parametrize("case", ["equal confidence", "high temperature"])
def test_cwtm_becomes_the_label_cross_entropy(batch, case):
    student, teacher, labels = batch
    if case == "equal confidence":  # the same numbers, in another place in every row
        teacher = torch.stack([teacher[0].roll(i) for i in range(N)])
    temperature = 1e9 if case == "high temperature" else 1.0
    expected = F.cross_entropy(student, labels, reduction="none")
    loss = OBJECTIVES["cwtm"](student, teacher, labels, temperature=temperature)
    torch.testing.assert_close(loss, expected)


def test_cwtm_holds_no_dark_knowledge(batch):
    student, teacher, labels = batch
    permuted = permute_dark_knowledge(teacher, torch.Generator().manual_seed(1))
    assert not torch.equal(permuted, teacher)
    loss = OBJECTIVES["cwtm"]
    torch.testing.assert_close(loss(student, permuted, labels), loss(student, teacher, labels))


def test_cwtm_weights_also_where_the_teacher_is_wrong(batch):
    student, teacher, _ = batch
    wrong = (teacher.argmax(1) + 1) % C
    w = confidence(teacher)
    expected = w / w.mean() * F.cross_entropy(student, wrong, reduction="none")
    torch.testing.assert_close(OBJECTIVES["cwtm"](student, teacher, wrong), expected)


def test_a_batch_in_parts_is_exact_with_item_weights(batch):
    student, teacher, labels = batch
    for name, objective in OBJECTIVES.items():
        if name == "dkpp":
            continue  # random; the trainer's tests hold it
        whole = objective(student, teacher, labels).mean()
        masses = [item_weights(name, teacher[part]).sum() for part in ([0], [1, 2], [3, 4, 5])]
        means = [
            objective(student[part], teacher[part], labels[part]).mean()
            for part in ([0], [1, 2], [3, 4, 5])
        ]
        split = sum(m * v for m, v in zip(masses, means, strict=True)) / sum(masses)
        torch.testing.assert_close(split, whole, rtol=1e-6, atol=0)


def test_dkpp_is_kd_from_the_permuted_teacher(batch):
    student, teacher, _ = batch
    permuted = permute_dark_knowledge(teacher, torch.Generator().manual_seed(3))
    loss = OBJECTIVES["dkpp"](student, teacher, None, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss, OBJECTIVES["kd"](student, permuted, None))
    torch.testing.assert_close(gradient(loss, student), student.softmax(1) - permuted.softmax(1))


def test_permutation_keeps_argmax_and_multiset_and_differs_by_row():
    teacher = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).expand(500, 8)
    permuted = permute_dark_knowledge(teacher, torch.Generator().manual_seed(1))
    top = teacher.argmax(1)
    assert torch.equal(permuted.argmax(1), top)
    assert torch.equal(permuted.amax(1), teacher.amax(1))
    assert torch.equal(permuted.sort(1).values, teacher.sort(1).values)
    assert len({tuple(row) for row in permuted.tolist()}) > 400  # of 7! = 5040: rows independent


def test_permutation_is_uniform_over_the_other_classes():
    teacher = torch.tensor([[5.0, 1.0, 2.0, 3.0]]).expand(6000, 4)
    permuted = permute_dark_knowledge(teacher, torch.Generator().manual_seed(0))
    counts = torch.stack([(permuted[:, 1:] == v).float().mean(0) for v in (1, 2, 3)])
    torch.testing.assert_close(counts, torch.full((3, 3), 1 / 3), atol=0.03, rtol=0)


def test_dkpp_default_generator_is_the_global_one(batch):
    student, teacher, _ = batch
    torch.manual_seed(5)
    first, second = (OBJECTIVES["dkpp"](student, teacher, None) for _ in range(2))
    torch.manual_seed(5)
    torch.testing.assert_close(OBJECTIVES["dkpp"](student, teacher, None), first)
    assert not torch.equal(first, second)


def test_objectives_equal_kd_where_there_is_nothing_to_permute_or_to_decouple(batch):
    student, teacher, labels = batch
    uniform = 2 * F.one_hot(teacher.argmax(1), C).double()  # off its argmax
    torch.testing.assert_close(
        OBJECTIVES["dkpp"](student, uniform), OBJECTIVES["kd"](student, uniform)
    )
    student, teacher, labels = student[:, :2], teacher[:, :2], labels % 2
    for name in ("dkpp", "dkd"):
        loss = OBJECTIVES[name](student, teacher, labels)
        torch.testing.assert_close(loss, OBJECTIVES["kd"](student, teacher))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_dkd_with_the_non_target_half_at_one_minus_p(batch, temperature):
    student, teacher, labels = batch
    p = (teacher / temperature).softmax(1).gather(1, labels[:, None])[:, 0]
    loss = dkd(student, teacher, labels, temperature=temperature, non_target_weight=1 - p)
    expected = OBJECTIVES["kd"](student, teacher, None, temperature=temperature)
    torch.testing.assert_close(loss, expected)


def test_dkd_gradient_in_closed_form(batch):
    student, teacher, labels = batch
    target = F.one_hot(labels, C).bool()
    p, q = teacher.softmax(1), student.softmax(1)
    p_rest, q_rest = (x.masked_fill(target, 0) for x in (p, q))
    p_rest, q_rest = (x / x.sum(1, keepdim=True) for x in (p_rest, q_rest))
    p_star, q_star = (x[target][:, None] for x in (p, q))
    rest = 1.0 * (p_star - q_star) * q_rest + 8.0 * (q_rest - p_rest)
    expected = torch.where(target, q_star - p_star, rest)
    loss = OBJECTIVES["dkd"](student, teacher, labels)
    torch.testing.assert_close(gradient(loss, student), expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradcheck_in_double_precision(batch, name, temperature):
    student, teacher, labels = batch

    def loss(z):
        rng = torch.Generator().manual_seed(0)
        return OBJECTIVES[name](z, teacher, labels, temperature=temperature, generator=rng)

    assert torch.autograd.gradcheck(loss, student)
    teacher.requires_grad_()
    loss(student).mean().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_precision_is_float32_at_least_and_double_stays_double(batch, name, dtype):
    student, teacher, labels = (x.detach() for x in batch)
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
    loss = OBJECTIVES[name](student, teacher, labels, generator=torch.Generator().manual_seed(0))
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    exact = OBJECTIVES[name](
        student.double(), teacher.double(), labels, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 20.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_finite_for_the_largest_logits_that_the_dtype_holds(name, dtype, temperature):
    big = torch.finfo(dtype).max
    rows = [[big, -big, 0], [-big, big, 0], [0, big, big], [-big, -big, -big], [1, 2, big]]
    student = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for teacher in (student.detach(), -student.detach(), student.detach().flip(0)):
        labels = torch.tensor([0, 1, 2, 0, 1])
        loss = OBJECTIVES[name](student, teacher, labels, temperature=temperature)
        assert loss.isfinite().all()
        assert loss.mean().isfinite()
        assert gradient(loss, student).isfinite().all()


def test_confidence_and_effective_sample_size_limits():
    even = torch.zeros(4, 10)
    torch.testing.assert_close(confidence(even), torch.full((4,), 0.1))
    certain = torch.eye(10)[:4] * 100
    torch.testing.assert_close(confidence(certain), torch.ones(4))
    assert math.isclose(confidence(certain, temperature=1e6)[0], 0.1, rel_tol=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bad_input_is_refused(batch, name):
    student, teacher, labels = batch
    with pytest.raises(ValueError, match="same shape"):
        OBJECTIVES[name](student, teacher[:, 1:], labels)
    with pytest.raises(ValueError, match="at least two classes"):
        OBJECTIVES[name](student[:, :1], teacher[:, :1], labels)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        OBJECTIVES[name](student, teacher, labels, temperature=0)
    if name in ("cwtm", "dkd"):
        with pytest.raises(ValueError, match=f"{name}.*labels"):
            OBJECTIVES[name](student, teacher, None)
