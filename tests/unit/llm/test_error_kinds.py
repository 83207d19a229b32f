"""The classification of real servers' error replies, with their original bodies."""

# ruff: noqa: E501 - bodies are as servers send them

from __future__ import annotations

import json

import pytest

from fanout.llm.error_kinds import ALWAYS, FEW, MANY, NEVER
from fanout.llm.http_errors import http_error, refused_in_success
from fanout.llm.reply_bodies import error_details, json_of

PAGE = (
    b'<!DOCTYPE html>\n<html class="no-js" lang="en-US">\n<head>\n<title>Attention Required! | '
    b"Cloudflare</title></head><body>Sorry, you have been blocked</body></html>"
)
NGINX = (
    b"<html>\r\n<head><title>%s</title></head>\r\n<body>\r\n<center>nginx</center></body></html>"
)


def openai(message, type_="invalid_request_error", code=None, param=None):
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def anthropic(type_, message):
    return {"type": "error", "error": {"type": type_, "message": message}, "request_id": "req_1"}


def google(code, status, message, **more):
    return [{"error": {"code": code, "message": message, "status": status, **more}}]


def vllm(message, type_="BadRequestError", code=400):
    return {"object": "error", "message": message, "type": type_, "param": None, "code": code}


QUOTA = "You exceeded your current quota, please check your plan and billing details."
DAILY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}
BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
TPM = "Rate limit reached for gpt-x in organization org-1 on tokens per min (TPM): Limit 40000, "
TOO_LARGE = (
    "Request too large for model `x` in organization `org_1` on tokens per minute (TPM): Limit "
    "6000, Requested 12328. Upgrade at https://console.groq.com/settings/billing"
)
USE_OTHER = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead."
)
TEMPERATURE = (
    "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) "
    "value is supported."
)
NO_CREDITS = (
    "This request requires more credits, or fewer max_tokens. You requested up to 65536 tokens, "
    "but can only afford "
)
EXTRA = {
    "type": "extra_forbidden",
    "loc": ["body", "seed"],
    "msg": "Extra inputs are not permitted",
}

# Name: status, body, headers; then the kind of error and its ``stop_after``.
REPLIES = {
    # Rate limits, even if the message links to a billing page.
    "openai rate": (429, openai(TPM + "Used 39000, Requested 2000. Please try again in 1.5s. Visit https://platform.openai.com/account/billing to add a payment method.", "tokens", "rate_limit_exceeded"), {}, "rate_limited", NEVER),
    "rate with a link": (429, openai("Slow down, or add credits at /settings/billing", "requests", "rate_limit_exceeded"), {"retry-after": "1"}, "rate_limited", NEVER),
    "rate in words alone": (429, openai("Rate limit reached. Please add a payment method: /account/billing", "requests"), {}, "rate_limited", NEVER),
    "quota words and a hint": (429, openai(QUOTA, None), {"retry-after": "20"}, "rate_limited", NEVER),
    "anthropic rate": (429, anthropic("rate_limit_error", "This request would exceed your organization's rate limit of 40,000 input tokens per minute"), {"retry-after": "12"}, "rate_limited", NEVER),
    "anthropic overloaded": (529, anthropic("overloaded_error", "Overloaded"), {}, "server_error", NEVER),
    "google quota a minute": (429, google(429, "RESOURCE_EXHAUSTED", QUOTA + " Please retry in 37.8s.", details=[DAILY]), {}, "rate_limited", NEVER),
    "google exhausted": (429, google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."), {}, "rate_limited", NEVER),
    "azure rate": (429, {"error": {"code": "429", "message": "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-02-01 have exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after 26 seconds. Please go here: https://aka.ms/oai/quotaincrease"}}, {"retry-after": "26"}, "rate_limited", NEVER),
    "mistral rate": (429, {"object": "error", "message": "Service tier capacity exceeded for this model.", "type": "service_tier_capacity_exceeded", "code": "3505"}, {}, "rate_limited", NEVER),
    "github secondary": (403, {"message": "You have exceeded a secondary rate limit."}, {"retry-after": "60"}, "rate_limited", NEVER),
    "page of too many": (429, NGINX % b"429 Too Many Requests", {}, "rate_limited", NEVER),
    # No money: certain because of the code.
    "openai quota": (429, openai(QUOTA, "insufficient_quota", "insufficient_quota"), {}, "budget", ALWAYS),
    "openai quota, old": (429, openai(QUOTA, "insufficient_quota"), {}, "budget", ALWAYS),
    "openai quota and a hint": (429, openai(QUOTA, "insufficient_quota", "insufficient_quota"), {"retry-after": "1"}, "budget", ALWAYS),
    "openai hard limit": (400, openai("Billing hard limit has been reached", code="billing_hard_limit_reached"), {}, "budget", ALWAYS),
    "openai not active": (429, openai("Your account is not active, please check your billing details on our website.", "billing_not_active", "billing_not_active"), {}, "budget", ALWAYS),
    "anthropic credit": (400, anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."), {}, "budget", ALWAYS),
    "anthropic billing": (402, anthropic("billing_error", "There is an issue with your billing"), {}, "budget", ALWAYS),
    "deepseek": (402, openai("Insufficient Balance", "unknown_error", "invalid_request_error"), {}, "budget", ALWAYS),
    "litellm budget": (400, openai("Budget has been exceeded! Current cost: 26.07, Max budget: 0.25", "budget_exceeded", "400"), {}, "budget", ALWAYS),
    "moonshot": (429, openai("Your account is suspended", "exceeded_current_quota_error"), {}, "budget", ALWAYS),
    "openrouter, nothing left": (402, {"error": {"message": NO_CREDITS + "0.", "code": 402}}, {}, "budget", ALWAYS),
    # Money in words, or too little for one document: not certain.
    "openrouter, some left": (402, {"error": {"message": NO_CREDITS + "92985.", "code": 402}}, {}, "budget", FEW),
    "quota in words alone": (429, openai(QUOTA, None), {}, "budget", FEW),
    "a document speaks of it": (400, openai("cannot parse 'Your credit balance is too low'"), {}, "budget", FEW),
    # Keys.
    "openai key": (401, openai("Incorrect API key provided: sk-x***. You can find your API key at ...", code="invalid_api_key"), {}, "auth", ALWAYS),
    "anthropic key": (401, anthropic("authentication_error", "invalid x-api-key"), {}, "auth", ALWAYS),
    "google key": (400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", details=[BAD_KEY]), {}, "auth", ALWAYS),
    "google key, by its reason": (400, google(400, "INVALID_ARGUMENT", "Please renew it.", details=[BAD_KEY]), {}, "auth", ALWAYS),
    "azure key": (401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key or wrong API endpoint."}}, {}, "auth", ALWAYS),
    "litellm key": (401, openai("Authentication Error, Invalid proxy server token passed", "token_not_found_in_db", "401", "key"), {}, "auth", ALWAYS),
    "country": (403, openai("Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"), {}, "auth", ALWAYS),
    "deactivated": (401, openai("The OpenAI account associated with this API key has been deactivated.", code="account_deactivated"), {}, "auth", ALWAYS),
    "no key": (401, openai("You didn't provide an API key."), {}, "auth", FEW),
    "mistral key": (401, {"message": "Unauthorized", "request_id": "1"}, {}, "auth", FEW),
    "together key": (401, b'{"error": "Unauthorized"}', {}, "auth", FEW),
    "vllm key": (401, {"error": "Unauthorized"}, {}, "auth", FEW),
    "openrouter key": (401, {"error": {"message": "No auth credentials found", "code": 401}}, {}, "auth", FEW),
    "anthropic permission": (403, anthropic("permission_error", "Your API key does not have permission to use the specified resource."), {}, "auth", FEW),
    "page of a login": (401, NGINX % b"401 Authorization Required", {}, "auth", FEW),
    # A firewall blocks a document.
    "cloudflare": (403, PAGE, {"content-type": "text/html; charset=UTF-8"}, "bad_request", MANY),
    "page without a type": (403, PAGE, {}, "bad_request", MANY),
    "gateway": (403, {"message": "Forbidden"}, {}, "auth", MANY),
    "gateway in text": (403, b"Access denied", {"content-type": "text/plain"}, "auth", MANY),
    "page of bad gateway": (502, NGINX % b"502 Bad Gateway", {}, "server_error", NEVER),
    "cloudflare 521": (521, PAGE, {}, "server_error", NEVER),
    # Too long.
    "openai context": (400, openai("This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.", code="context_length_exceeded", param="messages"), {}, "context_length", NEVER),
    "openai string": (400, openai("Invalid 'messages[0].content': string too long. Expected a string with maximum length 10485760", code="string_above_max_length"), {}, "context_length", NEVER),
    "openai a minute's tokens": (429, openai("Request too large for gpt-x on tokens per min (TPM): Limit 30000, Requested 342389.", "tokens", "rate_limit_exceeded"), {}, "context_length", NEVER),
    "groq a minute's tokens": (413, openai(TOO_LARGE, "tokens", "rate_limit_exceeded"), {}, "context_length", NEVER),
    "groq context": (400, openai("Please reduce the length of the messages or completion.", code="context_length_exceeded"), {}, "context_length", NEVER),
    "vllm": (400, vllm("This model's maximum context length is 2048 tokens. However, you requested 4087 tokens in the messages, Please reduce the length of the messages."), {}, "context_length", NEVER),
    "vllm decoder": (400, vllm("The decoder prompt (length 9000) is longer than the maximum model length of 4096."), {}, "context_length", NEVER),
    "vllm negative": (400, vllm("max_tokens must be at least 1, got -186."), {}, "context_length", NEVER),
    "tgi inputs": (422, {"error": "Input validation error: `inputs` must have less than 2048 tokens. Given: 2222", "error_type": "validation"}, {}, "context_length", NEVER),
    "tgi sum": (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 512 `max_new_tokens`", "error_type": "validation"}, {}, "context_length", NEVER),
    "sglang": (400, vllm("The input (9000 tokens) is longer than the model's context length (4096 tokens)."), {}, "context_length", NEVER),
    "google context": (400, google(400, "INVALID_ARGUMENT", "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576)."), {}, "context_length", NEVER),
    "anthropic context": (400, anthropic("invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum"), {}, "context_length", NEVER),
    "anthropic sum": (400, anthropic("invalid_request_error", "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, decrease input length or `max_tokens` and try again"), {}, "context_length", NEVER),
    "anthropic bytes": (413, anthropic("request_too_large", "Request exceeds the maximum size"), {}, "context_length", NEVER),
    "llama.cpp": (400, {"error": {"code": 400, "message": "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it", "type": "exceed_context_size_error", "n_ctx": 4096}}, {}, "context_length", NEVER),
    "llama.cpp, as a failure": (500, {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}, {}, "context_length", NEVER),
    "llama.cpp, old": (500, {"error": {"code": 500, "message": "the request exceeds the available context size. try increasing it", "type": "exceed_context_size_error"}}, {}, "context_length", NEVER),
    "llama-cpp-python": (400, openai("Requested tokens (2285) exceed context window of 2048", code="context_length_exceeded"), {}, "context_length", NEVER),
    "ollama": (400, openai("input length exceeds the context length", "api_error"), {}, "context_length", NEVER),
    "mistral": (400, {"object": "error", "message": "Prompt contains 65673 tokens and 0 draft tokens, too large for model with 32768 maximum context length", "type": "invalid_request_prompt", "code": "3051"}, {}, "context_length", NEVER),
    "together": (422, openai("`inputs` tokens + `max_new_tokens` must be <= 8193. Given: 8000 `inputs` tokens and 512 `max_new_tokens`"), {}, "context_length", NEVER),
    "openrouter": (400, {"error": {"message": "This endpoint's maximum context length is 131072 tokens. However, you requested about 200000 tokens", "code": 400}}, {}, "context_length", NEVER),
    "openrouter, from behind": (400, {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": '{"error": "prompt is too long"}', "provider_name": "X"}}}, {}, "context_length", NEVER),
    "xai": (400, {"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is 131072 but the request contains 200000 tokens."}, {}, "context_length", NEVER),
    "bedrock": (400, {"message": "Input is too long for requested model."}, {}, "context_length", NEVER),
    "github": (413, {"error": {"code": "tokens_limit_reached", "message": "Request body too large for gpt-4o model. Max size: 8000 tokens."}}, {}, "context_length", NEVER),
    "lm studio": (400, {"error": "Trying to keep the first 10136 tokens when context the overflows. However, the model is loaded with context length of only 7866 tokens"}, {}, "context_length", NEVER),
    "nginx": (413, NGINX % b"413 Request Entity Too Large", {}, "context_length", NEVER),
    # Content filters.
    "azure filter": (400, {"error": {"message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", "type": None, "param": "prompt", "code": "content_filter", "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, {}, "content_filter", NEVER),
    "openai policy": (400, openai("Invalid prompt: your prompt was flagged as potentially violating our usage policy.", code="invalid_prompt"), {}, "content_filter", NEVER),
    "anthropic filter": (400, anthropic("invalid_request_error", "Output blocked by content filtering policy"), {}, "content_filter", NEVER),
    "openrouter moderation": (403, {"error": {"code": 403, "message": 'Your chosen model requires moderation and your input was flagged for "violence"', "metadata": {"reasons": ["violence"]}}}, {}, "content_filter", NEVER),
    # The model, the address, the fields.
    "openai model": (404, openai("The model `gpt-9` does not exist or you do not have access to it.", code="model_not_found"), {}, "bad_request", FEW),
    "vllm model": (404, vllm("The model `x` does not exist.", "NotFoundError", 404), {}, "bad_request", FEW),
    "ollama model": (404, openai('model "x" not found, try pulling it first', "api_error"), {}, "bad_request", FEW),
    "anthropic model": (404, anthropic("not_found_error", "model: claude-x"), {}, "bad_request", FEW),
    "google model": (404, google(404, "NOT_FOUND", "models/x is not found for API version v1main"), {}, "bad_request", FEW),
    "azure deployment": (404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}}, {}, "bad_request", FEW),
    "azure operation": (400, {"error": {"code": "OperationNotSupported", "message": "The chatCompletion operation does not work with the specified model, x."}}, {}, "bad_request", FEW),
    "mistral model": (400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "code": "1500"}, {}, "bad_request", FEW),
    "groq model": (400, openai("The model `x` has been decommissioned and is no longer supported.", code="model_decommissioned"), {}, "bad_request", FEW),
    "together model": (400, openai("Unable to access non-serverless model x.", code="model_not_available"), {}, "bad_request", FEW),
    "openrouter model": (400, {"error": {"message": "x is not a valid model ID", "code": 400}}, {}, "bad_request", FEW),
    "litellm model": (400, openai("Invalid model name passed in model=x. Call `/v1/models` to view available models", None, "400"), {}, "bad_request", FEW),
    "no path, fastapi": (404, {"detail": "Not Found"}, {}, "bad_request", FEW),
    "no path, text": (404, b"404 page not found", {"content-type": "text/plain"}, "bad_request", FEW),
    "no path, page": (404, NGINX % b"404 Not Found", {"content-type": "text/html"}, "bad_request", FEW),
    "no path, empty": (404, b"", {}, "bad_request", FEW),
    "wrong path": (405, {"detail": "Method Not Allowed"}, {}, "bad_request", FEW),
    "limit's name": (400, openai(USE_OTHER, code="unsupported_parameter", param="max_tokens"), {}, "bad_request", FEW),
    "temperature": (400, openai(TEMPERATURE, code="unsupported_value", param="temperature"), {}, "bad_request", FEW),
    "mistral field": (422, {"object": "error", "message": {"detail": [EXTRA]}, "type": "invalid_request_error"}, {}, "bad_request", FEW),
    "fastapi field": (422, {"detail": [EXTRA]}, {}, "bad_request", FEW),
    "something else": (400, openai("Invalid schema"), {}, "bad_request", MANY),
    # Failures.
    "llama.cpp loads": (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, {}, "server_error", NEVER),
    "one-api channel": (503, openai("No available channel for model x", code="model_not_found"), {}, "server_error", NEVER),
    "key within a failure": (500, openai("Incorrect API key provided", code="invalid_api_key"), {}, "server_error", NEVER),
    "late": (408, b"", {}, "timeout", NEVER),
}  # fmt: skip


def meant(status, body, headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http_error(status, error_details(data, headers.get("content-type", "")), headers=headers)


@pytest.mark.parametrize("name", REPLIES)
def test_what_an_error_reply_means(name):
    status, body, headers, kind, stop_after = REPLIES[name]
    error = meant(status, body, headers)
    assert (error.kind.value, error.stop_after, error.status) == (kind, stop_after, status)
    assert str(error).startswith(f"HTTP {status}: ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("openai model", "does not exist or you do not have access to it.; check the model's name"),
        ("no path, text", "404 page not found; check the base URL where the workers run: its path"),
        ("no path, page", "a web page, '404 Not Found'; check the base URL"),
        ("cloudflare", "a web page, 'Attention Required! | Cloudflare'; it may be from a firewall"),
        ("temperature", "leave out temperature, or give another value"),
        ("mistral field", "body.seed: Extra inputs are not permitted; leave out seed"),
        ("tgi inputs", "must have less than 2048 tokens"),
    ],
)
def test_an_error_says_what_the_provider_says_and_what_to_look_at(name, words):
    assert words in str(meant(*REPLIES[name][:3]))


def test_a_long_message_does_not_cost_the_hint():
    error = meant(404, openai("The model " + "x" * 2000, code="model_not_found"), {})
    assert len(str(error)) == 300
    assert str(error).endswith("; check the model's name, and that the key may use it")


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("google quota a minute", 37), ("openai rate", 1.5), ("azure rate", 26),
        ("rate with a link", 1), ("rate in words alone", None),
    ],
)  # fmt: skip
def test_a_wait_that_is_asked_for_in_a_body_counts(name, seconds):
    assert meant(*REPLIES[name][:3]).retry_after_s == seconds


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("Please try again in 7m12s.", 432), ("try again in 20ms", 0.02), ("retry in 1h2m", 3720),
        ("try again in 9m38.016s. Or", 578.016), ("try again in a while", None),
    ],
)  # fmt: skip
def test_waits_in_words(words, seconds):
    error = meant(429, openai(words), {})
    assert error.retry_after_s == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"error": {"message": "Provider returned error", "code": 502}}, "server_error"),
        ({"error": {"message": "Rate limit exceeded: free-models-per-min", "code": 429}}, "rate_limited"),
        ({"error": {"message": "x", "code": "context_length_exceeded"}}, "context_length"),
        ({"error": {"message": "x", "code": "insufficient_quota"}}, "budget"),
        ({"error": "This model's maximum context length is 4096 tokens"}, "context_length"),
        ({"error": {"message": "CUDA out of memory"}}, "server_error"),
        ({"object": "error", "message": "broken", "code": 50001}, "server_error"),
        ([{"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}], "server_error"),
        ({"detail": "starting"}, "server_error"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "server_error"),
    ],
)  # fmt: skip
def test_an_error_in_a_reply_of_success_is_an_error_of_its_kind(told, kind):
    assert refused_in_success(told, headers={}).kind.value == kind


@pytest.mark.parametrize("told", [{}, [], None, 7, "", {"choices": []}, {"error": None}])
def test_a_reply_of_success_without_an_error_has_none(told):
    assert refused_in_success(told, headers={}) is None


@pytest.mark.parametrize(
    ("body", "named", "problem"),
    [
        (b"<html>", "text/html; charset=utf-8", "it is not JSON, but text/html"),
        (b"<html>", "application/json", "it is not JSON, though its type is application/json"),
        (b"<html>", "", "it is not JSON, but of no type"),
        (b" ", "application/json", "it is empty"),
    ],
)
def test_a_body_that_is_no_json_has_what_it_is(body, named, problem):
    with pytest.raises(ValueError, match=r"^it is") as found:
        json_of(body, named)
    assert str(found.value) == problem
