"""`keifu data`: from raw text to what training reads."""

from __future__ import annotations

from keifu.cli.verbs import Verb, Verbs

_SEE, _CLEAN, _READ = "See what there is", "Clean it", "Make what training reads"
app = Verbs(
    "data",
    {
        "inspect": Verb("keifu.cli.data_inspect:inspect", _SEE, "What a data set holds; bad rows."),
        "build": Verb("keifu.cli.data_build:build", _CLEAN, "Clean and deduplicate texts."),
        "tokenize": Verb("keifu.cli.data_tokenize:tokenize", _READ, "Texts to shards of tokens."),
        "preview": Verb("keifu.cli.data_preview:preview", _READ, "Rows as training sees them."),
        "mixture": Verb(
            "keifu.cli.data_mixture:mixture", _READ, "What a run takes of each source."
        ),
        "train-tokenizer": Verb(
            "keifu.cli.data_tokenizer:train_tokenizer", _READ, "Learn a vocabulary from texts."
        ),
    },
    help="From raw text to what training reads.",
    epilog="""\
Examples:
  keifu data inspect chats.jsonl                        which form, how many rows, which are bad
  keifu data inspect data/dataset_info.json:my-set      an entry of LLaMA-Factory's list
  keifu data build corpus web.jsonl.gz books/           with Keifu's usual steps
  keifu data build corpus web/ --recipe recipes/ziya2_data.yaml --judge default --processes 8
  keifu data train-tokenizer tok books/ --size 4096
  keifu data tokenize shards books=books/ code=src.jsonl --tokenizer tok --held-out 0.01
  keifu data mixture shards --weight books=1 --weight code=2 --epochs books=4
  keifu data preview shards --length 256 --by document

Files: text, JSON, JSONL, CSV, TSV (also .gz and .zst), Parquet, Arrow; folders; hub data sets.
`keifu list steps` shows what a recipe of `build` can ask for.""",
    subcommand_metavar="VERB ...",
)
