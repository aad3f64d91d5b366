from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.runtime.runtime import Runtime
from tests import fixtures_models as fm

X, _ = fm.classified(5)


@pytest.mark.parametrize("options", [{"optimise": False}, {"lean": True}])
def test_sessions_of_all_kinds_agree(options: dict[str, bool]) -> None:
    model = load(fm.classifier())
    plain = fm.ONE_THREAD.session(model).run({"x": X})["y"]
    other = fm.ONE_THREAD.session(model, **options).run({"x": X})["y"]
    np.testing.assert_allclose(other, plain, rtol=1e-4, atol=1e-4)


def test_external_data_is_found_beside_the_file(tmp_path: Path) -> None:
    model = load(fm.external(tmp_path, fm.classifier()))
    np.testing.assert_array_equal(
        fm.ONE_THREAD.session(model, optimise=False).run({"x": X})["y"],
        fm.run(fm.classifier(), {"x": X})["y"],
    )


# refusals


def test_options_that_make_no_sense() -> None:
    with pytest.raises(OptionError, match=r"'TeaExecutionProvider'.*choose from .*CPUExecution"):
        Runtime("TeaExecutionProvider")
    with pytest.raises(OptionError, match="threads must be 0 or more, not -1"):
        Runtime(threads=-1)


def test_what_onnx_runtime_refuses_is_a_model_error_of_one_line() -> None:
    proto = fm.classifier()
    proto.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"Runtime cannot load the model: .*NoSuchOp") as load_:
        fm.ONE_THREAD.session(load(proto))
    session = fm.ONE_THREAD.session(load(fm.classifier()))
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model: ") as run_:
        session.run({"x": X[:, :5]})
    for caught in (load_, run_):
        assert "\n" not in str(caught.value)
