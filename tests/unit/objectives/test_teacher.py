"""Teachers follow their students, and nothing else moves them."""

import pytest
import torch
from helpers_tiny import tiny_encoder
from torch import nn

from almosaic.errors import AlmosaicError
from almosaic.masking import random_mask
from almosaic.objectives.teacher import EncoderTeacher, Teacher, ema_update

LAYERNORM = {"final_norm": "layernorm"}


def follower(encoder):
    torch.manual_seed(1)
    teacher = EncoderTeacher(encoder.config)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_(std=0.2)
    return teacher


def view_and_mask(encoder, rows=3):
    torch.manual_seed(2)
    return torch.randn(rows, 64, 128), random_mask(encoder.config.grid, rows, ratio=0.7)


def test_average_against_the_formula():
    teachers, students = ([torch.randn(3, 2), torch.randn(4)] for _ in range(2))
    expected = [0.9 * t + 0.1 * s for t, s in zip(teachers, students, strict=True)]
    kept = [s.clone() for s in students]
    ema_update(zip(teachers, students, strict=True), 0.9)
    torch.testing.assert_close(teachers, expected)
    torch.testing.assert_close(students, kept, rtol=0, atol=0)


def test_a_slow_average_still_moves():
    teacher, student = torch.full((1,), 0.02), torch.full((1,), 0.021)
    for _ in range(1000):
        ema_update([(teacher, student)], 0.99999)
    moved = 0.001 * (1 - 0.99999**1000)  # a step of it is five units in the last place
    assert teacher.item() - 0.02 == pytest.approx(moved, rel=0.1)


def test_a_teacher_in_half_precision():
    pair = [(torch.zeros(2, dtype=torch.bfloat16), torch.ones(2))]
    with pytest.raises(AlmosaicError, match=r"expected a teacher in float32, found torch.bfloat16"):
        ema_update(pair, 0.9)


def test_it_is_never_trained():
    teacher = Teacher(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))).train()
    assert not any(p.requires_grad for p in teacher.parameters())
    x = torch.randn(2, 4, requires_grad=True)
    found = teacher(x)
    assert not found.requires_grad and not any(module.training for module in teacher.modules())
    torch.testing.assert_close(found, teacher.network[0](x).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("final_norm", ["none", "layernorm"])
def test_after_following_at_once_it_is_the_student(final_norm):
    encoder = tiny_encoder(final_norm=final_norm)
    norm = encoder.norm if final_norm == "layernorm" else nn.LayerNorm(32, eps=1e-6)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    teacher = follower(encoder)
    teacher.follow_encoder(encoder, norm, decay=0.0)
    view, mask = view_and_mask(encoder)
    student = encoder(view, ids_keep=mask.ids_masked).last_hidden_state
    student = student if final_norm == "layernorm" else norm(student)
    torch.testing.assert_close(
        teacher.targets(encoder, view, mask.ids_masked), student[:, 1:], atol=1e-5, rtol=1e-4
    )


def test_one_step_moves_blocks_and_norm_but_no_embedding():
    encoder = tiny_encoder(**LAYERNORM)
    teacher = follower(encoder)
    before = {name: p.clone() for name, p in teacher.network.named_parameters()}
    teacher.follow_encoder(encoder, encoder.norm, decay=0.75)
    student = dict(encoder.named_parameters())
    for name, parameter in teacher.network.named_parameters():
        torch.testing.assert_close(parameter, 0.75 * before[name] + 0.25 * student[name])
    names = {name.split(".")[0] for name in before}
    assert names == {"blocks", "norm"} and len(before) == 2 * 12 + 2


def test_targets_see_masked_patches_only_and_give_no_gradient():
    encoder = tiny_encoder(**LAYERNORM)
    teacher = follower(encoder)
    view, mask = view_and_mask(encoder)
    targets = teacher.targets(encoder, view, mask.ids_masked)
    assert targets.shape == (3, mask.ids_masked.shape[1], 32) and not targets.requires_grad
    patches = view.reshape(3, 4, 16, 8, 16).transpose(2, 3).reshape(3, 32, 16, 16).clone()
    rows = torch.arange(3)[:, None]
    patches[rows, mask.ids_keep] = 9.0
    louder = patches.reshape(3, 4, 8, 16, 16).transpose(2, 3).reshape(3, 64, 128)
    torch.testing.assert_close(teacher.targets(encoder, louder, mask.ids_masked), targets, rtol=0, atol=0)
    patches[rows, mask.ids_masked[:, :1]] = 9.0
    changed = patches.reshape(3, 4, 8, 16, 16).transpose(2, 3).reshape(3, 64, 128)
    moved = (teacher.targets(encoder, changed, mask.ids_masked) - targets).abs().amax(dim=(0, 2))
    assert moved.min() > 1e-4  # they see each other


def test_drop_path_of_the_student_leaves_the_teacher_whole():
    encoder = tiny_encoder(**LAYERNORM, drop_path_rate=0.5).train()
    teacher = follower(encoder).train()
    view, mask = view_and_mask(encoder)
    found = [teacher.targets(encoder, view, mask.ids_masked) for _ in range(2)]
    torch.testing.assert_close(*found, rtol=0, atol=0)
