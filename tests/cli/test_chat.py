"""`keifu chat` for one answer, `complete` and `embed`, over a scripted model."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from keifu.cli.conversation import Conversation
from keifu.cli.dialogue import Dialogue
from keifu.cli.main import main
from keifu.core.errors import ContextLengthError, KeifuError
from tests.cli import driver

Opened = list[dict[str, Any]]
Capture = pytest.CaptureFixture[str]


def test_stdout_is_the_answer_alone(scripted: Opened, capsys: Capture) -> None:
    assert main(["chat", "hello", "there"]) == 0
    out = capsys.readouterr()
    assert out.out == "HELLO THERE [1]\n"
    assert out.err == ""


def test_system_and_piped_input(
    scripted: Opened, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the file\n")))
    assert main(["chat", "-s", "be brief", "question"]) == 0
    (request,) = scripted[0]["lm"].requests
    assert [dict(m) for m in request.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the file\n\nquestion"},
    ]


def test_json_is_one_object(scripted: Opened, capsys: Capture) -> None:
    args = ["--max-tokens", "2", "--temperature", "0", "--json", "one two three"]
    assert main(["chat", "--model", "m", *args]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == "ONE TWO"
    assert found["model"] == "m"
    assert found["finish_reason"] == "length"
    assert found["schema_version"] == 1
    assert found["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cached_tokens": 0,
        "drafted_tokens": 0, "accepted_tokens": 0,
    }  # fmt: skip
    assert set(found["timings"]) >= {"load", "first_token", "prefill", "decode", "total"}
    assert scripted[0]["lm"].requests[0].options == {"max_tokens": 2, "temperature": 0.0}


def test_options_reach_the_model(scripted: Opened) -> None:
    line = (
        "--ctx 99 --threads 2 --device cpu --precision exact --seed 5 --stop a --stop b --min-p .1"
    )
    assert main(["chat", *line.split(), "hi"]) == 0
    (opened,) = scripted
    assert {k: opened[k] for k in ("ctx", "threads", "device", "precision")} == {
        "ctx": 99, "threads": 2, "device": "cpu", "precision": "exact",
    }  # fmt: skip
    given = opened["lm"].requests[0].options
    assert given == {"seed": 5, "stop": ("a", "b"), "min_p": 0.1}


def test_no_stream_prints_at_the_end(scripted: Opened, capsys: Capture) -> None:
    assert main(["chat", "--no-stream", "long"]) == 0
    assert capsys.readouterr().out == "word " * 40 + "\n"


def test_a_cut_answer_says_so(scripted: Opened, capsys: Capture) -> None:
    assert main(["chat", "--max-tokens", "3", "long"]) == 0
    assert "cut at 3 tokens (--max-tokens)" in capsys.readouterr().err
    assert main(["chat", "--quiet", "--max-tokens", "3", "long"]) == 0
    assert capsys.readouterr().err == ""


def test_a_failure_in_mid_answer(scripted: Opened, capsys: Capture) -> None:
    assert main(["chat", "fail"]) == 1
    out = capsys.readouterr()
    assert out.out == "some words\n"
    assert out.err == "keifu: the model broke\n"


def test_a_model_that_does_not_open(scripted: Opened, capsys: Capture) -> None:
    assert main(["chat", "-m", "broken", "hi"]) == 1
    assert capsys.readouterr().err == "keifu: the file is damaged\n"


def test_a_base_model_completes_and_says_so(scripted: Opened, capsys: Capture) -> None:
    assert main(["chat", "-m", "base", "-s", "A story.", "Once"]) == 0
    assert "base has no chat template" in capsys.readouterr().err
    (request,) = scripted[0]["lm"].requests
    assert (request.verb, request.prompt) == ("complete", "A story.\n\nOnce")
    assert request.sampling.max_tokens == 256


def test_save_continue_and_list(scripted: Opened, capsys: Capture) -> None:
    assert main(["chat", "--save", "trip", "-s", "sys", "plan it"]) == 0
    assert main(["chat", "--continue", "trip", "and then"]) == 0
    assert [m["content"] for m in scripted[1]["lm"].requests[0].messages] == [
        "sys", "plan it", "PLAN IT [2]", "and then",
    ]  # fmt: skip
    assert main(["chat", "--continue", "--", "last"]) == 0
    assert main(["chat", "--continue", "with some words"]) == 0
    capsys.readouterr()
    assert main(["chat", "--list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["conversations"]
    assert (row["id"], row["messages"], row["title"]) == ("trip", 8, "plan it")
    assert main(["chat", "--list"]) == 0
    assert "trip" in capsys.readouterr().out


def test_a_name_that_cannot_be_is_refused_before_any_work(
    scripted: Opened, capsys: Capture
) -> None:
    assert main(["chat", "--save", "../x", "hi"]) == 1
    assert "cannot name a conversation" in capsys.readouterr().err
    assert scripted == []


def test_one_shots_are_not_kept_unasked(scripted: Opened, capsys: Capture) -> None:
    assert main(["chat", "private"]) == 0
    assert main(["chat", "--list"]) == 0
    assert "private" not in capsys.readouterr().out


def test_continue_with_a_stray_word_explains(scripted: Opened, capsys: Capture) -> None:
    assert main(["chat", "--save", "trip", "x"]) == 0
    assert main(["chat", "--continue", "thanks"]) == 1
    assert "write: --continue -- thanks" in capsys.readouterr().err


def test_complete(scripted: Opened, capsys: Capture) -> None:
    assert main(["complete", "abc"]) == 0
    assert capsys.readouterr().out == "ABC [0]\n"
    assert main(["complete", "--echo", "abc"]) == 0
    assert capsys.readouterr().out == "abcABC [0]\n"
    assert main(["complete", "--json", "abc"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "ABC [0]"
    assert scripted[0]["lm"].requests[0].sampling.max_tokens == 256
    assert main(["complete"]) == 2


def test_embed(scripted: Opened, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["embed", "a b", "c"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(line) for line in lines] == [64, 64]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a b\n\nc\n")))
    assert main(["embed", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["embeddings"] == lines
    assert found["pooling"] == "model"


def asking(context: int, **sampling: Any) -> Dialogue:
    lm = driver.load("m", ctx=context)
    return Dialogue(lm, Conversation(model="m", system="sys"), sampling)


def test_a_full_context_drops_the_oldest_turns() -> None:
    # ScriptedLM counts words and marks: [system] sys = 4, a turn of "a b c d" = 3 + 4, and so on.
    dialogue = asking(60)
    for number in range(8):
        dialogue.ask(f"q{number} b c d", lambda text: None, policy="drop-oldest", stoppable=False)
    last = dialogue.lm.requests[-1]
    assert last.messages[0]["content"] == "sys"
    assert last.messages[-1]["content"] == "q7 b c d"
    assert last.messages[1]["role"] == "user"
    assert dialogue.dropped == len(dialogue.conversation.prompt()) - 1 - len(last.messages) > 0
    assert len(dialogue.conversation.messages) == 16
    assert dialogue.lm.count_tokens(last.messages) <= 60 - 60 // 4


def test_a_question_that_fits_nowhere_leaves_the_conversation_as_it_was() -> None:
    dialogue = asking(60)
    for policy in ("drop-oldest", "error"):
        with pytest.raises(ContextLengthError) as error:
            dialogue.ask("w " * 100, lambda text: None, policy=policy, stoppable=False)  # type: ignore[arg-type]
        assert error.value.prompt_tokens > 100
        assert error.value.context == 60
        assert dialogue.conversation.messages == []


def test_a_failed_request_leaves_the_conversation_as_it_was() -> None:
    dialogue = asking(4096)
    with pytest.raises(KeifuError, match="broke"):
        dialogue.ask("fail", lambda text: None, policy="error", stoppable=False)
    assert dialogue.conversation.messages == []


def test_a_base_model_writes_one_running_text() -> None:
    lm = driver.load("base", ctx=4096)
    dialogue = Dialogue(lm, Conversation(model="base"), {"max_tokens": 5})
    dialogue.ask("Once ", lambda text: None, policy="drop-oldest", stoppable=False)
    dialogue.ask(" more", lambda text: None, policy="drop-oldest", stoppable=False)
    assert lm.prompts == ["Once ", "Once ONCE  [0] more"]
    assert dialogue.tokens() == lm.count_tokens("".join(
        m["content"] for m in dialogue.conversation.messages
    ))  # fmt: skip


def test_remote_models_are_those_that_load_knows() -> None:
    from keifu.cli.model import REMOTE
    from keifu.lm.cards import KEY_VARIABLES

    assert set(REMOTE) == {*KEY_VARIABLES, "http", "https"}


def test_a_long_text_is_answered_in_parts(scripted: Opened, capsys: Capture) -> None:
    text = "one two three four.\n\nfive six seven eight.\n\nWhy?"
    assert main(["chat", "--ctx", "20", "--max-tokens", "13", text]) == 1
    assert "the prompt has 12 tokens plus 13 requested" in capsys.readouterr().err
    assert main(["chat", "--ctx", "20", "--max-tokens", "13", "--overflow", "parts", text]) == 0
    first, second = "ONE TWO THREE FOUR.\n\nWHY? [1]", "FIVE SIX SEVEN EIGHT.\n\nWHY? [1]"
    out = capsys.readouterr().out
    assert out == f"{first}\n\n{second}\n"
    args = ["--ctx", "20", "--max-tokens", "13", "--overflow", "parts", "--json", text]
    assert main(["chat", *args]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == f"{first}\n\n{second}"
    assert found["usage"]["prompt_tokens"] == 14
    assert found["finish_reason"] == "stop"


def test_a_base_model_writes_no_summary(scripted: Opened, capsys: Capture) -> None:
    args = ["--ctx", "20", "--max-tokens", "9", "--overflow", "summarise", "word " * 30]
    assert main(["chat", "-m", "base", *args]) == 1
    assert "takes no instructions: it cannot write a summary" in capsys.readouterr().err
