"""What DeepSeek-V3.2's own chat encoder makes of some conversations: python3 make_chat_vectors.py encoding_dsv32.py,
the file that deepseek-ai/DeepSeek-V3.2 ships in its folder `encoding`. A case without text is one that it refuses."""

import importlib.util
import json
import os
import sys

SYSTEM = {"role": "system", "content": "You are a helpful assistant.\nAnswer briefly."}
ASK = {"role": "user", "content": "What is 1+1?"}
ANSWER = {"role": "assistant", "content": "2", "reasoning_content": "One and one make two."}
PLAIN = {"role": "assistant", "content": "2"}
AGAIN = {"role": "user", "content": "  Und auf Deutsch? 日本語 🙂 {braces} <b>\n"}
CONVERSATIONS = [
    [ASK], [SYSTEM, ASK], [SYSTEM, ASK, ANSWER, AGAIN], [ASK, PLAIN, AGAIN, ANSWER], [ASK, PLAIN],
    [SYSTEM, SYSTEM, ASK, AGAIN], [ASK, ANSWER, ANSWER, AGAIN, PLAIN], [SYSTEM], [ANSWER, ASK], [PLAIN, ANSWER], [],
    [{"role": "system", "content": ""}, {"role": "user", "content": ""}],
    [ASK, {"role": "assistant", "content": "", "reasoning_content": "Only a thought."}],
    [ASK, {"role": "assistant", "content": "2", "reasoning_content": ""}],
]


def main():
    spec = importlib.util.spec_from_file_location("encoding_dsv32", sys.argv[1])
    encoder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(encoder)
    cases = []
    for messages in CONVERSATIONS:
        for mode in ("chat", "thinking"):
            try:
                text = encoder.encode_messages(messages, thinking_mode=mode)
            except AssertionError:
                text = None
            cases.append({"messages": messages, "thinking": mode == "thinking", "text": text})
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "chat.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(cases, file, ensure_ascii=False, indent=1)
        file.write("\n")


main()
