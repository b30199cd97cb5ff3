"""From a batch of labelled clips to the classifier's inputs, on the training device."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from almosaic.data.augment import Draws, augment_log_mel, augment_waveforms
from almosaic.data.clips import BadClips
from almosaic.data.labelled import Targets
from almosaic.data.mixup import centred, mix
from almosaic.data.steps import beta_ten
from almosaic.encoder import AudioMosaicConfig
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.masking import PatchGrid, draw_mask, score_count
from almosaic.training.log_mel_pool import LogMelPool
from almosaic.training.views import path_noise

if TYPE_CHECKING:
    from almosaic.training.finetune import FinetuneSettings


class LabelledBatches:
    """Augments, mixes, transforms and masks a training batch; draws are keyed by (seed, stage, epoch, clip).

    The second clip of a mixture is augmented with draws of its own, keyed by the first.
    """

    def __init__(
        self,
        settings: "FinetuneSettings",
        extractor: AudioMosaicFeatureExtractor,
        targets: Targets,
        pool: LogMelPool | None,
        bad: BadClips,
        config: AudioMosaicConfig,
        *,
        seed: int,
        stage: str,
    ) -> None:
        self.settings, self.extractor, self.targets = settings, extractor, targets
        self.pool, self.bad = pool, bad
        self.key = (seed, stage)
        self.grid = PatchGrid.of(extractor.window_frames, extractor.num_mel_bins, config.patch_size)
        self.depth = config.num_hidden_layers if config.drop_path_rate > 0 else 0

    def __call__(self, batch: dict[str, Any], epoch: int, progress: float) -> dict[str, Any]:
        """Clips by number, with `waveforms` [B, S] and `lengths` [B] unless pooled, to the model's inputs.

        Gives `input_features` [B, T, F], `input_features_mask` [B, T], `labels` [B] or [B, C]; where tokens
        are masked `ids_keep` [B, K], and for an encoder with drop path `path_noise` [B, depth, 2].

        Raises:
            AlmosaicError: too many clips are bad.
        """
        self.bad.note(batch["bad_clips"])
        chosen, clips = self.settings, batch["clip_index"]
        drawn = Draws((*self.key, epoch, 0), clips, clips.device)
        hot = self.targets.multi_hot(clips.tolist()).to(clips.device)
        if self.pool is not None:
            log_mel, frames = (part.to(clips.device) for part in self.pool.take(clips.tolist()))
        else:
            waveforms, hot = self._mixed(batch, hot, drawn, epoch)
            log_mel, frames = self.extractor.log_mel(waveforms, batch["lengths"])
        log_mel = augment_log_mel(log_mel, frames, chosen.augment, drawn, self.extractor.front_end)
        log_mel, frames = first_window(log_mel, frames, self.extractor.window_frames)
        if chosen.spec_augment is not None:
            log_mel = chosen.spec_augment.apply(log_mel, drawn)
        features, real, _ = self.extractor.cut(log_mel, frames)
        if chosen.feature_noise is not None:
            features = chosen.feature_noise.apply(features, drawn)
        inputs = {
            "input_features": features,
            "input_features_mask": real,
            "labels": hot if chosen.loss == "bce" else hot.argmax(dim=1),
        }
        if chosen.token_mask is not None:
            inputs["ids_keep"] = self._kept(clips, epoch)
        if self.depth:
            inputs["path_noise"] = path_noise(drawn, self.depth)
        return inputs

    def _mixed(self, batch: dict[str, Any], hot: Tensor, drawn: Draws, epoch: int) -> tuple[Tensor, Tensor]:
        """Augmented waveforms [B, S] and targets [B, C], mixed where a row has a partner."""
        steps, lengths = self.settings.augment, batch["lengths"]
        if "mixed_rows" not in batch:
            return augment_waveforms(batch["waveforms"], lengths, steps, drawn), hot
        waveforms = augment_waveforms(centred(batch["waveforms"], lengths), lengths, steps, drawn)
        rows: Tensor = batch["mixed_rows"]
        clips, partner_lengths = batch["clip_index"][rows], batch["partner_lengths"]
        partners = augment_waveforms(
            centred(batch["partner_waveforms"], partner_lengths),
            partner_lengths,
            steps,
            Draws((*self.key, epoch, 1), clips, clips.device),
        )
        shares = beta_ten(Draws((*self.key, epoch, "mixup"), clips, clips.device).uniform("share", 19))
        second = self.targets.multi_hot(batch["partner_index"].tolist()).to(hot.device)
        waveforms[rows] = mix(waveforms[rows], lengths[rows], partners, shares)
        hot[rows] = shares[:, None] * hot[rows] + (1.0 - shares[:, None]) * second
        return waveforms, hot

    def _kept(self, clips: Tensor, epoch: int) -> Tensor:
        """Kept patches [B, K]: columns, then bands, padded ones like any other, as published."""
        mask = self.settings.token_mask
        assert mask is not None
        drawn = Draws((*self.key, epoch), clips, clips.device)
        return draw_mask(mask, self.grid, drawn.uniform("tokens", score_count(mask, self.grid))).ids_keep


def first_window(log_mel: Tensor, frames: Tensor, window_frames: int) -> tuple[Tensor, Tensor]:
    """Cut or pad log-mel [B, T', F] with 0.0 to one window [B, T, F], and its own frames [B]."""
    missing = max(0, window_frames - log_mel.shape[1])
    padded = torch.nn.functional.pad(log_mel[:, :window_frames], (0, 0, 0, missing))
    return padded, frames.clamp(max=window_frames)
