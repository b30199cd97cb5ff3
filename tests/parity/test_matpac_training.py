"""One training step of the MATPAC authors' code: tokens, predictions, losses, gradients, centre, teachers."""

import pytest
import torch
from matpac_trained import RUNS, WIDTH, facts, inputs, model, needs_oracle, progress, renamed, stored, taken
from released import close

from almosaic.objectives.latent_losses import class_losses, cosine_losses, hypothesis_weights

pytestmark = needs_oracle
TOKENS = {"atol": 2e-5, "rtol": 1e-5}  # what the stored files suggest


class Step:
    """Everything between input and loss of a stored run, computed by our parts."""

    def __init__(self, run):
        self.stored, self.model = stored(run, "io"), model(run)
        self.view, self.mask, self.visible, self.hidden = inputs(run)
        encoder, objective = self.model.encoder, self.model.objective
        self.student = encoder(self.view, ids_keep=self.mask.ids_keep).last_hidden_state
        self.predictions = objective.predict(self.student, self.mask, encoder.config.grid)
        with torch.no_grad():
            self.embedded = encoder.embed(self.view, self.mask.ids_masked)
            self.teacher = objective.encoder_teacher(self.embedded)
        self.per_head = cosine_losses(self.predictions, self.teacher[:, 1:])

    def expected(self, name):
        """A stored array over masked patches, in our order of them."""
        return taken(self.stored[name], self.hidden)


@pytest.fixture(scope="module", params=RUNS)
def run(request):
    return request.param


@pytest.fixture(scope="module")
def step(run):
    return Step(run)


@pytest.fixture(scope="module")
def whole(run):
    """The same step through the model, and after it."""
    built = model(run)
    view, mask, *_ = inputs(run)
    output = built([view], [mask])
    output.loss.backward()
    built.after_step(progress(run))
    return built, output


def test_the_mask_is_theirs(step):
    noise = step.stored["noise"]
    kept = noise.argsort(dim=1)[:, : step.mask.ids_keep.shape[1]]
    assert torch.equal((kept % 6) * 3 + kept // 6, step.mask.ids_keep.gather(1, step.visible.argsort(dim=1)))


def test_tokens_of_student_and_teacher(step):
    close(step.student[:, 0], step.stored["student_tokens"][:, 0], **TOKENS)
    close(step.student[:, 1:], taken(step.stored["student_tokens"][:, 1:], step.visible), **TOKENS)
    close(step.embedded[:, 1:], step.expected("masked_patch_embeddings"), **TOKENS)
    close(step.teacher[:, 0], step.stored["teacher_tokens"][:, 0], **TOKENS)
    close(step.teacher[:, 1:], taken(step.stored["teacher_tokens"][:, 1:], step.hidden), **TOKENS)


def test_predictions(run, step):
    expected = step.expected("predictions")
    close(step.predictions, expected if "pp" in run else expected[:, :, None], **TOKENS)
    assert step.predictions.shape[-1] == WIDTH


def test_prediction_loss_and_its_hypotheses(run, step):
    objective = step.model.objective
    temperature = objective.progress.geometric(objective.settings.hypothesis_temperature)
    if "pp" in run:
        close(step.per_head, step.expected("loss_pred_per_head"), **TOKENS)
        assert torch.equal(step.per_head.argmin(-1), step.expected("best_head"))
        assert temperature.item() == pytest.approx(facts(run)["mcl_temp"], rel=1e-5)
    weights = hypothesis_weights(step.per_head, temperature, objective.settings.hard_below)
    close((weights * step.per_head).sum(-1), step.expected("loss_pred_per_token"), **TOKENS)


def test_classification(run, step):
    objective = step.model.objective
    classes = objective.settings.classification
    best = step.per_head.argmin(-1)[..., None, None]
    chosen = step.predictions.take_along_dim(best, dim=2).squeeze(2)
    if "pp" in run:
        close(chosen, step.expected("best_prediction"), **TOKENS)
    logits, targets = objective.head(chosen), objective.head_teacher(step.teacher[:, 1:])
    close(logits, step.expected("student_logits"), **TOKENS)
    close(targets, step.expected("teacher_logits"), **TOKENS)
    temperature = objective.progress.linear(classes.teacher_temperature, classes.warmup)
    assert temperature.item() == pytest.approx(facts(run)["teacher_temp"], rel=1e-6)
    valid = torch.ones_like(step.mask.ids_masked, dtype=torch.bool)
    probabilities = objective.class_targets(targets, valid, temperature)
    close(probabilities, step.expected("teacher_probs"), **TOKENS)
    losses = class_losses(logits, probabilities, classes.student_temperature)
    close(losses, step.expected("loss_cls_per_token"), **TOKENS)


def test_total_loss(run, whole):
    expected, (_, output) = stored(run, "io"), whole
    close(output.loss, expected["loss_total"].squeeze(), **TOKENS)
    close(output.metrics["prediction_loss"], expected["loss_pred_mean"].squeeze(), **TOKENS)
    close(output.metrics["classification_loss"], expected["loss_cls_mean"].squeeze(), **TOKENS)


def test_gradients(run, whole):
    if run == "matpacpp_wta":
        pytest.skip("no gradients are stored for the hard run")
    gradients = {key.removeprefix("grad."): value for key, value in stored(run, "grads").items()}
    expected = renamed(gradients)
    found = {name: p.grad for name, p in whole[0].named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        close(gradient, expected[name], atol=1e-6)


def test_centre_after_the_step(run, whole):
    close(whole[0].objective.class_targets.centre, stored(run, "io")["center_after"].flatten(), atol=2e-6)


def test_teachers_after_the_step(run, whole):
    if run == "matpacpp_soft":
        pytest.skip("no teachers are stored for the soft run")
    expected = renamed(stored(run, "ema_after"))
    before, after = model(run).state_dict(), whole[0].state_dict()
    moved = 0
    for name, value in expected.items():
        close(after[name], value, atol=1e-7)
        moved += not torch.equal(before[name], value)
    assert moved == facts(run)["ema_changed"]
    teachers = {name for name in after if "teacher" in name}
    assert expected.keys() == teachers
