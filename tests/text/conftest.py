"""Small real vocabularies of each published format, trained by the reference libraries."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from keifu.text.pretokenize import LLAMA3
from tests.text.samples import CORPUS, SPECIAL


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all vocabularies are written to."""
    return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture(scope="session")
def byte_bpe(trained: Path) -> tokenizers.Tokenizer:
    """A byte-level BPE with LLaMA 3's pattern and three special tokens first."""
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rust.train_from_iterator(CORPUS, trainer)
    return rust


@pytest.fixture(scope="session")
def hf_folder(byte_bpe: tokenizers.Tokenizer, trained: Path) -> Path:
    """It as a checkpoint folder, with added tokens of both kinds."""
    folder = trained / "hf"
    folder.mkdir()
    rust = tokenizers.Tokenizer.from_str(byte_bpe.to_str())
    rust.add_tokens(
        [tokenizers.AddedToken(t, normalized=False) for t in ("    ", "<tool_call>", "<td>")]
    )
    rust.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        "{% if tools %}<tool_call>{% endif %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    return folder


def _sentencepiece(folder: Path, kind: str, **options: object) -> Path:
    folder.mkdir()
    (folder / "text").write_text("\n".join(CORPUS).replace("\n\n", "\n"))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=700,
        model_type=kind,
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
        **options,
    )
    return folder


@pytest.fixture(scope="session")
def spm_bpe(trained: Path) -> Path:
    """SentencePiece BPE as LLaMA 1 and 2 have it: byte fallback, spaces kept as they are."""
    return _sentencepiece(
        trained / "spm_bpe",
        "bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
    )


@pytest.fixture(scope="session")
def spm_unigram(trained: Path) -> Path:
    """SentencePiece Unigram as T5 has it: NFKC, spaces collapsed, unknown characters."""
    return _sentencepiece(trained / "spm_unigram", "unigram", character_coverage=0.98, pad_id=3)


@pytest.fixture(scope="session")
def tiktoken_file(byte_bpe: tokenizers.Tokenizer, trained: Path) -> Path:
    """A vocabulary in tiktoken's format: bytes in base64, rank by rank."""
    from keifu.text.pieces import BYTE_OF

    tokens = sorted(byte_bpe.get_vocab().items(), key=lambda item: item[1])
    kept = [bytes(BYTE_OF[c] for c in token) for token, _ in tokens if token not in SPECIAL]
    singles = [bytes([b]) for b in range(256)]
    order = singles + [token for token in kept if len(token) > 1]
    path = trained / "llama3"
    path.mkdir()
    lines = (base64.b64encode(t) + b" %d" % n for n, t in enumerate(order))
    (path / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    return path / "tokenizer.model"


@pytest.fixture(scope="session")
def wordpiece_folder(trained: Path) -> Path:
    """BERT's vocab.txt."""
    rust = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rust.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False),
    )
    folder = trained / "bert"
    folder.mkdir()
    rust.model.save(str(folder))
    return folder


@pytest.fixture(scope="session")
def gpt1_folder(trained: Path) -> Path:
    """GPT-1's vocab.json and merges.txt, with `</w>` at the ends of words."""
    rust = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<unk>"],
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    folder = trained / "gpt1"
    folder.mkdir()
    rust.model.save(str(folder))
    return folder
