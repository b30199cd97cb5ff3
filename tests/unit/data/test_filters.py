"""Butterworth filters: the recursion and the closed response agree, with the promised corners."""

import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfilt, sosfilt_zi, sosfreqz

from almosaic.data.filters import butterworth, filter_by_recursion, filter_by_spectrum, sections

HIGH_PASS = torch.tensor([[20.0], [300.0], [2400.0], [1000.0]])
BAND_STOP = torch.tensor([[150.0, 250.0], [1.0, 399.0], [20.0, 7980.0], [2000.0, 7999.2]])
ORDERS = torch.tensor([4, 2, 3, 1])


def noise(rows=4, samples=20_000):
    return torch.from_numpy(np.random.default_rng(0).normal(0, 0.2, (rows, samples)).astype(np.float32))


@pytest.mark.parametrize("edges", [HIGH_PASS, BAND_STOP], ids=["high_pass", "band_stop"])
def test_spectrum_and_recursion_agree(edges):
    signal = noise()
    torch.testing.assert_close(
        filter_by_spectrum(signal, ORDERS, edges),
        filter_by_recursion(signal, ORDERS, edges),
        atol=2e-5,
        rtol=0,
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_sections_are_those_of_scipy(order):
    corners = [(20.0,), (500.0,), (7000.0,), (1.0, 399.0), (150.0, 250.0), (1000.0, 7999.2)]
    for edges in corners:
        kind = "highpass" if len(edges) == 1 else "bandstop"
        expected = butter(order, np.squeeze(edges), btype=kind, fs=16_000, output="sos")
        found = sections(order, np.array(edges))
        assert found.shape == expected.shape
        responses = [sosfreqz(filters, 4096)[1] for filters in (found, expected)]
        np.testing.assert_allclose(*responses, atol=1e-8)


@pytest.mark.parametrize("run", [filter_by_recursion, filter_by_spectrum])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_corners_and_slope(run, order):
    impulse = torch.zeros(2, 65_536)
    impulse[:, 0] = 1.0

    def level(edges, hertz):
        filtered = run(impulse, torch.tensor([order] * 2), torch.tensor(edges)).double()
        spectrum = torch.fft.rfft(filtered).abs()
        return 20 * spectrum[:, round(hertz * 65_536 / 16_000)].log10().numpy()

    high_pass, band_stop = [[400.0], [1600.0]], [[500.0, 900.0], [300.0, 3000.0]]
    assert level(high_pass, 400)[0] == pytest.approx(-3.01, abs=0.05)
    assert level(high_pass, 1600)[1] == pytest.approx(-3.01, abs=0.05)
    assert level(high_pass, 100)[0] - level(high_pass, 50)[0] == pytest.approx(6.02 * order, abs=0.3)
    assert abs(level(high_pass, 7000)[0]) < 0.05
    assert level(band_stop, 500)[0] == pytest.approx(-3.01, abs=0.1)
    assert level(band_stop, 900)[0] == pytest.approx(-3.01, abs=0.1)
    assert level(band_stop, 3000)[1] == pytest.approx(-3.01, abs=0.1)
    assert level(band_stop, 671)[0] < -60
    assert abs(level(band_stop, 20)[1]) < 0.05


@pytest.mark.parametrize("kind, edges", [("highpass", [700.0]), ("bandstop", [200.0, 900.0])])
def test_starts_in_the_steady_state_of_the_first_sample(kind, edges):
    signal = noise(1) + 0.7
    sections = butter(3, np.squeeze(edges), btype=kind, fs=16_000, output="sos")
    expected, _ = sosfilt(sections, signal[0], zi=sosfilt_zi(sections) * float(signal[0, 0]))
    found = butterworth(signal, torch.tensor([3]), torch.tensor([edges]))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_padding_does_not_reach_back():
    signal = noise(1, 5000) + 0.3
    arguments = (torch.tensor([4]), torch.tensor([[100.0, 3000.0]]))
    alone = butterworth(signal, *arguments)
    padded = torch.nn.functional.pad(signal, (0, 3000), value=9.0)
    found = butterworth(padded, *arguments)
    torch.testing.assert_close(found[:, :5000], alone)
