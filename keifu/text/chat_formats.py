"""The published chat formats, for models whose checkpoint carries no template.

A row says what stands before and after what each side says; the Jinja template follows from it.
`{bos}` and `{eos}` are the tokenizer's own. The sources are the models' cards and their code.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

from keifu.core.errors import unknown

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Tools:
    """How a format announces tools, writes calls and takes replies: Jinja in each."""

    calls: str
    """A statement that writes `message['tool_calls']` after what an assistant said."""
    reply: Pair
    """Round a tool's reply; `{user}` and `{/user}` are the user's own."""
    system: str = "''"
    """An expression that goes behind the system message where there are tools."""
    user: str = "''"
    """And one before the first user's words."""
    called: str | None = None
    """What ends an assistant's turn that calls; None: what ends any."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """One way to write a conversation down."""

    source: str
    """Where it is published."""
    user: Pair
    """What stands before and after the words of a user."""
    assistant: Pair
    prompt: str
    """What asks the model to answer."""
    start: str = ""
    system: Pair | None = None
    """Round a system message; None: it goes into the first user's turn, see `fold`."""
    fold: Pair = ("", "\n\n")
    """Round a system message inside the first user's turn."""
    default: str = ""
    """The system message where there is none."""
    trim: bool = False
    """Spaces at the ends of what is said are dropped."""
    alternate: bool = False
    """User and assistant must take turns."""
    tools: Tools | None = None
    stops: tuple[str, ...] = ()
    """Strings that end an answer, for models that have no token for it."""

    def jinja(self) -> str:
        """The template."""
        said = "message['content'] | trim" if self.trim else "message['content']"
        lines = [f"{{{{ {_text(self.start)} }}}}" if self.start else ""]
        lines.append(
            "{% if messages[0]['role'] in ('system', 'developer') %}"
            f"{{% set system = messages[0]['content']{' | trim' if self.trim else ''} %}}"
            "{% set turns = messages[1:] %}{% else %}"
            f"{{% set system = {_text(self.default)} %}}{{% set turns = messages %}}{{% endif %}}"
        )
        if self.tools:
            announced = f"{{% set system = system ~ {self.tools.system} %}}"
            lines.append(f"{{% if tools %}}{announced}{{% endif %}}")
        if self.system:
            lines.append(
                _when("system", f"{_text(self.system[0])} ~ system ~ {_text(self.system[1])}")
            )
        lines.append("{% for message in turns %}")
        if self.alternate:
            lines.append(
                "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
                "'after the system message, user and assistant must take turns') }}{% endif %}"
            )
        lines.append("{% if message['role'] == 'user' %}")
        lines.append(f"{{{{ {_text(self.user[0])} }}}}")
        if not self.system:
            fold = f"{_text(self.fold[0])} ~ system ~ {_text(self.fold[1])}"
            lines.append(_when("system and loop.first", fold))
        if self.tools and self.tools.user != "''":
            first = "tools and message == (turns | selectattr('role', 'equalto', 'user') | first)"
            lines.append(_when(first, self.tools.user))
        lines.append(f"{{{{ ({said}) ~ {_text(self.user[1])} }}}}")
        lines.append("{% elif message['role'] == 'assistant' %}")
        before, after = map(_text, self.assistant)
        maybe = f"(message['content'] or ''){' | trim' if self.trim else ''}"
        lines.append(f"{{{{ {before} ~ ({maybe if self.tools else said}) }}}}")
        if self.tools:
            lines.append(self.tools.calls)
            if self.tools.called is not None:
                after = f"({_text(self.tools.called)} if message['tool_calls'] else {after})"
        lines.append(f"{{{{ {after} }}}}")
        if self.tools:
            own = {"{user}": self.user[0], "{/user}": self.user[1]}
            before, after = (
                _text(re.sub(r"\{/?user\}", lambda m: own[m[0]], part)) for part in self.tools.reply
            )
            lines.append("{% elif message['role'] == 'tool' %}")
            lines.append(f"{{{{ {before} ~ ({said}) ~ {after} }}}}")
        known = "system, user, assistant" + (", tool" if self.tools else "")
        lines.append(
            "{% else %}{{ raise_exception('the role ' ~ message['role'] ~ "
            f"' is not known to this format: {known}, the system first') }}}}"
            "{% endif %}{% endfor %}"
        )
        lines.append(_when("add_generation_prompt", _text(self.prompt)))
        return "".join(lines)


def _when(condition: str, expression: str) -> str:
    return f"{{% if {condition} %}}{{{{ {expression} }}}}{{% endif %}}"


def _text(text: str) -> str:
    """A Jinja expression for a text in which `{bos}` and `{eos}` are variables."""
    parts = [part for part in re.split(r"(\{bos\}|\{eos\})", text) if part]
    written = [
        f"{part[1:-1]}_token" if part in ("{bos}", "{eos}") else json.dumps(part) for part in parts
    ]
    return "(" + " ~ ".join(written or ['""']) + ")"


_HERMES_CALLS = (
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\\n' if message['content'] or not loop.first }}"
    "{{ '<tool_call>\\n{\"name\": ' ~ (call.function.name | tojson) ~ ', \"arguments\": ' ~ "
    "(call.function.arguments | tojson) ~ '}\\n</tool_call>' }}{% endfor %}"
)
_HERMES_TOOLS = (
    "('\\n\\n' if system else '') ~ 'You can call these functions. Their signatures are in "
    "<tools></tools>:\\n<tools>\\n' ~ (tools | map('tojson') | join('\\n')) ~ '\\n</tools>\\n"
    "For each call, answer with a JSON object in <tool_call></tool_call>:\\n<tool_call>\\n"
    '{"name": <name>, "arguments": <object>}\\n</tool_call>\''
)
HERMES = Tools(
    system=_HERMES_TOOLS,
    calls=_HERMES_CALLS,
    reply=("{user}<tool_response>\n", "\n</tool_response>{/user}"),
)
"""Announced in the system message, called in `<tool_call>` (Hermes, Qwen)."""
LLAMA = Tools(
    user=(
        "'Given the following functions, please respond with a JSON for a function call with its "
        "proper arguments that best answers the given prompt.\\n\\nRespond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}. '
        "Do not use variables.\\n\\n' ~ (tools | map('tojson', indent=4) | join('\\n\\n')) "
        "~ '\\n\\n'"
    ),
    calls=(
        "{% if (message['tool_calls'] or []) | length > 1 %}{{ raise_exception('this format writes "
        "one tool call a turn') }}{% endif %}{% for call in message['tool_calls'] or [] %}"
        "{{ '{\"name\": ' ~ (call.function.name | tojson) ~ ', \"parameters\": ' ~ "
        "(call.function.arguments | tojson) ~ '}' }}{% endfor %}"
    ),
    reply=("<|start_header_id|>ipython<|end_header_id|>\n\n", "<|eot_id|>"),
)
"""Announced before the first user's words, called by a bare JSON object, one a turn (Llama 3.1)."""

_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_BLOSSOM = (
    "A chat between a human and an artificial intelligence bot. "
    "The bot gives helpful, detailed, and polite answers to the human's questions."
)
_DEEPSEEK_CODER = (
    "You are an AI programming assistant, utilizing the Deepseek Coder model, developed by "
    "Deepseek Company, and you only answer questions related to computer science. For politically "
    "sensitive questions, security and privacy issues, and other non-computer science questions, "
    "you will refuse to answer"
)

_LLAMA_3 = ChatFormat(
    source="meta-llama/llama3, the model card's prompt format",
    start="{bos}",
    system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
    trim=True,
)

FORMATS: dict[str, ChatFormat] = {
    "chatml": ChatFormat(
        source="openai-python's chatml.md; Qwen, Yi, OpenHermes 2.5, MPT-chat, SmolLM cards",
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
        prompt="<|im_start|>assistant\n",
        tools=HERMES,
        stops=("<|im_end|>",),
    ),
    "llama-2": ChatFormat(
        source="facebookresearch/llama, generation.py",
        fold=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        user=("{bos}[INST] ", " [/INST]"),
        assistant=(" ", " {eos}"),
        prompt="",
        trim=True,
        alternate=True,
    ),
    "llama-3": _LLAMA_3,
    "llama-3.1": replace(
        _LLAMA_3,
        source="meta-llama/llama-models, llama3_1/prompt_format.md: JSON based tool calling",
        tools=LLAMA,
    ),
    "mistral": ChatFormat(
        source="mistralai/Mistral-7B-Instruct-v0.1 card",
        start="{bos}",
        user=("[INST] ", " [/INST]"),
        assistant=("", "{eos} "),
        prompt="",
        alternate=True,
    ),
    "zephyr": ChatFormat(
        source="HuggingFaceH4/zephyr-7b-beta card",
        system=("<|system|>\n", "{eos}\n"),
        user=("<|user|>\n", "{eos}\n"),
        assistant=("<|assistant|>\n", "{eos}\n"),
        prompt="<|assistant|>\n",
    ),
    "vicuna": ChatFormat(
        source="lm-sys/FastChat, vicuna_weights_version.md (v1.1)",
        start="{bos}",
        system=("", " "),
        default=_VICUNA,
        user=("USER: ", " "),
        assistant=("ASSISTANT: ", "{eos}"),
        prompt="ASSISTANT:",
        stops=("USER:",),
    ),
    "alpaca": ChatFormat(
        source="tatsu-lab/stanford_alpaca",
        start="{bos}",
        system=("", "\n\n"),
        default=_ALPACA,
        user=("### Instruction:\n", "\n\n"),
        assistant=("### Response:\n", "{eos}\n\n"),
        prompt="### Response:\n",
        stops=("### Instruction:",),
    ),
    "dolly": ChatFormat(
        source="databricks/dolly-v2-12b, instruct_pipeline.py",
        system=("", "\n\n"),
        default=_ALPACA,
        user=("### Instruction:\n", "\n\n"),
        assistant=("### Response:\n", "\n\n### End\n\n"),
        prompt="### Response:\n",
        stops=("### End", "### Instruction:"),
    ),
    "neural-chat": ChatFormat(
        source="Intel/neural-chat-7b-v3-1 card",
        system=("### System:\n", "\n"),
        user=("### User:\n", "\n"),
        assistant=("### Assistant:\n", "{eos}\n"),
        prompt="### Assistant:\n",
        stops=("### User:", "### System:"),
    ),
    "gemma": ChatFormat(
        source="ai.google.dev, Gemma formatting; the system message as Gemma 3 folds it",
        start="{bos}",
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
        prompt="<start_of_turn>model\n",
        trim=True,
        alternate=True,
    ),
    "phi-3": ChatFormat(
        source="microsoft/Phi-3-mini-4k-instruct card",
        system=("<|system|>\n", "<|end|>\n"),
        user=("<|user|>\n", "<|end|>\n"),
        assistant=("<|assistant|>\n", "<|end|>\n"),
        prompt="<|assistant|>\n",
    ),
    "phi-2": ChatFormat(
        source="microsoft/phi-2 card",
        user=("Instruct: ", "\n"),
        assistant=("Output: ", "\n"),
        prompt="Output:",
        stops=("Instruct:",),
    ),
    "falcon": ChatFormat(
        source="tiiuae/falcon-7b-instruct",
        user=("User: ", "\n\n"),
        assistant=("Assistant: ", "\n\n"),
        prompt="Assistant:",
        stops=("\nUser:",),
    ),
    "falcon-180b": ChatFormat(
        source="tiiuae/falcon-180B-chat card",
        system=("System: ", "\n"),
        user=("User: ", "\n"),
        assistant=("Falcon: ", "\n"),
        prompt="Falcon:",
        stops=("\nUser:",),
    ),
    "stablelm-alpha": ChatFormat(
        source="stabilityai/stablelm-tuned-alpha-7b card",
        system=("<|SYSTEM|>", ""),
        user=("<|USER|>", ""),
        assistant=("<|ASSISTANT|>", ""),
        prompt="<|ASSISTANT|>",
        stops=("<|USER|>",),
    ),
    "stablelm-zephyr": ChatFormat(
        source="stabilityai/stablelm-zephyr-3b card",
        system=("<|system|>\n", "<|endoftext|>\n"),
        user=("<|user|>\n", "<|endoftext|>\n"),
        assistant=("<|assistant|>\n", "<|endoftext|>\n"),
        prompt="<|assistant|>\n",
    ),
    "redpajama": ChatFormat(
        source="togethercomputer/RedPajama-INCITE-7B-Chat card",
        user=("<human>: ", "\n"),
        assistant=("<bot>: ", "\n"),
        prompt="<bot>:",
        stops=("<human>:",),
    ),
    "rinna": ChatFormat(
        source="rinna/japanese-gpt-neox-3.6b-instruction-sft card",
        user=("ユーザー: ", "<NL>"),
        assistant=("システム: ", "<NL>"),
        prompt="システム: ",
        stops=("ユーザー:",),
    ),
    "openchat": ChatFormat(
        source="openchat/openchat_3.5 card",
        start="{bos}",
        user=("GPT4 Correct User: ", "<|end_of_turn|>"),
        assistant=("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        prompt="GPT4 Correct Assistant:",
    ),
    "deepseek-coder": ChatFormat(
        source="deepseek-ai/deepseek-coder-33b-instruct card",
        start="{bos}",
        system=("", "\n"),
        default=_DEEPSEEK_CODER,
        user=("### Instruction:\n", "\n"),
        assistant=("### Response:\n", "\n<|EOT|>\n"),
        prompt="### Response:\n",
    ),
    "blossom": ChatFormat(
        source="Azure99/blossom-v3-mistral-7b card",
        start="{bos}",
        system=("", "\n"),
        default=_BLOSSOM,
        user=("|Human|: ", "\n"),
        assistant=("|Bot|: ", "{eos}\n"),
        prompt="|Bot|: ",
        stops=("|Human|:",),
    ),
}


def chat_format(name: str) -> ChatFormat:
    """A format by its name; a miss names the nearest."""
    if name not in FORMATS:
        raise unknown("chat format", name, FORMATS, "or pass a Jinja template")
    return FORMATS[name]
