"""The audio-language model: fusion, checks, gradients, saving, and the traps of generation inputs."""

import pytest
import torch
from helpers_tiny import (
    QUERIES,
    answered,
    question,
    tiny_encoder,
    tiny_language_model,
    tiny_model,
    tiny_tokenizer,
    waveform,
)
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    Gemma3Config,
    Gemma3nTextConfig,
    LlamaForCausalLM,
)

from almosaic.alm import AlmosaicConfig, AlmosaicForConditionalGeneration, AlmosaicProcessor
from almosaic.alm.layout import AudioLayout
from almosaic.alm.projectors import MLPProjectorSettings
from almosaic.alm.vocabulary import grow_vocabulary
from almosaic.errors import AlmosaicError


@pytest.fixture
def batch(tiny):
    """Two rows: one clip of one window; a clip of two windows and one of one."""
    audio = [[waveform(0.4, 1)], [waveform(1.2, 2), waveform(0.3, 3)]]
    talks = [answered("yes"), answered("a dog barks", clips=2)]
    return tiny[1](talks, audio, add_generation_prompt=False)


def without_audio(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


def test_audio_tokens_take_the_place_of_placeholders_in_order(tiny, batch):
    model, processor = tiny
    seen = {}
    hook = model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
        expected = model.get_audio_features(
            batch["input_features"], batch["input_features_mask"]
        ).pooler_output
    hook.remove()
    places = batch["input_ids"] == processor.audio_token_id
    assert torch.equal(seen["inputs_embeds"][places], expected.flatten(0, 1))
    words = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(seen["inputs_embeds"][~places], words[~places])


def test_a_row_depends_on_its_own_clips_only(tiny, batch):
    model, _ = tiny
    with torch.no_grad():
        before = model(**batch).logits
        batch["input_features"][3] += 1.0
        after = model(**batch).logits
    changed = (after - before).abs().amax((1, 2))
    assert changed[0] == 0 and changed[1] > 1e-3


def test_cached_patch_tokens_give_the_same_logits(tiny, batch):
    model, _ = tiny
    with torch.no_grad():
        expected = model(**batch).logits
        features = batch.pop("input_features")
        tokens = model.get_audio_features(features, batch.pop("input_features_mask")).last_hidden_state
        assert tokens.shape == (4, 4, 8, 32)
        assert torch.equal(model(**batch, audio_features=tokens).logits, expected)


def test_the_chosen_layer_is_what_the_projector_reads(tiny, tmp_path, batch):
    model, _ = tiny_model(tmp_path, layer=0)
    features = batch["input_features"]
    with torch.no_grad():
        tokens = model.get_audio_features(features).last_hidden_state
        hidden = model.audio_tower(features, output_hidden_states=True).hidden_states
    assert torch.equal(tokens.flatten(1, 2), hidden[1][:, 1:])
    with pytest.raises(AlmosaicError, match="layer 2 does not exist; the encoder has blocks 0 to 1"):
        tiny_model(tmp_path, layer=2)


def test_patch_tokens_are_time_major(tiny):
    model, _ = tiny
    features = torch.randn(1, 64, 128)
    tower = model.audio_tower
    with torch.no_grad():
        before = tower.patch_embed(features).unflatten(1, (4, 8))
        features[0, 17, 40] += 5.0
        moved = (tower.patch_embed(features).unflatten(1, (4, 8)) - before).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[1, 2]]


def test_every_row_is_checked_with_both_numbers(tiny, batch):
    model, processor = tiny
    place = (batch["input_ids"][1] == processor.audio_token_id).nonzero()[0]
    batch["input_ids"][1, place] = 5
    with pytest.raises(AlmosaicError, match="row 1 has 11 audio placeholders but 12 audio tokens"):
        model(**batch)
    # Rows that are wrong in opposite ways have the right total, and are still wrong.
    swapped = {**batch, "audio_clips": torch.tensor([2, 1])}
    with pytest.raises(AlmosaicError, match="row 0 has 4 audio placeholders but 12"):
        model(**swapped)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("audio_windows", [1, 1, 1], "counts 3 windows but 4 came"),
        ("audio_clips", [1, 1], "counts 2 clips in 2 rows but 3 clips came"),
        ("audio_clips", None, "counts 2 clips in 2 rows but 3 clips came"),
    ],
)
def test_counts_that_do_not_add_up_are_named(tiny, batch, name, value, message):
    batch[name] = None if value is None else torch.tensor(value)
    with pytest.raises(AlmosaicError, match=message):
        tiny[0](**batch)


def test_placeholders_without_audio_are_an_error_and_counts_without_audio_are_not(tiny, batch):
    model, processor = tiny
    with pytest.raises(AlmosaicError, match=r"16 <\|audio\|> placeholders but no audio came"):
        model(**without_audio(batch))
    text = processor([question(clips=0)])
    assert model(**text, audio_clips=torch.tensor([3])).logits.shape[0] == 1


def test_the_pad_token_is_looked_up_in_place_of_the_audio_token(tiny, batch):
    model, processor = tiny
    looked_up = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: looked_up.append(args[0])
    )
    model(**batch)
    hook.remove()
    places = batch["input_ids"] == processor.audio_token_id
    assert (looked_up[0][places] == processor.tokenizer.pad_token_id).all()
    assert torch.equal(looked_up[0][~places], batch["input_ids"][~places])


def test_the_table_grows_only_when_it_is_full_by_the_mean_of_its_rows(tmp_path):
    size = len(tiny_tokenizer(tmp_path))
    for tied in (False, True):
        model, _ = tiny_model(tmp_path, language_model=tiny_language_model(size, tie_word_embeddings=tied))
        for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            assert table.shape[0] == size + 1 == model.config.text_config.vocab_size
            assert torch.allclose(table[size], table[:size].mean(0), atol=1e-6)
    roomy = tiny_language_model(400)
    before = roomy.get_input_embeddings().weight.clone()
    grow_vocabulary(roomy, 341)
    assert torch.equal(roomy.get_input_embeddings().weight, before)


def test_parts_keep_their_weights_and_the_projector_starts_at_the_scale_of_words(tmp_path):
    size = len(tiny_tokenizer(tmp_path))
    tower, language_model = tiny_encoder(seed=3), tiny_language_model(size, seed=4)
    model, _ = tiny_model(tmp_path, language_model=language_model, audio_tower=tower)
    for part, fresh in (
        (model.audio_tower, tiny_encoder(seed=3)),
        (model.language_model, tiny_language_model(size, seed=4)),
    ):
        for name, value in fresh.state_dict().items():
            assert torch.equal(part.state_dict()[name][: len(value)], value), name
    scale = model.get_input_embeddings().weight.std().item()
    assert model.multi_modal_projector.output_norm.weight.mean().item() == pytest.approx(scale)


def test_a_layer_put_in_by_hand_is_not_initialised_afresh(tmp_path):
    language_model = tiny_language_model(len(tiny_tokenizer(tmp_path)))
    layer = torch.nn.Linear(32, 64, bias=False)
    expected = layer.weight.detach().clone()
    language_model.model.layers[0].mlp.up_proj = layer
    model, _ = tiny_model(tmp_path, language_model=language_model)
    assert torch.equal(model.language_model.model.layers[0].mlp.up_proj.weight, expected)


def test_the_loss_is_divided_by_the_items_of_all_accumulated_batches(tiny, batch):
    model, _ = tiny
    items = int((batch["labels"][:, 1:] != -100).sum())
    mean = model(**batch).loss
    assert model(**batch, num_items_in_batch=items).loss.item() == pytest.approx(mean.item(), rel=1e-5)
    assert model(**batch, num_items_in_batch=4 * items).loss.item() == pytest.approx(
        mean.item() / 4, rel=1e-5
    )


def test_a_batch_without_audio_still_reaches_every_trainable_audio_weight(tmp_path):
    for projector in ("mlp", "qformer", "segment_qformer", "pool"):
        model, processor = tiny_model(tmp_path, projector)
        talk = processor([answered(clips=0)], add_generation_prompt=False)
        for tower_trains in (False, True):
            model.zero_grad()
            model.audio_tower.requires_grad_(tower_trains)
            model.train()
            loss = model(**talk).loss
            loss.backward()
            audio = [*model.multi_modal_projector.parameters()] + [
                *model.audio_tower.parameters()
            ] * tower_trains
            assert all(parameter.grad is not None and not parameter.grad.any() for parameter in audio)
            assert loss.item() == pytest.approx(model.eval()(**talk).loss.item(), rel=1e-6)


def test_a_frozen_encoder_stays_deterministic_in_training(tmp_path):
    model, _ = tiny_model(tmp_path, audio_tower=tiny_encoder(drop_path_rate=0.5))
    assert model.train().audio_tower.training
    model.audio_tower.requires_grad_(False)
    assert not model.train().audio_tower.training and model.multi_modal_projector.training


def test_positions_are_counted_from_the_mask(tiny, monkeypatch):
    model, processor = tiny
    seen = []
    forward = model.language_model.forward
    monkeypatch.setattr(
        model.language_model, "forward", lambda **given: seen.append(given) or forward(**given)
    )
    talks, audio = (
        [question(clips=0), question("is there rain in the recording", clips=1)],
        [[], [waveform(0.4)]],
    )
    padded = processor(talks, audio)
    alone = processor(talks[:1])
    with torch.no_grad():
        real = padded["attention_mask"][0].bool()
        assert torch.allclose(model(**padded).logits[0, real], model(**alone).logits[0], atol=1e-4)
    assert seen[0]["position_ids"][0, real].tolist() == list(range(int(real.sum())))


@pytest.mark.parametrize("projector", ["mlp", "qformer", "segment_qformer", "pool"])
@pytest.mark.parametrize("tied", [False, True])
def test_auto_classes_reload_with_equal_logits(tmp_path, batch, projector, tied):
    size = len(tiny_tokenizer(tmp_path))
    language_model = tiny_language_model(size, tie_word_embeddings=tied)
    model, processor = tiny_model(tmp_path, projector, language_model=language_model)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "model")
    assert isinstance(loaded, AlmosaicForConditionalGeneration)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "model"), AlmosaicProcessor)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


def test_a_half_precision_language_model_comes_back_as_it_was(tmp_path, batch):
    size = len(tiny_tokenizer(tmp_path))
    tiny_language_model(size).save_pretrained(tmp_path / "lm")
    half = LlamaForCausalLM.from_pretrained(tmp_path / "lm", dtype=torch.bfloat16)
    model, _ = tiny_model(tmp_path, language_model=half)
    model.save_pretrained(tmp_path / "model")
    loaded = AlmosaicForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert loaded.language_model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in loaded.multi_modal_projector.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_configuration_from_dictionaries(tiny):
    config = tiny[0].config
    again = AlmosaicConfig(**config.to_dict())
    assert again.audio_config.to_dict() == config.audio_config.to_dict()
    assert again.text_config.hidden_size == 32 and again.queries == QUERIES
    with pytest.raises(AlmosaicError, match="needs a model_type"):
        AlmosaicConfig(text_config={"hidden_size": 8})


def test_a_model_that_reads_more_than_words_once_is_refused():
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    images = Gemma3Config(text_config={"vocab_size": 400, "head_dim": 8} | tiny, vision_config=tiny)
    with pytest.raises(AlmosaicError, match="a model of text, found gemma3, which reads more"):
        AlmosaicForConditionalGeneration(AlmosaicConfig(text_config=images))
    with pytest.raises(
        AlmosaicError, match="looks a word up once, found gemma3n_text, which does so in every"
    ):
        AlmosaicForConditionalGeneration(AlmosaicConfig(text_config=Gemma3nTextConfig()))


def test_more_queries_than_time_patches_are_refused_at_once(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    parts = tiny_encoder(), tiny_language_model(len(tokenizer)), MLPProjectorSettings(queries=5), tokenizer
    with pytest.raises(AlmosaicError, match="5 tokens but a window has 4 time patches"):
        AlmosaicForConditionalGeneration.from_parts(*parts)


def test_rows_of_windows_are_repeated_whole():
    layout = AudioLayout(windows=[1, 2, 1], clips=[2, 0, 1])
    audio = {
        "input_features": torch.arange(4.0),
        "audio_windows": torch.tensor([1, 2, 1]),
        "audio_clips": torch.tensor([2, 0, 1]),
    }
    twice = layout.expand(audio, 2)
    assert twice["input_features"].tolist() == [0, 1, 2, 0, 1, 2, 3, 3]
    assert twice["audio_windows"].tolist() == [1, 2, 1, 2, 1, 1]
    assert twice["audio_clips"].tolist() == [2, 2, 0, 0, 1, 1]
