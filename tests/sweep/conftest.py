"""The runs of the paper's tables, composed once."""

import pytest
from made_cells import CONF, TABLES, chosen, request_for

from phaseavg.sweep.cells import Run, runs_of
from phaseavg.sweep.composing import cached, composing


@pytest.fixture(scope="session")
def all_runs() -> dict[str, Run]:
    """Return the runs of chosen cells with three seeds by run id, which take long to compose."""
    with composing(CONF) as (_, compose), cached(compose, [CONF]) as composed:
        request = request_for(composed, f"table={','.join(TABLES)}", "seed=0,1,2")
        return runs_of(chosen(request.cells), request.seeds, composed)
