"""Families: one file a family; published architecture names; `load_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keifu.core.registry import Registry
from keifu.families._family import Family

if TYPE_CHECKING:
    from keifu.families._load import load_model as load_model
    from keifu.families._save import save_model as save_model

families: Registry[type[Family]] = Registry("family", "keifu.families", "family", Family)
"""Every family by name; the name is the file's."""

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2-moe",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "QWenLMHeadModel": "qwen",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3-moe",
    "StableLmForCausalLM": "stablelm",
    "OpenAIGPTLMHeadModel": "gpt-1",
    "OpenAIGPTDoubleHeadsModel": "gpt-1",
    "GPT2LMHeadModel": "gpt-2",
    "GPT2DoubleHeadsModel": "gpt-2",
    "GPT3LMHeadModel": "gpt-3",
    "GPTJForCausalLM": "gpt-j",
    "GPTNeoXForCausalLM": "gpt-neox",
    "GPTNeoXJapaneseForCausalLM": "gpt-neox-japanese",
    "OPTForCausalLM": "opt",
    "BloomForCausalLM": "bloom",
    "FalconForCausalLM": "falcon",
    "MptForCausalLM": "mpt",
    "MPTForCausalLM": "mpt",
    "PaLMForCausalLM": "palm",
    "LaMDAForCausalLM": "lamda",
    "PEERForCausalLM": "peer",
    "RecurrentGemmaForCausalLM": "griffin",
    "HyenaDNAForCausalLM": "hyena",
    "PhiForCausalLM": "phi",
    "MambaForCausalLM": "mamba",
    "FalconMambaForCausalLM": "falcon-mamba",
    "Mamba2ForCausalLM": "mamba2",
    "S4ForCausalLM": "s4",
    "MegalodonForCausalLM": "megalodon",
    "RNNForCausalLM": "rnn",
    "LSTMForCausalLM": "lstm",
    "GRUForCausalLM": "gru",
    "AWDLSTMForCausalLM": "ulmfit",
    "T5ForConditionalGeneration": "t5",
    "T5WithLMHeadModel": "t5",
    "MT5ForConditionalGeneration": "t5",
    "SwitchTransformersForConditionalGeneration": "switch",
    "T5EncoderModel": "t5-encoder",
    "MT5EncoderModel": "t5-encoder",
    "BertModel": "bert",
    "ElmoModel": "elmo",
    "DebertaModel": "deberta",
    "DebertaV2Model": "deberta-v2",
    "RobertaModel": "roberta",
    "XLMRobertaModel": "xlm-roberta",
    "CamembertModel": "camembert",
    "AlbertModel": "albert",
    "ErnieModel": "ernie",
    "BartForConditionalGeneration": "bart",
    "BartModel": "bart",
    "BartForSequenceClassification": "bart",
    "MarianMTModel": "marian",
    "MBartForConditionalGeneration": "mbart",
    "MBartForSequenceClassification": "mbart",
    "PegasusForConditionalGeneration": "pegasus",
    "TransformerForConditionalGeneration": "transformer",
    "EncoderDecoderModel": "encoder-decoder",
    "RMTForCausalLM": "rmt",
    "RNNTranslationForConditionalGeneration": "rnn-translation",
    "RNNSearchForConditionalGeneration": "rnn-search",
    "RNNLuongForConditionalGeneration": "rnn-luong",
    "RNNSpeechForCTC": "rnn-speech",
}
"""`architectures` of published configs -> family. A family's classes with task heads
(`BertForTokenClassification`) follow from the prefix and `Fields.tasks`."""

__all__ = ["ARCHITECTURES", "Family", "families", "load_model", "save_model"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from keifu.families._load import load_model

        return load_model
    if name == "save_model":
        from keifu.families._save import save_model

        return save_model
    raise AttributeError(f"module 'keifu.families' has no attribute {name!r}")
