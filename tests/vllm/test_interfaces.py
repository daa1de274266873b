"""What the adapters use is there in the installed vLLM, which loads each class for its own runner only."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from watermark import Mark
from watermark.integrations import serving

pytestmark = pytest.mark.filterwarnings("ignore")
V1, V2 = (f"watermark.integrations.vllm:{name}" for name in ("MarkV1", "MarkV2"))


def test_each_runner_loads_its_class() -> None:
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns as load_v1
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns as load_v2

    assert [one.__name__ for one in load_v1([V1])] == ["MarkV1"]
    assert [one.__name__ for one in load_v2([V2])] == ["MarkV2"]
    for load, other in ((load_v1, V2), (load_v2, V1)):
        with pytest.raises(ValueError, match="subclass"):
            load([other])


def test_what_is_read_is_there() -> None:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState

    params = SamplingParams()
    assert (params.temperature, params.extra_args, params.logprobs, params.prompt_logprobs) == (1.0, None, None, None)
    assert {"removed", "added", "moved"} <= {one.name for one in fields(BatchUpdate)}
    assert {one.name for one in MoveDirectionality} == {"UNIDIRECTIONAL", "SWAP"}
    used = {"expanded_idx_mapping", "idx_mapping_np", "expanded_local_pos", "input_ids", "pos"}
    assert used <= {one.name for one in fields(LogitsContext)}
    assert {"device", "max_num_reqs", "vocab_size", "all_token_ids"} <= {
        one.name for one in fields(LogitsProcRequestState)
    }


def test_what_is_refused_reaches_the_client_as_a_validation_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which both runners' entries turn into HTTP 400; nothing else of the request is looked at."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import validate_logits_processors_parameters
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator

    Mark(bytes(32)).save(tmp_path / "m.mark")
    monkeypatch.setenv("STILLMARK_MARK", str(tmp_path / "m.mark"))
    serving.served.cache_clear()
    v2 = build_custom_logits_processors_params_validator([V2])
    for check in (lambda params: validate_logits_processors_parameters([V1], params), v2):
        check(SamplingParams(extra_args={"stillmark": "off"}))
        with pytest.raises(VLLMValidationError, match="neither"):
            check(SamplingParams(extra_args={"stillmark": "perhaps"}))
    serving.served.cache_clear()


def test_native_is_a_watermarker() -> None:
    from vllm.v1.watermarking import Watermarker

    from watermark.integrations.vllm import MarkNative

    assert isinstance(MarkNative(Mark(bytes(32), width=2)), Watermarker)
    assert MarkNative(Mark(bytes(32), width=2)).context_width == 2
