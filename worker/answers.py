"""From the engine's news to the contract's messages.

Next: worker/service.py
"""

from tessera.errors import ServeError
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from worker.bridge import News
from worker.engine.output import FinishReason, LoadReport, Logprob, SequenceFailure, SequenceUpdate

_FINISH_REASONS = {
    FinishReason.STOP: types.FINISH_REASON_STOP,
    FinishReason.LENGTH: types.FINISH_REASON_LENGTH,
}


def response_of(news: News) -> pb.ExecuteResponse:
    """Return the message of one or more steps."""
    return pb.ExecuteResponse(
        step=news.step,
        updates=[update_of(update) for update in news.updates],
        need_items=[
            pb.NeedItem(request_id=need.request_id, content_hash=need.content_hash) for need in news.need_items
        ],
        load=load_of(news.load),
    )


def update_of(update: SequenceUpdate) -> pb.SequenceUpdate:
    """Return a choice's news: tokens, and a finish or an error."""
    message = pb.SequenceUpdate(
        request_id=update.request_id,
        epoch=update.epoch,
        choice=update.choice,
        token_ids=update.token_ids,
        logprobs=[_logprob_of(logprob) for logprob in update.logprobs],
        matched_stop_token_id=update.matched_stop_token_id,
        cached_tokens=update.cached_tokens,
    )
    if update.failure is not None:
        message.error.CopyFrom(error_of(update.failure))
    elif update.finish_reason is not None:
        message.finish_reason = _FINISH_REASONS[update.finish_reason]
    return message


def load_of(load: LoadReport) -> pb.LoadReport:
    """Return the load report."""
    return pb.LoadReport(
        waiting=load.waiting,
        running=load.running,
        total_blocks=load.total_blocks,
        free_blocks=load.free_blocks,
        cached_blocks=load.cached_blocks,
        used_blocks=load.used_blocks,
        pinned_items=load.pinned_items,
        encoder_cache_bytes=load.encoder_cache_bytes,
        staged_bytes=load.staged_bytes,
        total_state_slots=load.total_state_slots,
        running_state_slots=load.running_state_slots,
        state_checkpoints=load.state_checkpoints,
    )


def error_of(failure: SequenceFailure | ServeError) -> pb.SequenceError:
    """Return what went wrong with one sequence or item."""
    code = failure.code if isinstance(failure, SequenceFailure) else failure.code.value[0]
    return pb.SequenceError(code=code, reason=failure.reason, field=failure.field or "", message=failure.message)


def _logprob_of(logprob: Logprob) -> types.Logprob:
    return types.Logprob(
        chosen=types.TokenLogprob(token_id=logprob.chosen.token_id, logprob=logprob.chosen.logprob),
        top=[types.TokenLogprob(token_id=one.token_id, logprob=one.logprob) for one in logprob.top],
    )
