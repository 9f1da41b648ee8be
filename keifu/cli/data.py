"""`keifu data`: from raw text to what training reads."""

from __future__ import annotations

from keifu.cli.verbs import Verb, Verbs

_READ = "Make what training reads"
app = Verbs(
    "data",
    {
        "tokenize": Verb("keifu.cli.data_tokenize:tokenize", _READ, "Texts to shards of tokens."),
        "preview": Verb("keifu.cli.data_preview:preview", _READ, "Rows as training sees them."),
        "train-tokenizer": Verb(
            "keifu.cli.data_tokenizer:train_tokenizer", _READ, "Learn a vocabulary from texts."
        ),
    },
    help="From raw text to what training reads.",
    epilog="""\
Examples:
  keifu data train-tokenizer tok books/ --size 4096
  keifu data tokenize shards books=books/ code=src.jsonl --tokenizer tok --held-out 0.01
  keifu data preview shards --length 256 --by document""",
    subcommand_metavar="VERB ...",
)
