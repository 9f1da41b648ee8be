"""Request bodies of the HTTP API, as pydantic types; fields not listed are reported, not lost."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Text = str | None
Count = int | None
Number = float | None
Flag = bool | None
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Object = dict[str, Any]
T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]
"""A list whose first wrong entry ends the reading: to tell millions of faults takes minutes."""
Batch = Annotated[list[T], Field(fail_fast=True, max_length=2048)]
Prompts = str | Many[TokenId] | Batch[str] | Batch[Many[TokenId]]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "prediction",
        "service_tier",
        "prompt_cache_key",
        "safety_identifier",
        "verbosity",
        "reasoning_effort",
        "cache_prompt",
        "include_obfuscation",
        "modalities",
        "audio",
        "web_search_options",
        "prompt_cache_retention",
        "diagnostics",
        "speed",
        "user_profile_id",
        "workspace_id",
        "thinking",
        "container",
        "context_management",
        "mcp_servers",
        "output_config",
        "inference_geo",
        "cache_control",
        "dry_multiplier",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "xtc_probability",
        "xtc_threshold",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
        "id_slot",
        "n_probs",
        "priority",
        "spaces_between_special_tokens",
        "request_id",
        "truncation",
        "detokenize",
    }
)
"""Fields that are known and have no effect here; listed in x-ignored-params, never refused."""

REFUSED = frozenset(
    {
        "lora",
        "truncate_prompt_tokens",
        "suffix",
        "input_audio",
    }
)
"""Fields whose silent loss would change what the answer means: refused when they are set."""


class Body(BaseModel):
    """Strict types (no "5" for 5), unknown fields kept so that they can be named."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    model: Annotated[str, Field(max_length=1024)] | None = None

    def unknown(self) -> dict[str, Any]:
        """Fields that the type does not have and whose value asks for something."""
        extra = self.__pydantic_extra__ or {}
        return {name: value for name, value in extra.items() if value is not None}


class StreamOptions(BaseModel):
    """What a stream adds: one last chunk with the usage."""

    model_config = ConfigDict(strict=True)
    include_usage: Flag = None


class Sampled(Body):
    """The sampling fields that chat and text completions share."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Number = None
    top_k: Count = None
    min_p: Number = None
    typical_p: Number = None
    repetition_penalty: Number = None
    repeat_penalty: Number = None
    presence_penalty: Number = None
    frequency_penalty: Number = None
    logit_bias: Object | None = None
    seed: Count = None
    n: Count = None
    stop: str | Many[str] | None = None
    stop_token_ids: Many[TokenId] | None = None
    include_stop_str_in_output: Flag = None
    skip_special_tokens: Flag = None
    ignore_eos: Flag = None
    min_tokens: Count = None
    prompt_logprobs: Count = None
    stream: Flag = None
    stream_options: StreamOptions | None = None
    response_format: Object | None = None
    guided_json: Object | str | None = None
    guided_regex: Text = None
    guided_choice: Many[str] | None = None
    guided_grammar: Text = None
    structured_outputs: Object | None = None
    json_schema: Object | None = None
    grammar: Text = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None


class CalledFunction(BaseModel):
    """The function of an earlier tool call."""

    model_config = ConfigDict(strict=True)
    name: str
    arguments: str = ""


class EarlierCall(BaseModel):
    """A tool call that an earlier answer made."""

    model_config = ConfigDict(strict=True)
    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class Part(BaseModel):
    """One part of a message: text, or a kind that the chosen model cannot read."""

    model_config = ConfigDict(strict=True)
    type: str
    text: Text = None
    refusal: Text = None


class ChatMessage(BaseModel):
    """A message of a conversation in OpenAI's shape."""

    model_config = ConfigDict(strict=True)
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | Many[Part] | None = None
    name: Text = None
    tool_calls: Many[EarlierCall] | None = None
    tool_call_id: Text = None
    function_call: CalledFunction | None = None
    reasoning_content: Text = None


class Function(BaseModel):
    """A function the model may call; `parameters` is a JSON schema."""

    model_config = ConfigDict(strict=True)
    name: ToolName
    description: Text = None
    parameters: Object | None = None
    strict: Flag = None


class ToolBody(BaseModel):
    """One tool of a request."""

    model_config = ConfigDict(strict=True)
    type: Literal["function"] = "function"
    function: Function


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[Many[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Flag = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[Many[ToolBody], Field(max_length=128)] | None = None
    tool_choice: str | Object | None = None
    parallel_tool_calls: Flag = None
    functions: Annotated[Many[Function], Field(max_length=128)] | None = None
    function_call: str | Object | None = None
    add_generation_prompt: Flag = None
    continue_final_message: Flag = None
    chat_template_kwargs: Object | None = None


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: Flag = None
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    truncate: bool | Literal["error", "end"] = False
    normalize: Flag = None
    prompt_name: Annotated[str, Field(max_length=256)] | None = None


class TokenizeBody(Body):
    """POST /tokenize: vLLM's `prompt` or `messages`, or llama.cpp's `content`."""

    prompt: Text = None
    content: Text = None
    messages: Annotated[Many[ChatMessage], Field(min_length=1, max_length=10_000)] | None = None
    add_special_tokens: Flag = None
    add_special: Flag = None
    parse_special: Flag = None
    add_generation_prompt: Flag = None
    return_token_strs: Flag = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: Many[TokenId]
