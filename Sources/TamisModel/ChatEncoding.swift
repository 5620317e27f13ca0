// A conversation as the text that DeepSeek-V3.2 was trained to continue. The model has no template: its chat encoding
// is code (encoding_dsv32.py beside the weights), whose rules for plain conversations are:
//
//   the text begins with the begin-of-sentence token;
//   system      content
//   user        <|User|> content <|Assistant|>, then <think> if the model is to think about this, the last question,
//               else </think>
//   assistant   content, end-of-sentence; behind the last question of a thinking conversation the reasoning and
//               </think> come first. Reasoning of earlier answers is left out.
//
// (the bars are U+FF5C.) Content is taken as it is: a token's text inside it is that token. Tools and response formats
// are not covered; what they need can stand in the system message. It refuses what the encoder refuses: a thinking
// conversation's answer behind the last question that has no reasoning.

package import TamisFormats
package import TamisRuntime

package struct ChatMessage {
  package enum Role: Int32, Sendable {
    case system = 0
    case user = 1
    case assistant = 2
  }

  package let role: Role
  /// UTF-8.
  package let content: UnsafeRawBufferPointer
  /// An assistant's; empty: none.
  package let reasoning: UnsafeRawBufferPointer

  package init(_ role: Role, _ content: UnsafeRawBufferPointer, reasoning: UnsafeRawBufferPointer) {
    self.role = role
    self.content = content
    self.reasoning = reasoning
  }
}

package enum ChatEncoding {
  private static let begin: StaticString = "<｜begin▁of▁sentence｜>"
  private static let end: StaticString = "<｜end▁of▁sentence｜>"
  private static let user: StaticString = "<｜User｜>"
  private static let assistant: StaticString = "<｜Assistant｜>"
  private static let think: StaticString = "<think>"
  private static let thought: StaticString = "</think>"

  /// Appends the whole conversation; a text that fails is left as it was.
  package static func append(
    _ messages: some RandomAccessCollection<ChatMessage>, thinking: Bool, to text: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    let length = text.count
    do {
      try add(begin, to: &text)
      let last = messages.enumerated().reduce(-1) { $1.element.role == .user ? $1.offset : $0 }
      for (number, message) in messages.enumerated() {
        try add(message, number, isLast: number == last, thinks: thinking && number >= last, to: &text)
      }
    } catch {
      text.truncate(to: length)
      throw error
    }
  }

  /// isLast: the last question; thinks: it, or what follows it, in a thinking conversation.
  private static func add(
    _ message: ChatMessage, _ number: Int, isLast: Bool, thinks: Bool, to text: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    switch message.role {
    case .system: try add(message.content, to: &text)
    case .user:
      try add(user, to: &text)
      try add(message.content, to: &text)
      try add(assistant, to: &text)
      try add(isLast && thinks ? think : thought, to: &text)
    case .assistant:
      if thinks {
        guard !message.reasoning.isEmpty else {
          throw TamisError(.argument, "messages[\(number)]: an answer behind the last question without its reasoning")
        }
        try add(message.reasoning, to: &text)
        try add(thought, to: &text)
      }
      try add(message.content, to: &text)
      try add(end, to: &text)
    }
  }

  private static func add(_ part: StaticString, to text: inout GrowableBuffer<UInt8>) throws(TamisError) {
    try text.append(contentsOf: UnsafeBufferPointer(start: part.utf8Start, count: part.utf8CodeUnitCount))
  }

  private static func add(_ part: UnsafeRawBufferPointer, to text: inout GrowableBuffer<UInt8>) throws(TamisError) {
    try text.append(contentsOf: part.assumingMemoryBound(to: UInt8.self))
  }
}
