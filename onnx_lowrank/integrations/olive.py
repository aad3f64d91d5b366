"""A pass of Microsoft Olive (olive-ai) that compresses an ONNX model as ``compress`` does.

Importing this module registers the data set ``onnx_lowrank_archive`` with Olive. A workflow names
the pass ``LowRank`` and runs with the package configuration that :func:`package_config` makes::

    from olive.workflows import run
    from onnx_lowrank.integrations.olive import package_config

    run("workflow.json", package_config=package_config())
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt
from olive.common.config_utils import validate_config
from olive.data.component.dataset import BaseDataset
from olive.data.config import DataConfig
from olive.data.registry import Registry
from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from onnx_lowrank.engine.api import compress
from onnx_lowrank.engine.options import CompressOptions
from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.modelfile.atomic_files import atomic_write
from onnx_lowrank.options import flag_of, options_of
from onnx_lowrank.samples.archives import npz_keys

__all__ = ["LowRank", "archive_config", "open_archive", "package_config"]

#: name that Olive knows the data set by
ARCHIVE = "onnx_lowrank_archive"

#: values that JSON can hold; what an option makes of them is its own check
_Json = Optional[Union[bool, int, float, str, list[Any], dict[str, Any]]]  # noqa: UP007, UP045 - read by pydantic


class LowRank(Pass):  # type: ignore[misc]
    """Factorize layers and prune channels of an ONNX model, within a target.

    Every option of :func:`onnx_lowrank.compress` is a parameter of the same name, written as on
    the command line or as JSON. Two more: ``data_config`` names Olive's own data to calibrate on,
    in the place of ``calib``, and ``report`` a file for the report as JSON.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        del accelerator_spec
        found = {
            name: PassConfigParam(
                type_=_Json,
                default_value=_plain(f.default),
                description=f.metadata["option"].help,
            )
            for name, (_, f) in options_of(CompressOptions).items()
        }
        found["data_config"] = PassConfigParam(
            type_=Union[DataConfig, dict, str],  # noqa: UP007 - read by pydantic
            default_value=None,
            description="Data of Olive to calibrate on, in the place of calib.",
        )
        found["report"] = PassConfigParam(
            type_=str, default_value=None, description="Write the report here, as JSON."
        )
        return found

    def _run_for_config(
        self, model: Any, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        """Compress one model.

        Raises:
            OptionError: the model is no ONNX model, or an option makes no sense.
            LowRankError: what :func:`onnx_lowrank.compress` raises.
        """
        if not isinstance(model, ONNXModelHandler):
            raise OptionError(
                f"LowRank takes ONNX models, not {type(model).__name__}; put OnnxConversion before "
                "it"
            )
        options = _keywords(config)
        if config.data_config is not None:
            if options.get("calib") is not None:
                raise OptionError("calib and data_config at once; give one of them")
            data = validate_config(config.data_config, DataConfig).to_data_container()
            options["calib"] = data.create_calibration_dataloader(
                model_path=model.model_path, io_config=model.io_config
            )
        result = compress(model.model_path, **options)
        path = Path(resolve_onnx_path(output_model_path))
        result.save(path)
        if config.report is not None:
            with atomic_write(Path(config.report)) as file:
                file.write(result.report.to_json().encode() + b"\n")
        beside = any(other != path for other in path.parent.iterdir())
        if beside and path.name == "model.onnx":  # weights in files of their own
            return ONNXModelHandler(model_path=path.parent, onnx_file_name=path.name)
        return ONNXModelHandler(model_path=path)


def package_config(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Olive's own package configuration with the pass ``LowRank`` besides.

    Args:
        path: a file to write it to as JSON, for ``olive run --package-config``; None for none.

    Returns:
        The configuration, for ``olive.workflows.run(..., package_config=...)``.
    """
    text = Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8")
    made: dict[str, Any] = json.loads(text)
    made["passes"]["LowRank"] = {
        "module_path": f"{__name__}.LowRank",
        "supported_providers": ["CPUExecutionProvider"],
        "supported_accelerators": ["cpu"],
        "supported_precisions": ["fp32", "fp16"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
        "dataset": "dataset_optional",
        "extra_dependencies": [],
    }
    OlivePackageConfig.model_validate(made)
    if path is not None:
        with atomic_write(Path(path)) as file:
            file.write(json.dumps(made, indent=1).encode() + b"\n")
    return made


def archive_config(
    name: str, path: str | os.PathLike[str], *, part: str = "", batch: int = 1
) -> dict[str, Any]:
    """A data configuration of Olive that reads an .npz, as ``--calib`` takes it.

    Args:
        name: of the data in the workflow.
        path: of the archive.
        part: of the archive, such as ``test``; empty for what calibrates.
        batch: samples of a batch.
    """
    return {
        "name": name,
        "type": "DataContainer",
        "load_dataset_config": {"type": ARCHIVE, "params": {"path": os.fspath(path), "part": part}},
        "post_process_data_config": {"type": "text_classification_post_process"},
        "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": batch}},
    }


@Registry.register_dataset(ARCHIVE)  # type: ignore[untyped-decorator]
def open_archive(path: str, part: str = "", max_samples: int | None = None, **_: Any) -> Any:
    """Open an .npz as a data set of Olive: inputs by name, and the label of each sample.

    Args:
        path: of the archive.
        part: of the archive, such as ``test``; empty for what calibrates.
        max_samples: the largest number of samples; None for all.

    Returns:
        Pairs of inputs by name and a label, 0 where there are none.

    Raises:
        DataError: the archive cannot be read, or has no such part.
    """
    prefix = f"{part}." if part else ""
    keys = [k for k in npz_keys(Path(path)) if k.startswith(prefix) and (part or "." not in k)]
    if not keys:
        raise DataError(f"{path} has no part {part!r}; leave it out, or name one that is there")
    with np.load(path, allow_pickle=False) as archive:
        arrays: Mapping[str, npt.NDArray[Any]] = {k.removeprefix(prefix): archive[k] for k in keys}
    inputs = {k: v for k, v in arrays.items() if k != "labels"}
    count = min(map(len, inputs.values()))
    labels = arrays.get("labels", np.zeros(count, np.int64))
    pairs = [({k: v[i] for k, v in inputs.items()}, labels[i]) for i in range(count)]
    return BaseDataset(pairs, max_samples)


def _plain(default: Any) -> Any:
    """A default as JSON has it."""
    if default is MISSING:
        return None
    return list(default) if isinstance(default, tuple) else default


def _keywords(config: Any) -> dict[str, Any]:
    """The options that differ from their defaults, as keyword arguments of ``compress``.

    Raises:
        OptionError: a text cannot be read.
    """
    found = {}
    for name, (_, f) in options_of(CompressOptions).items():
        value = getattr(config, name)
        if value != _plain(f.default):
            found[name] = _read(f, value)
    return found


def _read(f: Field[Any], value: Any) -> Any:
    """A value as the option takes it: texts are read as on the command line."""
    about = f.metadata["option"]
    texts = isinstance(value, list) and all(isinstance(v, str) for v in value)
    if about.read is None or not (isinstance(value, str) or (about.repeat and texts)):
        return value
    try:
        return about.read([value] if about.repeat and isinstance(value, str) else value)
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(f"{flag_of(f)} {error}") from None
