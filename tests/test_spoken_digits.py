"""benchmarks/make_spoken_digits: features by hand and by librosa, files as the reader takes them."""

import numpy as np
import pytest
from scipy.io import wavfile

from benchmarks import make_spoken_digits as made
from jtssm import data


def tone(hertz, samples, height=0.5):
    return height * np.sin(2 * np.pi * hertz * np.arange(samples) / 8000)


def recordings(folder, rng, takes=(0, 1, 5, 10)):
    folder.mkdir()
    for digit in (0, 7):
        for speaker in ("theo", "george"):
            for take in takes:
                sound = tone(200 + 100 * digit + 7 * take, rng.integers(2000, 9500))
                path = folder / f"{digit}_{speaker}_{take}.wav"
                wavfile.write(path, 8000, (sound * 2**15).astype(np.int16))
    return folder


def test_a_tone_is_loudest_in_the_band_that_it_lies_in_and_ends_where_it_ends():
    """Slaney: below 1000 Hz bands are equally far apart, 200/3 Hz a mel."""
    step = made.mel(np.array(4000)) / 129
    for hertz in (300, 650, 930):
        found = made.features(tone(hertz, 2384))
        band = round(3 * hertz / 200 / step) - 1
        assert abs(int(found[:, 4].argmax()) - band) <= 1
        assert found.max() == 0.0
        assert found.min() == -80.0
        # frame k spans samples 256 k - 512 to 256 k + 512
        assert [int(k) for k in np.flatnonzero(found.max(0) > -80)] == list(range(12))


def test_scales_and_filters():
    np.testing.assert_allclose(made.mel(np.array([0, 200, 1000, 6400])), [0, 3, 15, 42])
    at = np.array([10.0, 700, 1500, 3999])
    np.testing.assert_allclose(made.hertz(made.mel(at)), at, rtol=1e-12)
    area = made.filters().sum(1) * 8000 / 1024
    np.testing.assert_allclose(area[40:], 1, atol=0.2)  # of triangles a few bins wide
    np.testing.assert_allclose(area.mean(), 1, atol=0.01)


def test_features_are_those_of_librosa_where_it_is_installed():
    librosa = pytest.importorskip("librosa")
    rng = np.random.default_rng(0)
    for samples in (2384, 9000):
        sound = rng.normal(size=samples) * np.linspace(1, 0, samples) * 0.1
        second = np.zeros(8000)
        second[: min(samples, 8000)] = sound[:8000]
        bands = librosa.feature.melspectrogram(
            y=second, sr=8000, n_fft=1024, hop_length=256, n_mels=128
        )
        np.testing.assert_allclose(
            made.features(sound), librosa.power_to_db(bands, ref=np.max), atol=1e-5
        )


def test_the_file_has_every_recording_by_its_name_and_is_read(tmp_path, capsys):
    folder = recordings(tmp_path / "recordings", np.random.default_rng(0))
    file = tmp_path / "spoken_digits.npz"
    made.main([str(folder), str(file)])
    with np.load(file) as arrays:
        assert [arrays[n].dtype.name for n in ("x", "y", "speaker", "index")] == ["float16"] + [
            "uint8"
        ] * 3
        assert list(arrays["speakers"]) == ["george", "theo"]
        # by name: 0, 1, 10, 5
        assert arrays["index"].tolist() == [0, 1, 10, 5] * 4
        assert arrays["y"].tolist() == [0] * 8 + [7] * 8
        assert arrays["speaker"].tolist() == ([0] * 4 + [1] * 4) * 2
        sound = made.read(folder / "0_george_10.wav")
        np.testing.assert_array_equal(
            arrays["x"][2], made.features(sound).ravel().astype(np.float16)
        )
    splits = data.load("spoken-digits", data_dir=tmp_path)
    assert [len(part.y) for part in splits] == [4, 4, 8]
    capsys.readouterr()
    made.main([str(folder), str(tmp_path / "again.npz"), "--compare", str(file)])
    assert "the same as" in capsys.readouterr().out
    wavfile.write(folder / "7_theo_5.wav", 8000, np.ones(300, np.int16))
    made.main([str(folder), str(tmp_path / "again.npz"), "--compare", str(file)])
    assert "x: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "rate", "sound", "message"),
    [
        ("0_a_0.wav", 16000, np.zeros(10, np.int16), "expected one channel of 8000 samples a sec"),
        ("0_a_0.wav", 8000, np.zeros((10, 2), np.int16), r"got \(10, 2\) of 8000"),
        ("zero.wav", 8000, np.zeros(10, np.int16), r"expected recordings DIGIT_.*\['zero.wav'\]"),
        ("zero.txt", 8000, np.zeros(10, np.int16), "got none"),
    ],
)
def test_other_recordings_are_refused(tmp_path, name, rate, sound, message):
    wavfile.write(tmp_path / name, rate, sound)
    with pytest.raises(ValueError, match=message):
        made.made(tmp_path)
