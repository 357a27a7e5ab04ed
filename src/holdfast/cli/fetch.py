"""``holdfast fetch``: a file or checkpoint of a store as a copy on this machine."""

from __future__ import annotations

import click

from holdfast.cli.output import say, say_json
from holdfast.cli.progress import progress
from holdfast.runs.fetching import fetch
from holdfast.state.paths import printable


@click.command("fetch", epilog='Example: python evaluate.py "$(holdfast fetch s3://bucket/a@best /scratch)"')
@click.argument("ref")
@click.argument("folder", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(ref: str, folder: str, as_json: bool) -> None:
    """Bring what REF names in a store (s3://bucket/net.pt, s3://bucket/runs/a@best) to DIR and print where it is.

    It is verified before it takes its place. A copy that is there already, and the same in the store, is verified and
    not fetched again. A path of this machine is printed as it is.
    """
    with progress(ref, quiet=as_json):
        path = fetch(ref, folder)
    if as_json:
        say_json({"path": path, "from": ref})
    else:
        say(printable(path))
