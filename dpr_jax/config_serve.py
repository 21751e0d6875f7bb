"""Every setting of `dpr serve`; no recipe stores them."""

import dataclasses
from typing import Annotated

from dpr_jax.bounds import Bounds, Positive, Rate


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Limits of the server, its batches and its log."""

    batch: Positive = 32
    """Questions encoded and searched at once."""
    batch_wait_ms: Annotated[float, Bounds(least=0, most=5)] = 1.0
    """Longest wait for more questions while others are being answered, milliseconds."""
    max_body_bytes: Positive = 1_000_000
    """Largest body of a request; a larger one gets 413."""
    max_questions: Positive = 256
    """Questions or texts in one request; more get 422."""
    max_question_chars: Positive = 10_000
    """Longest question, in characters; a longer one gets 422."""
    max_k: Positive = 1000
    """Most passages per question, offset included; more get 422."""
    max_queue: Positive = 1024
    """Questions that may wait for one retriever; more get 429."""
    max_connections: Positive = 2000
    """Open connections; more get 503."""
    read_timeout_s: Rate = 10.0
    """A client must have sent its request by then."""
    request_timeout_s: Rate = 60.0
    """A request must be answered, and its answer read, by then."""
    drain_delay_s: Annotated[float, Bounds(least=0)] = 0.0
    """Seconds between SIGTERM, from when /readyz fails, and the end of new connections."""
    drain_s: Positive = 30
    """Longest wait for requests to end after that, seconds."""
    min_recall: Annotated[float, Bounds(least=0, most=1)] = 0.0
    """Least recall@100 that the certificate of an index must state."""
    watch_s: Annotated[float, Bounds(least=0)] = 2.0
    """Seconds between looks for a new state of the work directory; 0: on POST /v1/admin/reload
    alone."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the Host header may have; empty: those of this machine where the server is bound
    to 127.0.0.1, else any."""
    public_url: str | None = None
    """Address that links to passages begin with; None: the one that the client asked."""
    open_admin: bool = False
    """Clients on this machine may call /v1/admin without a key. Not behind a proxy, whose clients
    all look like this machine."""
    access_log: str = "-"
    """File that the access log is added to; "-" is stdout, "" none."""
    log_questions: bool = False
    """Write the questions into the access log too."""
