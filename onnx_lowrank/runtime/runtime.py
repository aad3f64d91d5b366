"""How models are run: the provider and threads of ONNX Runtime, and opening of sessions."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import onnxruntime as ort
from onnx import IR_VERSION, TensorProto, defs, helper

from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.ort_errors import ORT_ERRORS, RUN_ERRORS, first_line
from onnx_lowrank.runtime.pieces import Pieces
from onnx_lowrank.runtime.session import Session
from onnx_lowrank.runtime.version_stamps import restamped
from onnx_lowrank.runtime.weight_files import weights_in_file

__all__ = ["Runtime"]

#: largest weights of one piece of a model that is run in pieces, in bytes
PIECE = 256 << 20

#: setting of a session: where files of weights are
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Runtime:
    """Options of running models.

    Attributes:
        provider: ONNX Runtime execution provider.
        threads: number of intra-op threads; 0 leaves the choice to ONNX Runtime.

    Raises:
        OptionError: the provider is not installed, or ``threads`` is negative.
    """

    provider: str = "CPUExecutionProvider"
    threads: int = 0

    def __post_init__(self) -> None:
        available = ort.get_available_providers()
        if self.provider not in available:
            raise OptionError(
                f"this ONNX Runtime has no provider {self.provider!r}; "
                f"choose from {', '.join(available)}"
            )
        if self.threads < 0:
            raise OptionError(f"threads must be 0 or more, not {self.threads}")

    def session(
        self,
        model: Model,
        *,
        optimise: bool = True,
        lean: bool = False,
        profile: Path | None = None,
    ) -> Session:
        """Open ``model``.

        Args:
            model: the model to run.
            optimise: whether to leave ONNX Runtime's graph optimisations on.
            lean: whether to do without a memory arena, and to let idle threads sleep instead of
                spinning, for runs that work of our own goes on beside, and whose peak memory
                matters more than their speed.
            profile: start of the path of ONNX Runtime's profile of all runs; none by default, nor
                of a model that is run in pieces.

        Raises:
            ModelError: ONNX Runtime refuses the model.
        """
        if model.large:

            def start(part: Model, once: bool) -> Session:
                return Session(self._open(part, optimise, lean, once))

            return Pieces(model, start, PIECE)
        return Session(self._open(model, optimise, lean, profile=profile))

    def _open(
        self,
        model: Model,
        optimise: bool,
        lean: bool,
        once: bool = False,
        profile: Path | None = None,
    ) -> ort.InferenceSession:
        options = ort.SessionOptions()
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if lean:
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if once:  # for one run, reordering the weights does not pay
            options.add_session_config_entry("session.disable_prepacking", "1")
        names, values = _scratched(model)
        if names:
            options.add_external_initializers(names, values)
        proto = restamped(model.proto, *_newest()) or model.proto
        aside = nullcontext((proto, model.folder)) if model.external else weights_in_file(proto)
        with aside as (light, folder):
            if folder is not None:
                options.add_session_config_entry(_FOLDER, str(folder))
            try:
                session = ort.InferenceSession(
                    light.SerializeToString(), options, providers=[self.provider]
                )
            except RUN_ERRORS as error:
                said = first_line(error)
                raise ModelError(f"ONNX Runtime cannot load the model: {said}") from error
        # it would keep the file for a change of providers: a copy of all weights in each session
        session._model_bytes = None
        return session


def _scratched(model: Model) -> tuple[list[str], list[ort.OrtValue]]:
    """Names and values of the constants in the temporary file, which ONNX Runtime cannot read."""
    scratch = model.scratch
    tensors = [t for t in model.outside if scratch is not None and scratch.holds(t)]
    return [t.name for t in tensors], [_mapped_value(model, t) for t in tensors]


def _mapped_value(model: Model, tensor: TensorProto) -> ort.OrtValue:
    values = model.read(tensor)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(values, tensor.data_type)


@lru_cache
def _newest() -> tuple[int, int]:
    """The newest default operator set and IR version that this ONNX Runtime takes."""
    opset = next(v for v in range(defs.onnx_opset_version(), 0, -1) if _takes(v, 8))
    return opset, next(v for v in range(int(IR_VERSION), 0, -1) if _takes(min(opset, 17), v))


def _takes(opset: int, ir_version: int) -> bool:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    proto = helper.make_model(
        helper.make_graph(nodes, "probe", [x], [y]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS:
        return False
    return True
