"""From a batch of clips to masked, augmented views, on the training device."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from almosaic.data.augment import Draws, WaveformStep, augment_log_mel, augment_waveforms
from almosaic.data.clips import BadClips
from almosaic.encoder import AudioMosaicConfig
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor, log_mel_fbank
from almosaic.masking import PatchGrid, draw_mask, score_count
from almosaic.training.log_mel_pool import LogMelPool

if TYPE_CHECKING:
    from almosaic.training.pretrain import PretrainSettings


class ViewMaker:
    """Augments, transforms, normalises and masks a batch, once per view.

    Every draw depends on (seed, stage, epoch, view, clip) alone, so that resuming, worker count and number of
    processes change nothing.
    """

    def __init__(
        self,
        settings: "PretrainSettings",
        extractor: AudioMosaicFeatureExtractor,
        pool: LogMelPool | None,
        bad: BadClips,
        *,
        config: AudioMosaicConfig,
        seed: int,
        stage: str,
    ) -> None:
        self.masks = [view.mask for view in settings.views]
        self.steps = settings.augment
        self.on_waveforms = any(isinstance(step, WaveformStep) for step in self.steps)
        self.extractor, self.pool, self.bad = extractor, pool, bad
        self.key = (seed, stage)
        self.grid = PatchGrid.of(extractor.window_frames, extractor.num_mel_bins, config.patch_size)
        self.depth = config.num_hidden_layers if config.drop_path_rate > 0 else 0

    def __call__(self, batch: dict[str, Any], epoch: int, progress: float) -> dict[str, Any]:
        """Clips by number, with `waveforms` [B, S] and `lengths` [B] unless pooled, to what the model takes.

        That is `views`, `masks` and, for an encoder with drop path, `path_noise`, one of each per view.

        Raises:
            AlmosaicError: a clip is longer than one window, or too many clips are bad.
        """
        self.bad.note(batch["bad_clips"])
        clips: Tensor = batch["clip_index"]
        unchanged = None if self.on_waveforms else self._log_mel(batch)
        views, masks, noise = [], [], []
        for number, mask in enumerate(self.masks):
            drawn = Draws((*self.key, epoch, number), clips, clips.device)
            log_mel, frames = unchanged or self._log_mel(batch, drawn)
            view, real = self._window(augment_log_mel(log_mel, frames, self.steps, drawn), frames)
            views.append(view)
            scores = drawn.uniform("mask", score_count(mask, self.grid))
            masks.append(draw_mask(mask, self.grid, scores, valid=self.grid.valid_patches(real)))
            noise.append(path_noise(drawn, self.depth))
        inputs = {"views": views, "masks": masks, "metrics": {"pad_fraction": 1.0 - real.float().mean()}}
        return inputs | ({"path_noise": noise} if self.depth else {})

    def _log_mel(self, batch: dict[str, Any], drawn: Draws | None = None) -> tuple[Tensor, Tensor]:
        clips = batch["clip_index"]
        if self.pool is not None:
            log_mel, frames = self.pool.take(clips.tolist())
            return log_mel.to(clips.device), frames.to(clips.device)
        waveforms, lengths = batch["waveforms"], batch["lengths"]
        if drawn is not None:
            waveforms = augment_waveforms(waveforms, lengths, self.steps, drawn)
        return log_mel_fbank(waveforms, lengths, num_mel_bins=self.extractor.num_mel_bins)

    def _window(self, log_mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The one window of each clip, [B, T, F] normalised, and its real frames [B, T]."""
        features, real, windows = self.extractor.cut(log_mel, frames)
        if len(features) != len(windows):
            raise AlmosaicError(
                f"a clip has {int(frames.max())} frames but a window holds {self.extractor.window_frames}; "
                "set a lower crop_seconds or a larger front_end.window_frames"
            )
        return features, real


def path_noise(drawn: Draws, depth: int) -> Tensor:
    """Uniforms [B, depth, 2] that decide which branches of which block drop path leaves out of a clip."""
    return drawn.uniform("drop path", 2 * depth).view(len(drawn.clip_index), depth, 2)
