"""What an error proposes for an input whose shape is not known."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.errors import OptionError
from onnx_lowrank.samples.dataset import InputSpec
from onnx_lowrank.samples.made_up import concrete_shape


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (None, "an unknown shape; give --input-shape x:1,3,224,224 "),
        ((None, None, None, None), "x:1,3,224,224 "),
        ((None, 1, 48, None), "dynamic axes (None, 1, 48, None); give --input-shape x:1,1,48,224 "),
        ((None, None), "x:1,128 "),
        ((2, None, 80), "x:2,128,80 "),
    ],
)
def test_the_example_has_the_axes_of_the_input(
    shape: tuple[int | None, ...] | None, text: str
) -> None:
    with pytest.raises(OptionError) as found:
        concrete_shape(InputSpec("x", np.dtype("f4"), shape), {})
    assert text in str(found.value)
