"""The examples with attention against what their texts say, with models that have learned nothing."""

from __future__ import annotations

import itertools
import math
import random
from datetime import date

import pytest
import torch
from torch.nn import functional as F

import pykernels

pytestmark = pytest.mark.usefixtures("cpu_only")

CHARACTERS = 11


@pytest.fixture
def gpt():
    from examples.gpt import GPT

    return GPT(CHARACTERS, width=16, heads=2, layers=2, length=24).eval()


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.randint(CHARACTERS, (5,))


@pytest.fixture
def few():
    """A model of four characters and texts for it: all its short answers can be listed."""
    from examples.encoder_decoder import Normaliser

    text = torch.tensor([[1, 2, 3, 3, 1], [2, 2, 1, 0, 0], [3, 1, 2, 1, 0]])
    return Normaliser(4, hidden=6).eval(), text, torch.tensor([5, 3, 4])


def log_probability(model, text: torch.Tensor, begin: int) -> float:
    """Of the characters from `begin` on."""
    with torch.no_grad():
        steps = F.log_softmax(model(text[None, :-1])[0], 1)
    return steps.gather(1, text[1:, None])[begin - 1 :].sum().item()


# --- gpt


def test_positional_encoding_is_its_formula():
    from examples.gpt import positional_encoding

    found, width = positional_encoding(50, 12), 12
    for t in range(50):
        for i in range(width // 2):
            angle = t / 10000 ** (2 * i / width)
            assert found[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert found[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_character_does_not_see_those_after_it(gpt):
    text = torch.randint(CHARACTERS, (2, 20))
    other = torch.cat((text[:, :13], torch.randint(CHARACTERS, (2, 7))), 1)
    with torch.no_grad():
        torch.testing.assert_close(gpt(other)[:, :13], gpt(text)[:, :13])


@pytest.mark.parametrize("parts", [[20], [1] * 20, [7, 1, 12]])
def test_scores_over_the_cache_are_those_of_the_whole(gpt, parts):
    text, caches = torch.randint(CHARACTERS, (3, 20)), gpt.caches(3)
    with torch.no_grad():
        found = torch.cat([gpt(part, caches) for part in text.split(parts, 1)], 1)
        torch.testing.assert_close(found, gpt(text), atol=1e-5, rtol=1e-5)


def test_greedy_text_is_the_same_with_and_without_the_cache(gpt, prompt):
    from examples.gpt import greedy

    text, total = greedy(gpt, prompt, 19)
    without, total_without = greedy(gpt, prompt, 19, cached=False)
    assert torch.equal(text, without) and len(text) == 24
    assert total == pytest.approx(total_without, abs=1e-4)
    assert total == pytest.approx(log_probability(gpt, text, 5), abs=1e-4)


def test_a_beam_of_one_is_greedy(gpt, prompt):
    from examples.gpt import beam_search, greedy

    text, total = greedy(gpt, prompt, 19)
    found, of_found = beam_search(gpt, prompt, 19, width=1)
    assert torch.equal(found, text)
    assert of_found == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("width", [2, 5, 20])
def test_a_beam_is_never_worse_than_greedy(gpt, width):
    from examples.gpt import beam_search, greedy

    for _ in range(5):
        prompt = torch.randint(CHARACTERS, (5,))
        text, total = beam_search(gpt, prompt, 12, width)
        assert total >= greedy(gpt, prompt, 12)[1] - 1e-4
        assert total == pytest.approx(log_probability(gpt, text, 5), abs=1e-4)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_beam_of_all_texts_finds_the_best_that_ends(gpt, prompt, power):
    from examples.gpt import beam_search

    end, best = 4, (-math.inf, (), 0.0)
    for size in (1, 2, 3):
        for added in itertools.product(range(CHARACTERS), repeat=size):
            if end not in added[:-1] and (size == 3 or added[-1] == end):
                total = log_probability(gpt, torch.cat((prompt, torch.tensor(added))), 5)
                best = max(best, (total / size**power, added, total))
    text, total = beam_search(gpt, prompt, 3, width=CHARACTERS**2, end=end, power=power)
    assert tuple(text[5:].tolist()) == best[1]
    assert total == pytest.approx(best[2], abs=1e-4)


@pytest.mark.parametrize("layer", [torch.nn.TransformerEncoderLayer, pykernels.TransformerEncoderLayer])
def test_layers_with_the_same_weights_give_the_same_scores(gpt, layer):
    from examples.gpt import as_transformer

    for parameter in gpt.parameters():  # norms and biases too are then no ones and zeros
        torch.nn.init.normal_(parameter, std=0.3)
    text = torch.randint(CHARACTERS, (3, 24))
    with torch.no_grad():
        torch.testing.assert_close(as_transformer(gpt, layer)(text), gpt(text), atol=1e-4, rtol=1e-4)


def test_count_models_are_their_formulas():
    from examples.gpt import count_models

    learn, test = torch.tensor([0, 1, 0, 2, 0, 1]), torch.tensor([0, 1, 1])
    single = [math.log2((learn.tolist().count(c) + 1) / (6 + 3)) for c in (1, 1)]
    pairs = [math.log2((2 + 1) / (3 + 3)), math.log2((0 + 1) / (1 + 3))]
    assert count_models(learn, test, 3) == pytest.approx((-sum(single) / 2, -sum(pairs) / 2))


# --- encoder_decoder


def test_dates_are_written_in_forms_that_say_which_day_it_is():
    from examples.encoder_decoder import ALPHABET, as_written

    draw = random.Random(0)
    found = {as_written(date(1987, 3, 3), draw) for _ in range(3000)}
    assert {"3 March 1987", "03/03/87", "March 3rd, 1987", "3. Mar 1987", "Tuesday, 3 March 1987"} <= found
    assert all(set(text) <= set(ALPHABET) for text in found)


def test_dates_and_words_of_the_tests_are_new():
    from examples.encoder_decoder import learn_and_test

    learn, *tests = learn_and_test(3000, 300)
    for test in tests:
        for part in (0, 1):  # date, word
            assert not {pair[1].split()[part] for pair in learn} & {pair[1].split()[part] for pair in test}
    assert all(answer.islower() or not any(map(str.isalpha, answer)) for _, answer in learn)
    assert all(answer.split()[1][0].isupper() for _, answer in tests[1])


def test_p_final_is_its_formula_and_sums_to_one():
    from examples.encoder_decoder import p_final

    batch, rows, size, characters = 2, 3, 5, 4
    text = torch.randint(characters, (batch, size))
    p_out, weights = torch.randn(batch, rows, characters).softmax(2), torch.randn(batch, rows, size).softmax(2)
    p_gen = torch.rand(batch, rows, 1)
    found = p_final(p_out, p_gen, weights, text)
    torch.testing.assert_close(found.sum(2), torch.ones(batch, rows))
    for b, i, c in itertools.product(range(batch), range(rows), range(characters)):
        copied = sum(weights[b, i, j].item() for j in range(size) if text[b, j] == c)
        expected = p_gen[b, i, 0] * p_out[b, i, c] + (1 - p_gen[b, i, 0]) * copied
        assert found[b, i, c].item() == pytest.approx(expected.item(), abs=1e-6)


def test_probabilities_of_a_model_sum_to_one_and_padding_is_not_looked_at(few):
    model, text, lengths = few
    with torch.no_grad():
        memory, state = model.read(text, lengths)
        probabilities, _, weights, _ = model.write(memory, torch.randint(4, (3, 6)), state)
    torch.testing.assert_close(probabilities.sum(2), torch.ones(3, 6))
    assert all(bool((weights[b, :, length:] == 0).all()) for b, length in enumerate(lengths))


def test_steps_give_what_the_whole_answer_gives(few):
    model, text, lengths = few
    before = torch.randint(4, (3, 6))
    with torch.no_grad():
        memory, begin = model.read(text, lengths)
        whole, state = model.write(memory, before, begin)[0], begin
        for step in range(6):
            probabilities, state, _, _ = model.write(memory, before[:, step : step + 1], state)
            torch.testing.assert_close(probabilities[:, 0], whole[:, step])


def test_a_beam_of_one_answers_greedily(few):
    from examples.encoder_decoder import as_text, beam_search, greedy

    model, text, lengths = few
    answers, totals = greedy(model, text, lengths, longest=8)
    found, of_found = beam_search(model, text, lengths, width=1, longest=8)
    assert [as_text(answer) for answer in found] == [as_text(answer) for answer in answers]
    torch.testing.assert_close(of_found, totals)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_beam_of_all_answers_finds_the_best(few, power):
    from examples.encoder_decoder import END, beam_search, greedy

    model, text, lengths = few
    answers, totals = beam_search(model, text, lengths, width=64, longest=4, power=power)
    best = [(-math.inf, (), 0.0)] * len(text)
    for written in itertools.product(range(4), repeat=4):
        size = written.index(END) + 1 if END in written else 4
        if any(written[size:]):  # nothing but its end follows an answer's end
            continue
        with torch.no_grad():
            memory, state = model.read(text, lengths)
            before = torch.tensor((END, *written[: size - 1])).expand(len(text), -1)
            probabilities = model.write(memory, before, state)[0]
        chosen = probabilities[:, torch.arange(size), torch.tensor(written[:size])].log().sum(1).tolist()
        best = [max(old, (total / size**power, written, total)) for old, total in zip(best, chosen, strict=True)]
    for answer, total, (_, written, of_best) in zip(answers, totals.tolist(), best, strict=True):
        assert (*answer, *[END] * (4 - len(answer))) == written
        assert total == pytest.approx(of_best, abs=1e-4)
    if power == 0:
        assert bool((totals >= greedy(model, text, lengths, longest=4)[1] - 1e-4).all())
