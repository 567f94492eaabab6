"""Makes spoken-digits.npz, the features IST was run on, from the Free Spoken Digit Dataset.

    python -m benchmarks.make_spoken_digits free-spoken-digit-dataset/recordings spoken_digits.npz

The folder holds one mono file of 8000 samples a second for each recording,
`{digit}_{speaker}_{take}.wav`. A recording is cut, or filled with zeros, to one second; its power
spectrogram (frames of 1024 samples under a Hann window, every 256 samples, zeros beyond both ends)
goes through 128 triangular filters on Slaney's mel scale up to 4000 Hz, each of area one; decibels
relative to the recording's maximum, at least -80: 128 x 32 numbers, as 16-bit floats. Files come in
the order of their names.

What it writes is compared with librosa's `melspectrogram` and `power_to_db` of the same numbers by the
tests where librosa is installed. Which window, step and scale the file of 3000 recordings that the
project's results rest on was made with was read off that file (numbers of frames that are not silent,
harmonics equally spaced below 1000 Hz, the highest bands as full as the others): the recordings were not
at hand to make it again and compare. `--compare FILE` does that. Takes a minute or so.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import signal
from scipy.io import wavfile

from jtssm import files

RATE = 8000  # samples a second, of which a recording gives one second
FRAME, STEP, BANDS = 1024, 256, 128
LEAST = 1e-10  # power
RANGE = 80.0  # decibels below the maximum
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


def mel(hertz: np.ndarray) -> np.ndarray:
    """Slaney's scale: 3 mel every 200 Hz up to 1000 Hz, then 27 for every factor of 6.4."""
    above = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, 3 * hertz / 200, above)


def hertz(mels: np.ndarray) -> np.ndarray:
    """The inverse of `mel`."""
    return np.where(mels < 15, 200 * mels / 3, 1000 * 6.4 ** ((mels - 15) / 27))


def filters() -> np.ndarray:
    """Triangles [bands, frequencies] over the spectrum, each of area 1 in hertz."""
    at = np.fft.rfftfreq(FRAME, 1 / RATE)
    corners = hertz(np.linspace(0, mel(np.array(RATE / 2)), BANDS + 2))
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (at - low) / (middle - low), (high - at) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)


def features(sound: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram [128, 32] in decibels, -80..0, of samples in -1..1."""
    second = np.zeros(RATE)
    second[: min(len(sound), RATE)] = sound[:RATE]
    around = np.pad(second, FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(around, FRAME)[::STEP]
    power = np.abs(np.fft.rfft(frames * signal.get_window("hann", FRAME))) ** 2
    bands = np.maximum(filters() @ power.T, LEAST)
    return np.maximum(10 * np.log10(bands / bands.max()), -RANGE)


def read(path: Path) -> np.ndarray:
    """The samples of a recording, in -1..1.

    Raises:
      ValueError: another rate, several channels, no samples.
    """
    rate, sound = wavfile.read(path)
    if rate != RATE or sound.ndim != 1 or not len(sound):
        raise ValueError(
            f"{path}: expected one channel of {RATE} samples a second; got {sound.shape} of {rate}"
        )
    full = np.iinfo(sound.dtype).max + 1.0 if sound.dtype.kind == "i" else 1.0
    return sound / full


def made(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of the file: x, y, speaker, index and speakers, recordings in the order of their names.

    Raises:
      ValueError: no recordings, or files of other names among them.
    """
    paths = sorted(folder.glob("*.wav"), key=lambda path: path.name)
    told = [NAME.fullmatch(path.name) for path in paths]
    names = [match.groups() for match in told if match is not None]
    if not paths or len(names) < len(paths):
        wrong = [p.name for p, match in zip(paths, told, strict=True) if match is None]
        raise ValueError(
            f"{folder}: expected recordings DIGIT_SPEAKER_TAKE.wav; got {wrong[:3] or 'none'}"
        )
    speakers = sorted({speaker for _, speaker, _ in names})
    return {
        "x": np.stack([features(read(p)).ravel() for p in paths]).astype(np.float16),
        "y": np.array([int(digit) for digit, _, _ in names], np.uint8),
        "speaker": np.array([speakers.index(speaker) for _, speaker, _ in names], np.uint8),
        "index": np.array([int(take) for _, _, take in names], np.uint8),
        "speakers": np.array(speakers),
    }


def differences(arrays: dict[str, np.ndarray], other: Path) -> list[str]:
    """What differs from an earlier file, in words."""
    found = []
    with np.load(other) as known:
        for name, a in arrays.items():
            b = known[name]
            if a.shape != b.shape or a.dtype != b.dtype:
                found.append(f"{name}: {a.dtype} {a.shape}, there {b.dtype} {b.shape}")
            elif not np.array_equal(a, b):
                most = (
                    np.abs(a.astype(float) - b.astype(float)).max() if a.dtype.kind != "U" else ""
                )
                found.append(f"{name}: {(a != b).sum()} of {a.size} numbers, at most by {most}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Make the file; compare it with another."""
    parser = argparse.ArgumentParser(description="Make spoken-digits.npz from the recordings.")
    parser.add_argument("recordings", type=Path, help="folder of DIGIT_SPEAKER_TAKE.wav")
    parser.add_argument("file", type=Path, help="e.g. spoken_digits.npz in the folder of data sets")
    parser.add_argument("--compare", type=Path, help="a file that should hold the same")
    arguments = parser.parse_args(argv)
    arrays = made(arguments.recordings)
    with files.replacing(arguments.file) as new, new.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    print(f"{arguments.file}: {len(arrays['y'])} recordings of {', '.join(arrays['speakers'])}")
    if arguments.compare is not None:
        found = differences(arrays, arguments.compare)
        print("\n".join(found) or f"the same as {arguments.compare}")


if __name__ == "__main__":
    main()
