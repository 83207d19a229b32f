"""Opens the runs that are inputs of another run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fanout.core.errors import AmbiguousRunError, InputError, UnknownRunError
from fanout.inputs.documents.files import RUN
from fanout.inputs.documents.past_runs import run_id_of
from fanout.runs.past_runs import RunOutputs

if TYPE_CHECKING:
    from fanout.client.client import Client
    from fanout.client.run import Run
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents.past_runs import OpenRun

__all__ = ["run_opener", "with_full_ids"]


def run_opener(client: Client) -> OpenRun:
    """Return the function that opens the runs of a client's server as inputs."""

    def open_run(run_id: str) -> RunOutputs:
        run = _found(client, run_id)
        return RunOutputs(run.spec, run.status(), partial(run.outcomes, with_text=True))

    return open_run


def with_full_ids(client: Client, spec: RunSpec) -> RunSpec:
    """Return a job that names its runs by their whole ids, so that it means the same ones later.

    Raises:
        InputError: There is no such run, or several.
    """
    if not any(one.startswith(RUN) for one in spec.inputs):
        return spec
    inputs = []
    for one in spec.inputs:
        given = run_id_of(one)
        inputs.append(one if given is None else f"{RUN}{_found(client, given).run_id}")
    return spec.model_copy(update={"inputs": tuple(inputs)})


def _found(client: Client, run_id: str) -> Run:
    try:
        return client.find(run_id)
    except UnknownRunError as error:
        where = (
            "; a run of a fleet is found with its broker (broker_url, FANOUT_BROKER_URL)"
            if client.is_embedded
            else "; a run without a broker is found without one only"
        )
        raise InputError(f"{error}{where}", source=f"{RUN}{run_id}") from None
    except AmbiguousRunError as error:
        raise InputError(str(error), source=f"{RUN}{run_id}") from None
