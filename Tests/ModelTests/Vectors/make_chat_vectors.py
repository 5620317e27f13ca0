"""What DeepSeek-V3.2's own chat encoder makes of some conversations, and its parser of some replies: python3
make_chat_vectors.py encoding_dsv32.py, the file that deepseek-ai/DeepSeek-V3.2 ships in its folder `encoding`. A case
of chat.json without text, or of replies.json without message, is one that it refuses."""

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

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The \"weather\" of a city,\n\ttoday \\ tomorrow 天气 \u2028\x7f\x01\x1f",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                   "required": ["city"], "extra": [True, False, None, {}, [], ""]}}}
NUMBERS = {"function": {"numbers": [
    0, -0.0, 1, -7, 12345678901234567890123, 0.1, 1.0, -2.50, 100000.0, 1e15, 1e16, 1.5e16, 9007199254740993.0,
    1e22, 1e-4, 1e-5, 0.00012345, 1.7976931348623157e308, 5e-324, 123456.789e-10, 3.14]}, "strict": True}
TOOLS = {"role": "system", "content": "Use tools.", "tools": [WEATHER, NUMBERS]}
FORMAT = {"type": "json_schema", "schema": {"größe": 1.0}}


def call(name, arguments):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content):
    return {"role": "tool", "tool_call_id": "call_1", "content": content}


ONE = {"role": "assistant", "content": "Let me see.", "reasoning_content": "I need the weather.",
       "tool_calls": [call("get_weather", '{"city": "Köln \\"am\\" Rhein\\n", "days": 3}')]}
TWO = {"role": "assistant", "tool_calls": [
    call("get_weather", '{"city":"北京","when":{"from":1,"to":[2.50,null,true]},"note":""}'), call("now", "{}")]}
SUN, RAIN, DONE = result("sunny <b>"), result('{"rain": 0.5}'), {"role": "assistant", "content": "It is sunny."}
THOUGHT = DONE | {"reasoning_content": "Sunny it is."}
DEVELOPER = {"role": "developer", "content": "Which weather?", "tools": [WEATHER], "response_format": FORMAT}
CONVERSATIONS += [
    [TOOLS, ASK], [TOOLS, ASK, ONE], [TOOLS, ASK, ONE, SUN], [TOOLS, ASK, ONE, SUN, THOUGHT, AGAIN],
    [SYSTEM, ASK, TWO, SUN], [SYSTEM, ASK, TWO, SUN, RAIN], [SYSTEM, ASK, TWO, SUN, RAIN, DONE],
    [SYSTEM, ASK, TWO, SUN, RAIN, THOUGHT, AGAIN, ONE, RAIN, THOUGHT], [ASK, ONE, SUN, AGAIN, TWO, SUN],
    [DEVELOPER], [DEVELOPER, ONE, SUN], [ASK, PLAIN, DEVELOPER], [DEVELOPER, PLAIN, ASK],
    [{"role": "developer", "content": "Only this."}], [{"role": "developer", "content": ""}],
    [SYSTEM | {"response_format": FORMAT}, ASK], [TOOLS | {"response_format": FORMAT, "content": ""}, ASK],
    [SYSTEM | {"tools": [], "response_format": {}}, ASK, PLAIN | {"tool_calls": []}],
    [ASK, ONE, SUN, RAIN], [ASK, PLAIN, SUN], [ASK, SUN], [SYSTEM, ONE, SUN], [ASK, ONE, ASK, SUN],
    [ASK, {"role": "assistant", "content": "", "tool_calls": [call("f", "[1]")]}],
    [ASK, {"role": "assistant", "content": "", "tool_calls": [call("f", "{")]}],
    [ASK, {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]}],
    [SYSTEM | {"tools": [{"type": "function"}]}, ASK],
]

END, BAR = "<｜end▁of▁sentence｜>", "｜DSML｜"
MARKS = ["<｜begin▁of▁sentence｜>", END, "<think>", "</think>", BAR]


def block(*calls):
    return f"\n\n<{BAR}function_calls>\n" + "".join(calls) + f"</{BAR}function_calls>"


def written(name, *parameters):
    return f"<{BAR}invoke name=\"{name}\">\n" + "\n".join(parameters) + f"\n</{BAR}invoke>\n"


def parameter(name, value, is_string):
    return f"<{BAR}parameter name=\"{name}\" string=\"{is_string}\">{value}</{BAR}parameter>"


CITY = parameter("city", "Köln \"am\" Rhein\n\t\\ \u2028\x7f\x01 {1} <b>", "true")
DAYS = parameter("days", " [1, 2.50,\n null] ", "false")
GOOD = "Let me see." + block(written("get_weather", CITY, DAYS), written("now", ""), written("f", parameter("", "", "true")))
REPLIES = [
    "2" + END, END, "  two\nlines 🙂 日本語 \" \\ \x00\x1f " + END, "2", "", "2" + END + "more", "2" + END + END, GOOD + END, GOOD,
    GOOD + "\n" + END, GOOD + END + " ", GOOD + GOOD + END, block() + END, block(written("f", DAYS)) + END,
    *(f"a{mark}b" + END for mark in MARKS), "\n<" + BAR + "function_calls>\n" + END, "<function_calls>\n" + END,
    # names and values that look like marks
    block(written("a\">b", parameter("x", "<y <", "true"))) + END, block(written("f", parameter("a\" b", "c", "true"))) + END,
    block(written("f", parameter("x", "\" string=\"false\">1", "true"))) + END, block(written("f", parameter("x\">", "1", "false"))) + END,
    block(written("f", parameter("x", f"<{BAR}parameter name=\"y\" string=\"true\">", "true"))) + END,
    block(written("f", parameter("x", f"</{BAR}function_calls>", "true"))) + END,
    block(f"<{BAR}invoke  \n\tname=\"f\">\n</{BAR}invoke>\n") + END, block(f"<{BAR}invokename=\"f\">\n</{BAR}invoke>\n") + END,
    # written wrongly
    block(written("f", CITY, CITY)) + END, block(written("f", parameter("x", "1", "maybe"))) + END,
    block(written("f", parameter("x", "1", "true") + " ")) + END, block(written("f", CITY).replace(f"</{BAR}invoke>", "")) + END,
    block(written("f", CITY).replace(f"</{BAR}parameter>", f"<{BAR}parameter>")) + END, block(written("f") + " ") + END,
    block(" " + written("f")) + END, block(written("f", "loose text")) + END, block(written("f").replace("name", "nam")) + END,
    block(written("f").replace("\">\n", "\">")) + END, block(written("f", CITY.replace(" string", "  string"))) + END,
    block(written("f", CITY.replace(" name", "  name"))) + END, block(written("f", CITY + CITY)) + END,
    block(written("g", written("f", CITY))) + END, block(block(written("f"))) + END, block(written("f")).replace(">\n<", "><") + END,
    *((GOOD + END)[:length] for length in range(12, len(GOOD), 41)),
]


def replies(encoder):
    for messages in CONVERSATIONS:
        for mode in ("chat", "thinking"):
            if messages and messages[-1]["role"] == "assistant":
                try:
                    before = encoder.encode_messages(messages[:-1], thinking_mode=mode)
                    yield mode, encoder.encode_messages(messages, thinking_mode=mode).removeprefix(before)
                except (AssertionError, AttributeError, KeyError, ValueError):
                    pass
    for text in REPLIES:
        yield "chat", text
        yield "thinking", text
        yield "thinking", "Well \"…\"\n\n" + MARKS[3] + text
    for mark in [*MARKS[:3], BAR, MARKS[3], block(written("f"))]:
        yield "thinking", f"Well{mark}, {MARKS[3]}2{END}"


def parsed(encoder, text, mode):
    try:
        return encoder.parse_message_from_completion_text(text, mode)
    except AssertionError:
        return None


def main():
    spec = importlib.util.spec_from_file_location("encoding_dsv32", sys.argv[1])
    encoder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(encoder)
    cases = []
    for messages in CONVERSATIONS:
        for mode in ("chat", "thinking"):
            try:
                text = encoder.encode_messages(messages, thinking_mode=mode)
            except (AssertionError, AttributeError, KeyError, ValueError):
                text = None
            cases.append({"messages": messages, "thinking": mode == "thinking", "text": text})
    write("chat.json", cases)
    cases = []
    for mode, text in replies(encoder):
        message = parsed(encoder, text, mode)
        if message is None and END not in text:  # which generations leave out
            message = parsed(encoder, text + END, mode)
        cases.append({"reply": text, "thinking": mode == "thinking",
                      "message": message and json.dumps(message, ensure_ascii=False)})
    write("replies.json", cases)
    print(len(cases), "replies,", sum(case["message"] is not None for case in cases), "of them well-formed")


def write(name, cases):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(cases, file, ensure_ascii=False, indent=1)
        file.write("\n")


main()
