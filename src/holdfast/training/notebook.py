"""How a run looks in a notebook."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError
from holdfast.runs.listing import listing, total_text, trend_text
from holdfast.runs.standing import scan_run, standing
from holdfast.state.table import html_page

if TYPE_CHECKING:
    from holdfast.training.run import Run


def run_html(run: Run) -> str:
    """Where the run is and its committed checkpoints, as ``holdfast ls`` lists them, as a piece of HTML."""
    at = run.position
    title = f"Run {run.path}: epoch {at.epoch}, step {at.step}, batch {at.batch}"
    now = datetime.datetime.now(datetime.UTC)
    try:
        found = standing(scan_run(run.path), now)
    except HoldfastError as reason:  # a notebook shows what it can
        return html_page(title, [str(reason)], [])
    table = listing(found, now)
    lines = [total_text(found), trend_text(found) or "", *found.notes]
    return html_page(title, [line for line in lines if line], [(table.header, table.rows)] if table.rows else [])
