"""Texts to learn vocabularies from, and texts that break tokenizers."""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.",
    "In 1969, 3 people flew 384,400 km to the moon; it's still quite a long way!",
    "def main(argv):\n    for i in range(10):\n        print('hello', i, argv[i] == None)\n",
    "<table><tr><td>a < b && c > d</td></tr></table> [INST] s / | _ im start end </s> <s>",
    "東京は日本の首都です。吾輩は猫である。名前はまだ無い。どこで生れたか見当がつかぬ。",
    "北京是中华人民共和国的首都。人工智能正在改变世界，语言模型越来越大。",
    "ภาษาไทยเป็นภาษาที่ไม่มีการเว้นวรรคระหว่างคำ",
    "Ünïcödé naïve café, Straße, Ελληνικά, Русский язык, עברית, العربية",
    "a\t\ttab and  two   three    spaces\n\n\nnewlines",
] * 30

HARD = [
    "",
    " ",
    "   ",
    "a",
    " a",
    "  a  b   c    ",
    "\t\ttabs\tand\nnewlines\r\n\r\n\n\n end\n",
    "x" + " " * 63 + "y",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇯🇵 ❤️ é́ à́̂",
    "東京特許許可局\u3000全角　スペース、ｶﾀｶﾅ ﾊﾝｶｸ ＡＢＣ１２３",
    "中文字符,没有空格。한국어 텍스트",
    "ภาษาไทยน้ำ กำลัง",
    "‮RTL‬ שלום עולם مرحبا بالعالم ‏",
    "nul\x00 bell\x07 esc\x1b[0m del\x7f c1\x85 bom\ufeff zwsp\u200b nbsp\u00a0.",
    "1234567890 3.14159 1,000,000 ²³ ½ ٣٤٥",
    "don't I'LL we'Ve 'S O'Neil 's",
    "\U0010ffff \ue000 \uffff \U0001f9ff",
    "if (a[i] != b->c) { return x ? y : z; } // ¿qué?",
    "w" * 5000,
    "é" * 700,
]
