"""One training step of the MATPAC authors' own code, and its tiny models under our classes.

Their patches are numbered frequency-major and their spectrograms are [B, F, T]; ours are time-major and
[B, T, F]. Names on their side stand here alone.
"""

import json
import re

import pytest
import torch
from released import ORACLE as RELEASED
from safetensors.torch import load_file

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchMask
from almosaic.objectives.matpac import MatpacSettings
from almosaic.objectives.pretraining import AudioMosaicForPreTraining

ORACLE = RELEASED.parent / "matpac"
needs_oracle = pytest.mark.skipif(not ORACLE.is_dir(), reason=f"no oracle at {ORACLE}; set ALMOSAIC_ORACLE")
BINS, FRAMES, SIDE, WIDTH = 48, 96, 16, 48
ROWS, COLUMNS, VISIBLE = 3, 6, 5
RUNS = ("matpac", "matpacpp_soft", "matpacpp_wta")
STEPS, WARMUP = 1000, 200  # of the schedules in these runs, which the production ones replace
NAMES = (
    (r"^(patch_embed|cls_token|pos_embed)", r"encoder.\1"),
    (r"^student_encoder\.", "encoder."),
    (r"^teacher_encoder\.", "objective.encoder_teacher.network."),
    (r"^decoder\.decoder_pred\.", "objective.to_targets."),
    (r"^decoder\.decoder_pos_embed", "objective.predictor.positions"),
    (r"^decoder\.(decoder_)?", "objective.predictor."),
    (r"^cls_student_head\.", "objective.head."),
    (r"^cls_teacher_head\.", "objective.head_teacher.network."),
    (r"last_layer\.weight_g$", "classes.gain"),
    (r"last_layer\.weight_v$", "classes.direction"),
    (r"^cls_head_loss\.center$", "objective.class_targets.centre"),
)


def stored(run, what):
    """Tensors of a file; the hard run shares the weights of the soft one."""
    shared = "matpacpp_soft" if what == "state" and run == "matpacpp_wta" else run
    return load_file(ORACLE / f"{shared}_{what}.safetensors")


def facts(run):
    """What `info.json` says of a run."""
    return next(item for item in json.loads((ORACLE / "info.json").read_text())["runs"] if item["tag"] == run)


def schedules():
    """Tables of [update, value] of the production schedules."""
    return json.loads((ORACLE / "info.json").read_text())["schedules"]


def to_time_major(patches):
    """Frequency-major patches [..., N, D] in our order."""
    rows = patches.unflatten(-2, (ROWS, COLUMNS))
    return rows.transpose(-3, -2).flatten(-3, -2)


def renamed(tensors):
    """Parameters, or their gradients, by our names and in our layouts."""
    found, heads = {}, {"weight": [], "bias": []}
    for key, value in sorted(tensors.items()):
        if key.startswith("mcl_heads."):
            heads[key.rsplit(".", 1)[1]].append(value)
            continue
        name = key
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        if key.endswith("pos_embed"):
            value = torch.cat([value[:, :1], to_time_major(value[:, 1:])], dim=1)
        elif key == "patch_embed.proj.weight":
            value = value.transpose(2, 3)
        elif key.endswith("center"):
            value = value.flatten()
        found[name] = value
    if heads["weight"]:  # one linear layer stands for all of theirs, and the one they leave unused goes
        found |= {f"objective.to_targets.{kind}": torch.cat(values) for kind, values in heads.items()}
    return found


def settings(run):
    """The settings of a stored run."""
    steps, hypotheses = STEPS, 1 if run == "matpac" else 5
    last = 0.99999 if run == "matpacpp_wta" else 1.0  # beyond the end their heads use that
    return MatpacSettings(
        predictor={"width": 32, "depth": 2, "heads": 4},
        hypotheses=hypotheses,
        hypothesis_temperature=(0.1, 0.1 * 0.99997 ** (400_000 if run == "matpacpp_wta" else steps)),
        classification={"hidden": 40, "classes": 64, "warmup": WARMUP / STEPS, "decay": (0.998, last)},
    )


def progress(run):
    """How far the stored step is."""
    return min(facts(run)["step"] / STEPS, 1.0)


def model(run):
    """Encoder and objective with the stored weights, at the stored step, in training."""
    config = AudioMosaicConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=3,
        window_frames=FRAMES,
        num_mel_bins=BINS,
        patch_norm=False,
        pre_norm=False,
        fixed_positions=True,
        final_norm="layernorm",
        objective=settings(run).model_dump(),
    )
    built = AudioMosaicForPreTraining(config)
    state = renamed(stored(run, "state"))
    state["objective.progress.done"] = torch.tensor(progress(run), dtype=torch.float64)
    built.load_state_dict(state)
    return built.train()


def inputs(run):
    """View and mask of the stored step, and the order of its visible and masked tokens in ours."""
    arrays = stored(run, "io")
    shuffled = arrays["ids_shuffle"]
    ours = (shuffled % COLUMNS) * ROWS + shuffled // COLUMNS
    keep, hidden = ours[:, :VISIBLE].sort(dim=1), ours[:, VISIBLE:].sort(dim=1)
    restore = torch.cat([keep.values, hidden.values], dim=1).argsort(dim=1)
    mask = PatchMask(keep.values, hidden.values, restore, torch.ones_like(restore, dtype=torch.bool))
    return arrays["source"].transpose(1, 2), mask, keep.indices, hidden.indices


def taken(x, order):
    """Rows of x [B, n, ...] in another order [B, n]."""
    return x.take_along_dim(order.view(*order.shape, *[1] * (x.ndim - 2)), dim=1)
