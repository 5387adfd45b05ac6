"""The worker as a process: up at once, SERVING when it can answer, a clear end when it cannot."""

import json
import socket
import time

import grpc
import pytest

from tessera.settings import load_settings
from tessera.v1 import worker_service_pb2 as pb
from tessera.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.e2e.harness import SERVING, Program
from tests.tiny_models import make_tiny_qwen3vl
from worker.boot import engine_options
from worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny_qwen3vl(tmp_path_factory.mktemp("tiny"))


def test_settings_reach_the_engine():
    """Flags and variables are read once, and every field of the engine's options is among them."""
    flags = ["--model", "m", "--kv-cache-bytes", "2GiB", "--no-prefix-cache", "--max-batched-tokens", "32"]
    settings = load_settings(WorkerSettings, flags, {"TESSERA_MAX_SEQUENCES": "9"})
    options = engine_options(settings)
    assert (options.kv_cache_bytes, options.prefix_cache) == (2 << 30, False)
    assert (options.max_batched_tokens, options.max_sequences, options.max_model_len) == (32, 9, None)


@pytest.mark.slow
def test_a_worker_starts_serves_and_stops(checkpoint, tmp_path):
    """Health answers at once and is SERVING only when the model is; Describe tells all; SIGTERM ends it well."""
    worker = Program("worker", ["--model", str(checkpoint), "--max-model-len", "256"], tmp_path / "log")
    try:
        stub = WorkerServiceStub(worker.channel)
        seen = []
        deadline = time.monotonic() + 60
        while worker.health() != SERVING:
            assert worker.running and time.monotonic() < deadline, worker.tail()
            try:
                seen.append(stub.Describe(pb.DescribeRequest(), timeout=5).state)
            except grpc.RpcError:
                continue
        assert seen and set(seen) <= {1, 2, 3, pb.WORKER_STATE_READY}
        described = stub.Describe(pb.DescribeRequest(), timeout=5)
        assert described.state == pb.WORKER_STATE_READY
        assert described.architecture == "Qwen3VLForConditionalGeneration"
        assert (described.max_model_len, described.vocab_size, described.hidden_size) == (256, 640, 64)
        assert len(described.fingerprint) == 64
        assert described.special_token_ids.keys() == {"image", "video", "vision_start", "vision_end", "pad"}
        assert described.num_deepstack_layers == 2
        assert described.max_item_tokens > 0
        assert described.ops["linear"]
        assert described.op_reasons.keys() == described.ops.keys()
        assert all(described.op_reasons.values())
        load = described.load
        assert load.free_blocks + load.cached_blocks == load.total_blocks == described.total_blocks
    finally:
        assert worker.stop() == 0
    assert worker.complaints() == []


@pytest.mark.slow
def test_an_architecture_that_is_not_served(checkpoint, tmp_path):
    """Another architecture ends the process with 1 and one line that names those served; no weight is read."""
    model = tmp_path / "other"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    worker = Program("worker", ["--model", str(model)], tmp_path / "log")
    try:
        assert worker.process.wait(60) == 1
    finally:
        worker.kill()
        worker.channel.close()
    (line,) = worker.complaints()
    event = json.loads(line)
    assert event["event"] == "worker_failed"
    assert "LlamaForCausalLM" in event["reason"]
    assert "Qwen3VLForConditionalGeneration" in event["reason"]


@pytest.mark.slow
def test_limits_that_do_not_fit(checkpoint, tmp_path):
    """A KV cache too small for the context that was asked for ends the process with the remedy."""
    flags = ["--model", str(checkpoint), "--max-model-len", "1024", "--kv-cache-bytes", "1M"]
    worker = Program("worker", flags, tmp_path / "log")
    try:
        assert worker.process.wait(60) == 1
    finally:
        worker.kill()
        worker.channel.close()
    assert "raise --kv-cache-bytes" in worker.tail()


@pytest.mark.slow
def test_a_port_that_is_taken(checkpoint, tmp_path):
    """A port in use ends the process with 1 and says so."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        worker = Program("worker", ["--model", str(checkpoint)], tmp_path / "log", port=other.getsockname()[1])
        try:
            assert worker.process.wait(60) == 1
        finally:
            worker.kill()
            worker.channel.close()
    assert "cannot listen" in worker.tail()
