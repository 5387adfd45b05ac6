"""What a request took, as messages: usage, and what was used of each medium.

Next: service.py.
"""

from __future__ import annotations

from gateway.media.plan import SamplingPlan
from gateway.pipeline import Prepared, UsedMedium
from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tessera.time_series import used_length
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types


def prompt_usage(prepared: Prepared) -> types.Usage:
    """Return the usage of a prompt before anything is generated."""
    usage = types.Usage(
        prompt_tokens=len(prepared.prompt.token_ids),
        total_tokens=len(prepared.prompt.token_ids),
        processor_cache_hits=sum(medium.cached for medium in prepared.media),
    )
    for item in prepared.prompt.items:
        name = f"{item.modality}_tokens"
        setattr(usage, name, getattr(usage, name) + item.num_tokens)
    return usage


def media_reports(prepared: Prepared) -> list[pb.MediaReport]:
    """Return one report for each medium, in prompt order."""
    pairs = zip(prepared.media, prepared.prompt.items, strict=True)
    return [_report(medium, item) for medium, item in pairs]


def _report(medium: UsedMedium, item: MultimodalItem) -> pb.MediaReport:
    report = pb.MediaReport(
        modality=item.modality.to_proto(),
        content_hash=item.content_hash,
        num_tokens=item.num_tokens,
        cached=medium.cached,
        preprocessed=medium.processed is None,
    )
    if item.grid_thw:
        report.grid_thw.CopyFrom(types.GridThw(t=item.grid_thw[0], h=item.grid_thw[1], w=item.grid_thw[2]))
    if item.payload_kind is PayloadKind.PIXELS_U8 and item.array is not None:
        report.height, report.width = item.array.shape[1:3]
    if item.modality is Modality.TIME_SERIES:
        _add_series(report, item)
    if medium.processed is not None:
        processed = medium.processed
        report.source_height, report.source_width = processed.source_size
        report.min_pixels = processed.effective_min_pixels
        report.max_pixels = processed.effective_max_pixels
        if processed.plan is not None:
            report.sampling.CopyFrom(_plan(processed.plan))
    return report


def _add_series(report: pb.MediaReport, item: MultimodalItem) -> None:
    report.num_channels = item.channels
    report.sampling_rate_hz = item.sampling_rate_hz
    if item.payload_kind is PayloadKind.SAMPLES and item.array is not None:
        report.num_samples = len(item.array)
        report.used_samples = used_length(len(item.array))


def _plan(plan: SamplingPlan) -> pb.SamplingPlan:
    return pb.SamplingPlan(
        total_frames=plan.total_frames,
        source_fps=plan.source_fps,
        duration_s=plan.duration_s,
        frame_indices=plan.frame_indices,
        timestamps=plan.timestamps,
        rule=plan.rule,
        dropped_frames=plan.dropped_frames,
    )
