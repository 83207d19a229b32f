"""A budget in dollars, from the command line, with a provider that says what calls consumed."""

from __future__ import annotations

import json
import threading

from tests.scripted_provider import openai_reply

# A dollar for each token of an answer.
PRICE = ("--price", "input_mtok=0", "--price", "output_mtok=1000000")
BRANCHES = 12


def test_a_run_spends_no_more_than_its_budget_and_a_retry_goes_on(fanout, here, provider, tmp_path):
    lock, calls = threading.Lock(), []

    def respond(_headers, request):
        if request is None:
            return 200, {"data": []}
        with lock:
            calls.append(request)
        # Of two tokens.
        return 200, openai_reply("yes")

    provider.respond = respond
    env = {
        "OPENAI_BASE_URL": f"{provider.url}/v1",
        "OPENAI_API_KEY": "k",
        "FANOUT_STATE_DIR": str(tmp_path / "state"),
        "FANOUT_BROKER_URL": "",
    }
    (here / "a.txt").write_text("".join(f"text {number}\n" for number in range(BRANCHES)))
    job = ("run", "a.txt", "--split", "lines", "--prompt", "{input}", "--model", "openai/own-model")

    refused = fanout(*job, "--max-tokens", "3", "--budget-usd", "9", **env)
    assert refused.status != 0
    assert (
        "--budget-usd: cannot be kept: the price of openai/own-model is unknown" in refused.stderr
    )
    refused = fanout(*job, *PRICE, "--budget-usd", "9", **env)
    assert "the longest answer of openai/own-model is unknown; give --max-tokens" in refused.stderr
    refused = fanout(*job, *PRICE, "--max-tokens", "10", "--budget-usd", "9", **env)
    assert "--budget-usd: has no room for any call to openai/own-model" in refused.stderr
    assert "give a smaller --max-tokens" in refused.stderr
    assert not calls

    # Each call may cost 3 dollars and costs 2: the fourth brings 8, and a fifth could bring 11.
    done = fanout(*job, *PRICE, "--max-tokens", "3", "--budget-usd", "9", "--json", **env)
    assert done.status == 0
    status = json.loads(done.stdout)
    assert (status["succeeded"], status["errors"]) == (4, {"budget": 8})
    assert len(calls) == 4
    assert status["usage"]["cost_usd"] == status["budget"]["spent"]["usd"] == 8
    assert status["budget"]["left"] == {"usd": 1}
    assert "budget: $8.00 of $9.00 spent" in done.stderr
    assert f"`fanout retry {status['run_id']} --budget-usd N` goes on" in done.stderr

    again = fanout("retry", status["run_id"], **env)
    hint = (
        f"which has $1.00 left: `fanout retry {status['run_id']} --budget-usd N` gives it a larger"
    )
    assert hint in again.stderr
    assert len(calls) == 4
    again = fanout("retry", status["run_id"], "--budget-usd", "8", **env)
    assert "--budget-usd: must be more than the $8.00 that the run has spent" in again.stderr
    again = fanout("retry", status["run_id"], "--budget-usd", "50", **env)
    assert again.status == 0
    assert "succeeded: 12 of 12 branches" in again.stderr
    assert "budget: $24.00 of $50.00 spent" in again.stderr
    assert len(calls) == BRANCHES
