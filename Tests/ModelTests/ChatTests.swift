// Conversations against the text that DeepSeek-V3.2's own encoder makes of them (Vectors/make_chat_vectors.py).

import Foundation
import TamisFormats
import TamisModel
import TamisRuntime
import Testing

private struct Case {
  let value: JSONValue
  var thinking: Bool { (try? value.required("thinking").bool()) ?? false }

  /// nil: the encoder refuses it.
  func text() throws -> String? { try value.member("text").map { try Case.string($0) } }

  static func string(_ value: JSONValue) throws -> String {
    var bytes = GrowableBuffer<UInt8>(.unmetered)
    try value.appendString(to: &bytes)
    return String(decoding: bytes.elements, as: UTF8.self)
  }

  func encoded(after start: String = "") throws -> String {
    var copies: [UnsafeMutableRawBufferPointer] = []
    defer { copies.forEach { $0.deallocate() } }
    func bytes(_ value: JSONValue?) throws -> UnsafeRawBufferPointer {
      let text = try value.map { try Case.string($0) } ?? ""
      copies.append(.allocate(byteCount: text.utf8.count, alignment: 1))
      copies[copies.count - 1].copyBytes(from: text.utf8)
      return UnsafeRawBufferPointer(copies[copies.count - 1])
    }
    let roles: [String: ChatMessage.Role] = [
      "system": .system, "user": .user, "assistant": .assistant, "tool": .tool, "developer": .developer,
    ]
    let messages = try value.required("messages").elements.map { message in
      var made = ChatMessage(
        try #require(roles[message.required("role").string()]), try bytes(message.member("content")),
        reasoning: try bytes(message.member("reasoning_content")))
      made.tools = message.member("tools")
      made.calls = message.member("tool_calls")
      made.responseFormat = message.member("response_format")
      return made
    }
    var text = GrowableBuffer<UInt8>(.unmetered)
    for byte in start.utf8 { try text.append(byte) }
    do {
      try ChatEncoding.append(messages, thinking: thinking, to: &text)
    } catch {
      #expect(text.count == start.utf8.count)
      throw error
    }
    return String(decoding: text.elements, as: UTF8.self)
  }
}

private func vectors(_ name: String) throws -> JSONElements {
  let path = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Vectors/" + name)
  return try JSONDocument(path: path.path).root.elements
}

private func parsed(_ reply: String, thinking: Bool, after start: String = "") throws -> String {
  var json = GrowableBuffer<UInt8>(.unmetered)
  try json.append(start)
  do {
    try Array(reply.utf8).withUnsafeBytes { try ChatReply.append($0, thinking: thinking, to: &json) }
  } catch {
    #expect(json.count == start.utf8.count)
    throw error
  }
  return String(decoding: json.elements, as: UTF8.self)
}

@Suite struct ChatTests {
  @Test func conversationsAreThoseOfTheEncoder() throws {
    let cases = try vectors("chat.json").map { Case(value: $0) }
    #expect(cases.count == 82)
    for (number, each) in cases.enumerated() {
      if let text = try each.text() {
        #expect(try each.encoded() == text, "case \(number)")
        #expect(try each.encoded(after: "before") == "before" + text)
      } else {
        #expect(throws: TamisError.self, "case \(number)") { _ = try each.encoded(after: "before") }
      }
    }
  }

  @Test func whatIsRefusedIsNamed() throws {
    func refuses(_ status: Status, _ part: String, _ messages: String) throws {
      let text = "{\"messages\": \(messages), \"thinking\": true}"
      let document = try Array(text.utf8).withUnsafeBytes { try JSONDocument(copying: $0, name: "messages") }
      expectFailure(status, part) { _ = try Case(value: document.root).encoded() }
    }
    try refuses(.argument, "messages[0]: a tool's result", #"[{"role": "tool", "content": "x"}]"#)
    try refuses(.argument, "without its reasoning", #"[{"role": "assistant", "content": "x"}]"#)
    try refuses(.argument, "messages[0]: tools", #"[{"role": "user", "content": "x", "tools": []}]"#)
    try refuses(.argument, "messages[0]: calls", #"[{"role": "user", "content": "x", "tool_calls": []}]"#)
    try refuses(.argument, "without content", #"[{"role": "developer", "content": ""}]"#)
    try refuses(.format, "an array of tools", #"[{"role": "system", "tools": {}}]"#)
    try refuses(.format, "an object with \"function\"", #"[{"role": "system", "tools": [{}]}]"#)
    try refuses(.format, "an object", #"[{"role": "system", "response_format": []}]"#)
    let call = #"[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "@"}}]}]"#
    for (arguments, part) in [("[]", "an object"), ("{", "arguments: byte 1"), ("", "arguments: byte 0")] {
      try refuses(.format, part, call.replacingOccurrences(of: "@", with: arguments))
    }
  }

  @Test func repliesAreThoseOfTheParser() throws {
    let cases = Array(try vectors("replies.json"))
    #expect(cases.count == 188)
    for (number, each) in cases.enumerated() {
      let (reply, thinking) = (try Case.string(each.required("reply")), try each.required("thinking").bool())
      if let message = try each.member("message").map({ try Case.string($0) }) {
        #expect(try parsed(reply, thinking: thinking, after: "before") == "before" + message, "case \(number)")
      } else {
        #expect(throws: TamisError.self, "case \(number): \(reply)") {
          _ = try parsed(reply, thinking: thinking, after: "before")
        }
      }
    }
  }

  /// Every answer that the encoder writes is read as what it was made of.
  @Test func thereAndBack() throws {
    var count = 0
    for each in try vectors("chat.json").map({ Case(value: $0) }) {
      let messages = Array(try each.value.required("messages").elements)
      guard let last = messages.last, last.member("role")?.equals("assistant") == true, let whole = try each.text(),
        let cut = whole.range(of: each.thinking ? "<think>" : "</think>", options: .backwards)?.upperBound
      else { continue }
      // Behind an earlier question, or without one, the encoder writes no reasoning.
      let wrote = each.thinking && whole[cut...].contains("</think>")
      let text = String(whole[cut...])
      guard wrote || !each.thinking else { continue }
      let back = try Array(parsed(text, thinking: wrote).utf8).withUnsafeBytes {
        try JSONDocument(copying: $0, name: "back").root
      }
      func part(_ name: StaticString, of message: JSONValue) throws -> String {
        try message.member(name).map { try Case.string($0) } ?? ""
      }
      let content = try part("content", of: last)
      #expect(try part("content", of: back).hasSuffix(content))
      if wrote { #expect(try part("reasoning_content", of: back) == part("reasoning_content", of: last)) }
      let calls = Array(try back.required("tool_calls").elements)
      let wanted = last.member("tool_calls").map { Array($0.elements) } ?? []
      #expect(calls.count == wanted.count)
      for (call, given) in zip(calls, wanted) {
        let (ours, theirs) = (try call.required("function"), try given.required("function"))
        #expect(try part("name", of: ours) == part("name", of: theirs))
        func object(_ function: JSONValue) throws -> NSDictionary {
          let text = try part("arguments", of: function)
          return try #require(JSONSerialization.jsonObject(with: Data(text.utf8)) as? NSDictionary)
        }
        #expect(try object(ours) == object(theirs))
      }
      count += 1
    }
    #expect(count > 12)
  }

  /// Where the parser of the original would take what was cut off, or what is no JSON, or Python's `$` a line more.
  @Test func repliesThatAreCutOrNoJSON() throws {
    let open = "\n\n<｜DSML｜function_calls"
    let call = open + ">\n<｜DSML｜invoke name=\"f\">\n"
    func with(_ value: String, _ isString: Bool = false, _ rest: String = "") -> String {
      call + "<｜DSML｜parameter name=\"x\" string=\"\(isString)\">\(value)</｜DSML｜parameter>\n\(rest)</｜DSML｜invoke>\n"
        + "</｜DSML｜function_calls>"
    }
    func refuses(_ part: String, _ reply: String, thinking: Bool = false) {
      expectFailure(.format, part) { _ = try parsed(reply, thinking: thinking) }
    }
    _ = try parsed(with("[{}]"), thinking: false)
    refuses("byte 27: expected \">\"", open)
    refuses("reply: byte", open + ">\n")
    refuses("reply: byte", call)
    refuses("reply: byte", call + "</｜DSML｜invoke")
    refuses("reply: byte", call + "</｜DSML｜invoke>\n")
    refuses("the value at byte 102: byte 0", with("yes"))
    refuses("the value at byte", with(""))
    refuses("the value at byte", with("1, \"y\": 2"))
    refuses("the value at byte", with("1}"))
    refuses("the value at byte", with("NaN"))
    refuses("the value at byte", with(String(repeating: "[", count: 100_000)))
    refuses("reply: byte", with("a", true, "\n"))
    refuses("reply: byte", with("1<\n/｜DSML｜parameter>\n", true))
    refuses("call 0", with("1", false, "<｜DSML｜parameter name=\"x\" string=\"true\">1</｜DSML｜parameter>\n"))
    refuses("byte 4: expected a text without marks", "well<think></think>", thinking: true)
    refuses("byte 0: expected a text without marks", "</think>2")
    refuses("</think>", "only a thought", thinking: true)
    // Invalid UTF-8 counts as U+FFFD.
    var json = GrowableBuffer<UInt8>(.unmetered)
    try ([0x61, 0xFF, 0xE4, 0xB8] as [UInt8]).withUnsafeBytes { try ChatReply.append($0, thinking: false, to: &json) }
    #expect(String(decoding: json.elements, as: UTF8.self).contains("\"a\u{FFFD}\u{FFFD}\""))
  }

  /// Twenty thousand parameters, and as many beginnings of marks.
  @Test func longReplies() throws {
    var text = "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n"
    for i in 0..<20_000 { text += "<｜DSML｜parameter name=\"p\(i)\" string=\"false\">\(i)</｜DSML｜parameter>\n" }
    text += "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    let json = try parsed(text, thinking: false)
    #expect(json.hasPrefix(#"{"role": "assistant", "content": """#) && json.contains(#"\"p19999\": 19999}"}}]}"#))
    let marks = String(repeating: "<｜", count: 200_000)
    #expect(try parsed(marks, thinking: false).contains(marks))
  }
}
