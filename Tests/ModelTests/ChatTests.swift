// Conversations against the text that DeepSeek-V3.2's own encoder makes of them (Vectors/make_chat_vectors.py).

import Foundation
import TamisFormats
import TamisModel
import TamisRuntime
import Testing

private struct Case: Decodable {
  struct Message: Decodable {
    var role: String
    var content: String
    var reasoning_content: String?
  }

  var messages: [Message]
  var thinking: Bool
  var text: String?

  func encoded(after start: String = "") throws -> String {
    let parts = messages.map { (Array($0.content.utf8), Array(($0.reasoning_content ?? "").utf8)) }
    let copies = parts.flatMap { [$0.0, $0.1] }.map { bytes in
      let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 1)
      copy.copyBytes(from: bytes)
      return copy
    }
    defer { copies.forEach { $0.deallocate() } }
    let roles: [String: ChatMessage.Role] = ["system": .system, "user": .user, "assistant": .assistant]
    let views = try messages.enumerated().map { i, message in
      ChatMessage(
        try #require(roles[message.role]), UnsafeRawBufferPointer(copies[2 * i]),
        reasoning: UnsafeRawBufferPointer(copies[2 * i + 1]))
    }
    var text = GrowableBuffer<UInt8>(.unmetered)
    for byte in start.utf8 { try text.append(byte) }
    do {
      try ChatEncoding.append(views, thinking: thinking, to: &text)
    } catch {
      #expect(text.count == start.utf8.count)
      throw error
    }
    return String(decoding: text.elements, as: UTF8.self)
  }
}

@Suite struct ChatTests {
  @Test func conversationsAreThoseOfTheEncoder() throws {
    let path = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Vectors/chat.json")
    let cases = try JSONDecoder().decode([Case].self, from: Data(contentsOf: path))
    #expect(cases.count == 28)
    for (number, each) in cases.enumerated() {
      if let text = each.text {
        #expect(try each.encoded() == text, "case \(number)")
        #expect(try each.encoded(after: "before") == "before" + text)
      } else {
        expectFailure(.argument, "without its reasoning") { _ = try each.encoded(after: "before") }
      }
    }
  }
}
