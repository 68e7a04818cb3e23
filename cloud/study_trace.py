"""What is known of one study in the cloud while its call lasts, and recorded when it ends.

    second reading > receive, queue, batch (one for each batch with an ROI of the study), answer

The first is a child of the caller's span, if the call names one in ``traceparent``; else a trace
begins here. A study is counted once, by its first end, whether spans are recorded or not.
"""

import time
from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, format_trace_id, set_span_in_context

from cloud.scheduling.waiting import UNKNOWN_SITE, RoiResult
from cloud.telemetry import COMPLETE, NO_PRIORITY, CloudTelemetry
from process import tracing
from protos.deadline import Clock
from protos.errors import Given
from protos.messages import Header, Summary

UNLOGGED = "not random"
"""In the log in place of a study key that might say something of a patient."""


class StudyTrace:
    """Notes when the parts of a study begin and end; ``metadata`` is that of its call.

    Attributes:
        site: the caller's, known before the header.
        has_rois: whether an ROI has come.
        on_end: called first with how the study ends.
    """

    def __init__(self, clock: Clock, metadata: Given, telemetry: CloudTelemetry) -> None:
        self._clock, self._telemetry = clock, telemetry
        self._called_s, self._priority = clock(), NO_PRIORITY
        carrier = {key: str(value) for key, value in metadata or () if key == "traceparent"}
        caller = tracing.PROPAGATOR.extract(carrier, Context())
        self._span = tracing.tracer().start_span("second reading", caller, SpanKind.SERVER)
        self._study_key, self._ended, self.site = "", False, UNKNOWN_SITE
        self.has_rois = False
        self.on_end: Callable[[str], object] = lambda _how: None
        self._header_s = self._first_s = self._last_s = self._answer_s = 0.0
        self._batches: dict[int, tuple[float, float, int, float]] = {}

    @property
    def ids(self) -> dict[str, str]:
        """Site, study key and trace id, for the log: no key before the header."""
        ids = {"study_key": UNLOGGED, **tracing.loggable(self._study_key)}
        context = self._span.get_span_context()
        trace_id = {"trace_id": format_trace_id(context.trace_id)} if context.is_valid else {}
        return {"site": self.site, **(ids if self._study_key else {}), **trace_id}

    @property
    def has_header(self) -> bool:
        """Whether its header has come; before it nothing is known but the caller."""
        return bool(self._study_key)

    @property
    def compute_s(self) -> float:
        """Model time spent on the study so far, each batch counted once."""
        return sum(compute_s for *_, compute_s in self._batches.values())

    def named(self, study_key: str) -> None:
        """Note the key of a header that has come; it may still be refused."""
        self._study_key = study_key

    def began(self, header: Header) -> None:
        """Note that a valid header has come."""
        self._header_s, self._study_key = self._clock(), header.study_key
        self._priority = header.priority.value
        self._note(announced=header.roi_count, priority=self._priority)

    def received(self) -> None:
        """Note that an ROI has come."""
        self._last_s, self.has_rois = self._clock(), True
        self._first_s = self._first_s or self._last_s

    def read(self, roi: RoiResult) -> None:
        """Note that an ROI was read just now."""
        _, _, rois, _ = self._batches.get(roi.batch, (0.0, 0.0, 0, 0.0))
        self._batches[roi.batch] = roi.began_s, self._clock(), rois + 1, roi.compute_s

    def answered(self) -> None:
        """Note that an answer is about to be sent."""
        self._answer_s = self._answer_s or self._clock()

    def end(self, outcome: str, summary: Summary | None = None) -> bool:
        """Record all, once; ``outcome`` is ``complete``, or the class of the error.

        Returns whether this was the first end.
        """
        if self._ended:
            return False
        self._ended = True
        self.on_end(outcome)
        self._telemetry.count_study(outcome, self._priority, self._clock() - self._called_s)
        if self._span.is_recording():
            self._record(outcome, summary)
        return True

    def _record(self, outcome: str, summary: Summary | None) -> None:
        if self._first_s:
            self._part("receive", self._header_s, self._last_s)
        spans = sorted(self._batches.values())
        if spans:
            self._part("queue", self._first_s, spans[0][0])
        for began_s, ended_s, rois, _ in spans:
            self._part("batch", began_s, ended_s, rois=rois)
        if self._answer_s:
            self._part("answer", self._answer_s, self._clock())
        if summary is not None:
            self._note(answered=summary.answered, refused=summary.refused)
        self._note(outcome=outcome)
        if outcome != COMPLETE:
            tracing.fail(self._span, outcome)
        self._span.end()

    def _note(self, **values: tracing.Attribute) -> None:
        self._span.set_attributes(tracing.attributes(**values))

    def _part(self, name: str, start_s: float, end_s: float, **attributes: int) -> None:
        since_s = time.time() - self._clock()  # the wall clock's time at 0 of the other clock
        own = set_span_in_context(self._span, Context())
        tracing.record(name, own, since_s + start_s, since_s + end_s, **attributes)
