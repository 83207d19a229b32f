"""Model strings in the words of OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

__all__ = ["provider_and_model"]

# Where litellm's name of a provider is not the convention's.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}


def provider_and_model(model: str) -> tuple[str, str]:
    """Return ``gen_ai.provider.name`` and ``gen_ai.request.model`` of a model string.

    What is no provider's is ``fanout``'s own: the local model, the fake, and functions.
    """
    provider, slash, name = model.removeprefix("litellm/").partition("/")
    if not slash:
        # What follows is how the fake shall behave.
        return "fanout", model.partition("?")[0]
    return _PROVIDERS.get(provider, provider), name
