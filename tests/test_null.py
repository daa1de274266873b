"""The p-value of unmarked human text over random keys: what was promised of it must hold."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from verify.data.outputs import Output
from verify.data.pairs import extract
from verify.radioactivity.text import text_result
from watermark import Mark

KEYS = 2000
TOKENS = 20_000


@pytest.mark.parametrize("width", [0, 1, 2, 4])
def test_real_unmarked_text_under_2000_keys(speeches: np.ndarray, width: int) -> None:
    pieces = np.split(speeches[:TOKENS], 40)
    pairs = extract([Output(str(i), None, piece) for i, piece in enumerate(pieces)], width, range(17))
    rng = np.random.default_rng(20261123 + width)
    pvalues = np.array([text_result(Mark(rng.bytes(32), width=width), pairs).pvalue for _ in range(KEYS)])
    for level in (0.05, 0.01, 0.001):
        share = scipy.stats.binom(KEYS, level)
        fired = int((pvalues <= level).sum())
        assert fired <= share.isf(1e-5), f"{fired} of {KEYS} at {level}, width {width}; false failure below 1e-5"
        # the test is discrete, so its true level lies a little below the nominal one: at n > 2000, 5 % at most
        low = scipy.stats.binom(KEYS, 0.93 * level).ppf(1e-5)
        assert fired >= low, f"{fired} of {KEYS} at {level}, width {width}: too few; false failure below 1e-5"
    uniform = scipy.stats.kstest(pvalues, "uniform").pvalue
    assert uniform > 1e-6, f"p-values are not uniform at width {width}; false failure 1e-6"
