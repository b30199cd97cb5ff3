"""A network that is not trained but follows another one: an exponential moving average of its weights."""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.modeling import AudioMosaicModel, Block
from almosaic.errors import AlmosaicError


class Teacher(nn.Module):
    """A network that gives targets: without gradient, always in evaluation mode, never trained.

    It starts with weights of its own, drawn independently of its student's.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.train(False)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, whatever is asked for."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network makes of its inputs."""
        return cast(Tensor, self.network(*inputs).detach())

    def follow(self, student: Mapping[str, Tensor], decay: float) -> None:
        """Move every weight towards the student's of the same name, see `ema_update`."""
        ema_update(((own, student[name]) for name, own in self.network.named_parameters()), decay)


class BlocksAndNorm(nn.Module):
    """The part of an encoder after its embedding, with a final norm in any case: [B, L, D] -> [B, L, D]."""

    def __init__(self, config: AudioMosaicConfig):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, 0.0) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """What `AudioMosaicModel.embed` gives, through all blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens))


class EncoderTeacher(Teacher):
    """The teacher of an encoder: own blocks and final norm over the student's embedding (M2D, MATPAC).

    An encoder without a final norm gets one here, as a trained `norm` that the objective applies to the
    student's tokens: targets and predictions are then normalised alike whichever way it is built.
    """

    def __init__(self, config: AudioMosaicConfig):
        super().__init__(BlocksAndNorm(config))

    @torch.no_grad()
    def targets(self, encoder: AudioMosaicModel, view: Tensor, ids: Tensor) -> Tensor:
        """Tokens [B, M, D] of the patches ids [B, M] of a view [B, T, F]; they see CLS and each other."""
        tokens: Tensor = self(encoder.embed(view, ids))
        return tokens[:, 1:]

    def follow_encoder(self, encoder: AudioMosaicModel, norm: nn.Module, decay: float) -> None:
        """One update from the encoder's blocks and the norm that its tokens go through in the end."""
        self.follow({**_named("blocks", encoder.blocks), **_named("norm", norm)}, decay)


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}


@torch.no_grad()
def ema_update(pairs: Iterable[tuple[Tensor, Tensor]], decay: float) -> None:
    """Set teacher to decay * teacher + (1 - decay) * student, for all (teacher, student) pairs.

    Raises:
        AlmosaicError: a teacher in less than float32, in which the steps of a slow average are rounded away.
    """
    teachers, students = (list(side) for side in zip(*pairs, strict=True))
    if narrow := next((t.dtype for t in teachers if t.dtype not in (torch.float32, torch.float64)), None):
        raise AlmosaicError(
            f"expected a teacher in float32, found {narrow}: load the model with dtype float32 and train "
            "with precision: bf16, which casts activations only"
        )
    torch._foreach_mul_(teachers, decay)
    torch._foreach_add_(teachers, students, alpha=1.0 - decay)
