"""A short pretraining of every objective on clips of unlike lengths, for tests of what must not change it."""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/training"))
from stages import ENCODER, Tones, run_pretrain

from almosaic.data.texts import Description
from almosaic.objectives import OBJECTIVES, objective_settings

PREDICTOR = {"width": 16, "depth": 1, "heads": 2}
HINT = {"start": 0.25, "power": 2}
MATPAC = {
    "name": "matpac",
    "predictor": PREDICTOR,
    "encoder_decay": [0.9, 0.99],
    "classification": {"hidden": 16, "bottleneck": 8, "classes": 8, "decay": [0.9, 1.0], "warmup": 0.5},
}
WEIGHTED = {"name": "dispersion_weighted", "ratio": 0.7, "hint": HINT}
# Each with masks of its own; several masks of a clip wherever rows may not be clips.
RUNS = {
    "contrastive": {
        "objective": {"name": "contrastive", "projection_hidden": 16, "projection_size": 8},
        "views": [
            {"mask": {**WEIGHTED, "name": "dispersion_weighted_time", "ratio": 0.6}},
            {"mask": {**WEIGHTED, "name": "dispersion_weighted_frequency", "ratio": 0.4}},
        ],
    },
    "matpac": {"objective": MATPAC, "views": [{"mask": WEIGHTED, "masks": 2}]},
    "matpac++": {
        "objective": MATPAC | {"hypotheses": 3, "standardise_targets": True},
        "views": [{"mask": {"name": "random", "ratio": 0.7}}],
    },
    "masked_autoencoder": {
        "objective": {"name": "masked_autoencoder", "predictor": PREDICTOR},
        "views": [{"mask": {"name": "inverse_block", "ratio": 0.7, "block": 3}, "masks": 2}],
    },
    "token_prediction": {
        "objective": {"name": "token_prediction", "predictor": PREDICTOR, "quantiser": {"codes": 16}},
        "views": [{"mask": {"name": "block", "ratio": 0.6, "block": 3}}],
    },
    "position_prediction": {
        "objective": {"name": "position_prediction"},
        "views": [{"mask": {"name": "random", "ratio": 0.7}, "masks": 2}],
    },
    "clap": {
        "objective": {"name": "clap", "text_encoder": {"width": 16, "layers": 1, "heads": 2}},
        "views": [{"mask": {"name": "random", "ratio": 0.5}}],
    },
}
KINDS = {name: OBJECTIVES[type(objective_settings(run["objective"]))] for name, run in RUNS.items()}
ALONE = [name for name, kind in KINDS.items() if not kind.compares_clips]
STEPS = 6


class DescribedTones(Tones):
    """Noisy tones of one to two seconds, two of a kind."""

    def described(self, index):
        return Description((f"tone {index // 2}", f"hum {index // 2}"), (f"tone {index // 2}",))

    def undescribed(self, kind):
        return []


def run_objective(folder, name, resume=False, *, sgd=False, **optim):
    """Train `RUNS[name]` into a folder; logged lines step by step. With `sgd` rounding does not grow."""
    optim = {"steps": STEPS, "batch_size": 4, "log_steps": 1, "save_steps": 4} | optim
    if sgd:
        optim["trainer"] = {"optim": "sgd"} | optim.get("trainer", {})
    encoder = {**ENCODER, "num_hidden_layers": 2, "drop_path_rate": 0.2}
    objective = RUNS[name]["objective"] | {"lid_neighbours": None}
    changes = RUNS[name] | {"encoder": encoder, "objective": objective, "optim": optim}
    run_pretrain(folder, DescribedTones(), resume, **changes)
    log = json.loads((Path(folder) / "training_log.json").read_text())
    return [line for line in log if "train_runtime" not in line]


def state(folder):
    """Every tensor of the encoder and its objective, teachers, centres and progress included."""
    return load_file(Path(folder) / "pretraining/model.safetensors")
